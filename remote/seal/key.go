// Package seal encrypts what snapshots leave in an object store with a key that the store
// does not have, and says what was changed there. It is convergent: what is the same has the same
// name and the same sealed form under one key, so that it is still stored once; who does not have
// the key can tell neither what it is nor whether it is something that they know. Package remote uses it.
//
// A key comes from a secret of at least 32 bytes by HKDF with SHA-256 (RFC 5869), without salt,
// with the info "skep store 1 " and what it is for:
//
//	names      32 bytes  HMAC-SHA-256 of contents: their names
//	labels     32 bytes  HMAC-SHA-256 of what is said in an object's key
//	chunks     64 bytes  AES-SIV-CMAC-512 (RFC 5297), the name as associated data
//	manifests  64 bytes  the same
//	id         16 bytes  tells of two keys whether they are the same, and nothing else
package seal

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/tink-crypto/tink-go/v2/daead/subtle"
)

// MinSecret is the length of the shortest secret that is taken, in bytes.
const MinSecret = 32

// Overhead is how much longer than what was sealed it is then, in bytes.
const Overhead = 16

// ErrChanged is returned for what was not sealed so with this key.
var ErrChanged = errors.New("it was not sealed so with this key and for this place: it was changed or damaged, or belongs elsewhere")

// ID tells keys apart, and nothing of them.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Key seals and opens. However it is printed, only its ID is. Its methods may be called from
// many goroutines.
type Key struct {
	id                ID
	names, labels     []byte
	chunks, manifests *subtle.AESSIV
}

// New derives a key from a secret, which is not kept. It is no password: its bytes must be random, all of
// a secret's strength is theirs.
func New(secret []byte) (*Key, error) {
	if len(secret) < MinSecret {
		return nil, fmt.Errorf("a key of %d bytes: want at least %d random ones, such as from `head -c 32 /dev/urandom`", len(secret), MinSecret)
	}
	same := true
	for _, b := range secret {
		same = same && b == secret[0]
	}
	if same {
		return nil, fmt.Errorf("a key of %d times the same byte: want random ones, such as from `head -c 32 /dev/urandom`", len(secret))
	}
	k := &Key{}
	var chunks, manifests, id []byte
	for _, d := range []struct {
		to   *[]byte
		what string
		size int
	}{
		{&k.names, "names", sha256.Size}, {&k.labels, "labels", sha256.Size}, {&id, "id", len(k.id)},
		{&chunks, "chunks", subtle.AESSIVKeySize}, {&manifests, "manifests", subtle.AESSIVKeySize},
	} {
		var err error
		if *d.to, err = hkdf.Key(sha256.New, secret, nil, "skep store 1 "+d.what, d.size); err != nil {
			return nil, fmt.Errorf("deriving the key for %s: %w", d.what, err)
		}
	}
	copy(k.id[:], id)
	var err error
	if k.chunks, err = subtle.NewAESSIV(chunks); err != nil {
		return nil, fmt.Errorf("a key for chunks: %w", err)
	}
	if k.manifests, err = subtle.NewAESSIV(manifests); err != nil {
		return nil, fmt.Errorf("a key for manifests: %w", err)
	}
	return k, nil
}

// ID returns what tells the key apart.
func (k *Key) ID() ID { return k.id }

// Format prints the key's ID, whatever the verb.
func (k *Key) Format(f fmt.State, _ rune) {
	if k == nil {
		_, _ = io.WriteString(f, "no key")
		return
	}
	_, _ = io.WriteString(f, "key "+k.id.String())
}

// Name is the name of a content.
func (k *Key) Name(content []byte) (name [sha256.Size]byte) {
	h := hmac.New(sha256.New, k.names)
	h.Write(content)
	h.Sum(name[:0])
	return name
}

// Label stands for a word where all may see it, 32 hexadecimal digits.
func (k *Key) Label(word string) string {
	h := hmac.New(sha256.New, k.labels)
	h.Write([]byte(word))
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Chunk seals a chunk's content, or what stands for it, under its name.
func (k *Key) Chunk(name, plain []byte) ([]byte, error) {
	return k.chunks.EncryptDeterministically(plain, name)
}

// OpenChunk returns what Chunk has sealed under that name; ErrChanged if it was not so.
func (k *Key) OpenChunk(name, sealed []byte) ([]byte, error) { return open(k.chunks, name, sealed) }

// Manifest seals a manifest for where it is to stand, with what is to be seen beside it.
func (k *Key) Manifest(place, plain []byte) ([]byte, error) {
	return k.manifests.EncryptDeterministically(plain, place)
}

// OpenManifest returns what Manifest has sealed for that place; ErrChanged if it was not so.
func (k *Key) OpenManifest(place, sealed []byte) ([]byte, error) {
	return open(k.manifests, place, sealed)
}

func open(with *subtle.AESSIV, about, sealed []byte) ([]byte, error) {
	plain, err := with.DecryptDeterministically(sealed, about)
	if err != nil {
		return nil, ErrChanged // the library's own says no more
	}
	return plain, nil
}
