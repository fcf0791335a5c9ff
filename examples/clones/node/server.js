// A function whose random numbers differ between the clones of its snapshot.
// Deploy it with --clone-hook /clone.
//
// Math.random was seeded when the process began and cannot be seeded again.
// crypto.randomBytes draws from OpenSSL's generator in this process, which no
// call of Node's seeds again either, and crypto.randomUUID keeps some made ahead.
// What may not repeat comes from /dev/urandom, which is the kernel's, or from a
// key that the hook replaces.

const crypto = require('crypto')
const fs = require('fs')
const http = require('http')

let key = process.env.EXAMPLE_SEED ?? fromKernel(32) // two processes with one seed are as two clones
let drawn = 0

function fromKernel (n) {
  const bytes = Buffer.alloc(n)
  const urandom = fs.openSync('/dev/urandom')
  try {
    fs.readSync(urandom, bytes)
  } finally {
    fs.closeSync(urandom)
  }
  return bytes
}

function token () {
  return crypto.createHmac('sha256', key).update(String(drawn++)).digest('hex').slice(0, 32)
}

function renew (entropy) {
  key = entropy
  drawn = 0
}

http.createServer((request, response) => {
  const parts = []
  request.on('data', part => parts.push(part))
  request.on('end', () => {
    if (request.method === 'POST') {
      renew(Buffer.from(JSON.parse(Buffer.concat(parts)).entropy, 'hex'))
      return response.end('{}\n')
    }
    response.end(JSON.stringify({
      random: token(), // repeats without the hook
      math: Math.random(), // repeats always
      openssl: crypto.randomBytes(16).toString('hex'), // repeats until OpenSSL seeds again by itself
      uuid: crypto.randomUUID(), // repeats while the store lasts
      kernel: fromKernel(16).toString('hex') // never repeats
    }) + '\n')
  })
}).listen(Number(process.env.PORT ?? 8080))
