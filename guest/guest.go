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
//	2  start    host   Start as JSON                                 2 MiB
//	3  clone    host   8 bytes UnixNano; 2 bytes length and so many  128 KiB
//	                   bytes, three times: Instance, Entropy, Hook;
//	                   three times more if there are Names or Files;
//	                   twice for each of Files: Path, Data
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
// Each further process in the guest, and each copy of files, has a connection of
// its own to ExecPort, which is not on the way of a restore:
//
//	kind        from   payload                                       at most
//	20 exec     host   Process as JSON                               2 MiB
//	21 attach   host   the process's ID                              128 bytes
//	22 stdin    host   bytes                                         32 KiB
//	23 eof      host   none                                          0
//	24 resize   host   2 bytes rows, 2 bytes columns                 4
//	25 signal   host   1 byte number; 1 byte: 1 all it has started   2
//	26 detach   host   none                                          0
//	27 copy-in  host   path of a directory                           4 KiB
//	28 copy-out host   path                                          4 KiB
//	29 data     both   bytes of a tar stream                         32 KiB
//	9, 10       agent  stdout, stderr of the process                 32 KiB
//	30 started  agent  4 bytes pid                                   4
//	31 taken    agent  4 bytes: so many bytes of stdin               4
//	32 ended    agent  1 byte status, signal, 1 if out of memory;    11
//	                   8 bytes UnixNano
//	33 refused  agent  1 byte Refusal; text                          4 KiB
//	34 detached agent  text; none when the host asked                4 KiB
//	35 copied   agent  none                                          0
//	36 watch    host   path; none only asks                          4 KiB
//	37 deliver  host   path of a mount                               4 KiB
//	38 room     host   1 byte 9 or 10; 4 bytes: so many more of it   5
//	39 noted    host   none                                          0
//
// The first frame is exec or attach, answered by started, or copy-in, deliver, copy-out or
// watch; refused answers any of them. Each side sends no more than the other has room for, so that both
// always read on: a signal is not stuck behind input that nobody reads, nor an end behind
// output. Of stdin the host sends at most StdinWindow bytes beyond what was taken, of
// each output the agent OutputWindow beyond what there was room for; it reads from the process as much,
// so nothing is dropped. Of a process that has ended it sends what is left, at most MaxRest bytes more. Eof ends stdin, and
// what is copied in. Ended, detached, refused and copied are the agent's last on their connection. Ended is kept, and told
// to who attaches next, until the host has noted it.
//
// The agent says hello on each connection, and answers each frame of the host
// with one done, in order; but each time with a clock. The host need not wait for
// the hello: to a restored guest it sends the clone message first. Numbers are little-endian. Unknown kinds, fields and
// lengths above the limit end the connection. What is on the way of every cold
// start (hello, clone, done) is not JSON: the guest would have to page in, and
// an emulator to translate, all code that reads it.
package guest

import (
	"net"
	"net/netip"
)

// Every guest has the same addresses: a clone needs no new ones.
var (
	MAC     = net.HardwareAddr{0x02, 0x5c, 0xe9, 0x00, 0x00, 0x02}
	HostMAC = net.HardwareAddr{0x02, 0x5c, 0xe9, 0x00, 0x00, 0x01} // of every tap
	Address = net.IPv4(172, 31, 254, 2)
	Gateway = net.IPv4(172, 31, 254, 1) // of every tap
)

// The same where a guest has IPv6, too: private addresses (RFC 4193) that leave no host.
var (
	Address6 = netip.MustParseAddr("fd73:6b65:7000::2")
	Gateway6 = netip.MustParseAddr("fd73:6b65:7000::1")
)

const (
	PrefixLen  = 30
	PrefixLen6 = 126
	AgentPort  = 10 // accepts connections from Gateway only
	ExecPort   = 11 // so does this, for further processes and for files
)

