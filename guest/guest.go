// Package guest is what the host and the agent in the guest (PID 1,
// cmd/skep-agent) say to each other, and the host's side of it. Its
// sub-packages are the agent's logic (guest/agent), the guest kernel
// (guest/kernel) and the initramfs (guest/initramfs). It is the seventh station
// of a cold invocation; package microvm calls it. Agent and daemon are not on the
// way of a request's bytes.
//
// The transport is one TCP connection from the host to AgentPort, dialled
// inside the instance's network namespace: the same for every VMM. The newest
// connection wins: whoever dials later knows better which machine this is.
//
// Both sides send frames:
//
//	offset size
//	0      4     length of the payload, little-endian
//	4      1     kind
//	5      …     payload
//
//	kind        from   payload                                       at most
//	1  hello    agent  1 byte: 1 started, 2 ready; the rest: version 101 bytes
//	2  start    host   Start as JSON                                 1 MiB
//	3  clone    host   8 bytes UnixNano; 2 bytes length and so many  64 KiB
//	                   bytes, three times: Instance, Entropy, Hook
//	4  prepare  host   none                                          0
//	5  stop     host   Stop as JSON                                  4 KiB
//	6  done     agent  text of an error; none when it worked         4 KiB
//	7  ready    agent  none                                          0
//	8  exit     agent  Exit as JSON                                  4 KiB
//	9  stdout   agent  bytes that the function wrote                 32 KiB
//	10 stderr   agent  the same                                      32 KiB
//	11 dropped  agent  Dropped as JSON                               4 KiB
//	12 time     host   8 bytes UnixNano                              8
//	13 clock    agent  the same                                      8
//
// The agent says hello on each connection, and answers each frame of the host
// with one done, in order; but each time with a clock. Numbers are little-endian. Unknown kinds, fields and
// lengths above the limit end the connection. What is on the way of every cold
// start (hello, clone, done) is not JSON: the guest would have to page in, and
// an emulator to translate, all code that reads it.
package guest

import "net"

// Every guest has the same addresses: a clone needs no new ones.
var (
	MAC     = net.HardwareAddr{0x02, 0x5c, 0xe9, 0x00, 0x00, 0x02}
	HostMAC = net.HardwareAddr{0x02, 0x5c, 0xe9, 0x00, 0x00, 0x01} // of every tap
	Address = net.IPv4(172, 31, 254, 2)
	Gateway = net.IPv4(172, 31, 254, 1) // of every tap
)

const (
	PrefixLen = 30
	AgentPort = 10 // accepts connections from Gateway only
)

// Start is the host's first message to a booted agent: what to run.
type Start struct {
	Instance    string   `json:"instance"` // becomes the host name
	Argv        []string `json:"argv"`     // entrypoint and its arguments
	Env         []string `json:"env"`
	Dir         string   `json:"dir"`
	User        string   `json:"user"` // resolved against the root's /etc/passwd by the agent
	Port        int      `json:"port"`
	ReadyPath   string   `json:"ready_path,omitempty"`
	DiskMiB     int      `json:"disk_mib"`
	StopSignal  string   `json:"stop_signal,omitempty"`
	Nameservers []string `json:"nameservers,omitempty"`
	UnixNano    int64    `json:"unix_nano"` // the host's clock
	Entropy     []byte   `json:"entropy"`   // 64 bytes
}

// Clone is the host's first message to an agent that was restored from a
// snapshot: it is a clone now, and this is what makes it another.
type Clone struct {
	Instance string
	UnixNano int64
	Entropy  []byte // 64 bytes
	Hook     string // HTTP path on the function's server, POSTed before the answer; empty for none
}