// Start is the host's first message to a booted agent: what to run. Without an
// Argv it runs nothing: it makes the root, is ready at once, and what the guest
// is for comes by Exec.
type Start struct {
	Instance    string   `json:"instance"` // becomes the host name, unless Hostname is another
	Argv        []string `json:"argv"`     // entrypoint and its arguments
	Env         []string `json:"env"`
	Dir         string   `json:"dir"`
	User        string   `json:"user"` // resolved against the root's /etc/passwd by the agent
	Port        int      `json:"port"` // 0: it serves none
	ReadyPath   string   `json:"ready_path,omitempty"`
	DiskMiB     int      `json:"disk_mib"`
	StopSignal  string   `json:"stop_signal,omitempty"`
	Nameservers []string `json:"nameservers,omitempty"`
	UnixNano    int64    `json:"unix_nano"` // the host's clock
	Entropy     []byte   `json:"entropy"`   // 64 bytes

	Names
	Mounts        []Mount           `json:"mounts,omitempty"`         // made in this order
	LimitMiB      int               `json:"limit_mib,omitempty"`      // of memory, for all processes; 0: what the guest does not need itself
	CPUs          float64           `json:"cpus,omitempty"`           // of the guest's, that the host lets all processes have; 0: no limit
	ReadOnlyRoot  bool              `json:"read_only_root,omitempty"` // but for what is mounted in it
	IPv6          bool              `json:"ipv6,omitempty"`           // it has Address6, beside Address
	Sysctls       map[string]string `json:"sysctls,omitempty"`        // "net.core.somaxconn"
	MaskedPaths   []string          `json:"masked_paths,omitempty"`   // as an OCI runtime hides them; one that is missing is left
	ReadonlyPaths []string          `json:"readonly_paths,omitempty"`
}

// Names are what a guest is called and whom it knows, where that is not made from
// its instance's id.
type Names struct {
	Hostname string `json:"hostname,omitempty"`
	Hosts    string `json:"hosts,omitempty"`  // text of /etc/hosts
	Resolv   string `json:"resolv,omitempty"` // text of /etc/resolv.conf
}

// Mount is what is at a path of the root in place of what the image has there.
type Mount struct {
	Path    string    `json:"path"` // made where it is missing
	Kind    MountKind `json:"kind,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"`   // of MountMemory; default: the kernel's, half of the memory
	Mode    uint32    `json:"mode,omitempty"`    // of its root; default 01777
	Options []string  `json:"options,omitempty"` // as mount(8) has them: "ro", "noexec"; of MountMemory also "size=64k"
}

// MountKind says what is in a mount.
type MountKind string

const (
	MountMemory    MountKind = ""          // an empty file system in the guest's memory
	MountDirectory MountKind = "directory" // what the host delivers, whether or not anybody in there may write to it
	MountFile      MountKind = "file"      // the same, for a file
	MountImage     MountKind = "image"     // the image's own directory, which may be written to also where the root may not
)

// What the host delivers is in the guest's memory, which has room for so much of it
// twice, since what replaces something is there beside it for a while.
const (
	MaxDelivered      = 16 << 20 // bytes, in whole pages
	MaxDeliveredFiles = 4096
)

// Clone is the host's first message to an agent that was restored from a
// snapshot: it is a clone now, and this is what makes it another. An agent that
// was not started before its snapshot is started afterwards.
type Clone struct {
	Instance string
	UnixNano int64
	Entropy  []byte // 64 bytes
	Hook     string // HTTP path on the function's server, POSTed before the answer; empty for none
	Names           // as in Start; all empty: its files stay, with the new instance's id in them
	// Files get their content before what ran in the guest runs on: they are below
	// mounts to which the host delivers, and there.
	Files []File
}

// File is a small file.
type File struct {
	Path string
	Data []byte
}

// MaxCloneFiles bounds paths and data of a Clone's Files, in bytes, with two for the
// length of each.
const MaxCloneFiles = 64 << 10
