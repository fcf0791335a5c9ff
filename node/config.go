package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/miekg/dns"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/scale"
	"github.com/skep-dev/skep/vmm"
)

// Config says where a node keeps things and what it may use. Every zero value
// but DataDir's means its default.
type Config struct {
	DataDir string // everything that lasts; one daemon at a time
	// RunDir holds sockets of running instances; default DataDir/run. A socket's
	// path may have 107 bytes, so a deep DataDir needs a short RunDir.
	RunDir        string
	DefaultPolicy string // memory policy of functions that name none; default "mmap"
	// Scaling is the scaling policy of functions that name none, as scale.Parse reads it;
	// default scale.Default.
	Scaling string
	UIDBase int // a VMM runs as UIDBase + its slot's index; default 77000000; -1: as the daemon (tests)
	GID     int // group of the VMMs' processes; default UIDBase's number
	// Limits of a VMM's process. CgroupRoot is a directory below which the node
	// makes one of its own; "" for no cgroups. The others have defaults: what the VMM
	// says that it needs at most, 128 processes, 1 CPU; below 0 is no limit.
	Limits       vmm.Limits
	MaxInstances int   // of all functions at once; default 256
	MemoryMiB    int   // memory of all instances at once, guests' and VMMs' own; 0: no limit
	LogBytes     int64 // of each function on disk; default 16 MiB
	KeepRecords  int64 // rows of invocations kept; default 1,000,000; negative: none
	// KeepRevisions is how many versions of a function are kept, the one in force
	// among them; default 10.
	KeepRevisions int
	// Images that nothing needs are removed when they were not used for ImageGrace
	// (default a week; negative: never for that), and when all images together
	// occupy more than ImageBytes (0: no bound), the longest unused first.
	ImageGrace   time.Duration
	ImageBytes   int64
	Shells       int           // VMM processes that wait for the functions that were used last, at most; default none
	Push         bool          // snapshots to the object store, in the background
	StoreWait    time.Duration // how long a guest waits for a page from the object store before it is ended; default 30s
	Nameservers  []string      // of guests that have egress; default the host's, but for loopback ones
	DrainTimeout time.Duration // how long Close and Remove wait for requests in flight; default 30s
	StopGrace    time.Duration // SIGTERM to SIGKILL of a function that is removed or shut down; default 2s; negative: none
}

func (c Config) withDefaults() (Config, error) {
	if c.DataDir == "" {
		return c, errors.New("no data directory given")
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return c, fmt.Errorf("data directory %s: %w", c.DataDir, err)
	}
	c.DataDir = dir
	if c.RunDir == "" {
		c.RunDir = filepath.Join(dir, "run")
	} else {
		c.RunDir = filepath.Join(c.RunDir, c.tag())
	}
	if c.Limits.CgroupRoot != "" {
		c.Limits.CgroupRoot = filepath.Join(c.Limits.CgroupRoot, c.tag())
	}
	if c.DefaultPolicy == "" {
		c.DefaultPolicy = "mmap"
	}
	if _, err := scale.Parse(c.Scaling); err != nil {
		return c, err
	}
	if c.UIDBase == 0 {
		c.UIDBase = 77000000
	}
	if c.UIDBase < 0 || os.Getuid() != 0 {
		c.UIDBase, c.GID = -1, 0
	} else if c.GID == 0 {
		c.GID = c.UIDBase
	}
	c.MaxInstances = orDefault(c.MaxInstances, 256)
	c.LogBytes = orDefault(c.LogBytes, 16<<20)
	c.KeepRecords = orDefault(c.KeepRecords, 1_000_000)
	c.ImageGrace = orDefault(c.ImageGrace, 7*24*time.Hour)
	c.KeepRevisions = orDefault(c.KeepRevisions, 10)
	if c.Nameservers == nil {
		c.Nameservers = hostNameservers(resolvConfs...)
	}
	c.DrainTimeout = orDefault(c.DrainTimeout, 30*time.Second)
	c.StoreWait = orDefault(c.StoreWait, storeWait)
	c.StopGrace = orDefault(c.StopGrace, 2*time.Second)
	return c, nil
}

// resolvConfs are where a host says who its nameservers are. Behind a stub
// resolver of its own, which no guest can reach, systemd-resolved writes those
// that it asks itself into the second.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// hostNameservers returns the IPv4 nameservers that a guest could reach, too, of
// the first file that has any.
func hostNameservers(paths ...string) []string {
	for _, path := range paths {
		conf, err := dns.ClientConfigFromFile(path)
		if err != nil {
			continue
		}
		var out []string
		for _, s := range conf.Servers {
			if ip, err := netip.ParseAddr(s); err == nil && ip.Is4() && !ip.IsLoopback() {
				out = append(out, s)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// tag names the data directory where its things lie among others'.
func (c Config) tag() string {
	sum := sha256.Sum256([]byte(c.DataDir))
	return "skep-" + hex.EncodeToString(sum[:4])
}

// mark is in the environment of every process that the node starts, so that
// the next daemon on this data directory finds those that a crash orphaned.
func (c Config) mark() string { return "SKEP_NODE=" + c.DataDir }

func (c Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.DataDir}, elem...)...)
}

// Kernel is what guests boot.
type Kernel struct {
	Path            string // kernel image
	Digest          string
	Initramfs       string // path
	InitramfsDigest string
	Cmdline         string // for the guest's init; the VMM adds its own
	Agent           string // version of the agent in the initramfs
	Generation      bool   // it has a driver for a VM's generation id
}

// Deps are the other packages, as the node uses them. The functions named Open
// are called once, after the data directory is locked and a crashed daemon's
// processes are gone, so that they may clean up after it.
type Deps struct {
	VMM    vmm.VMM
	Policy func(name string) (memory.Policy, error)
	// Ahead serves the memory of processes that load device state ahead; nil: none does.
	Ahead       func(context.Context, memory.Source) (*memory.Ahead, error)
	OpenNetwork func(ctx context.Context) (network.Pool, error)
	// Inhabitants lists the processes in network slots of an earlier daemon of the
	// same data directory, before OpenNetwork; default none.
	Inhabitants func() ([]int, error)
	OpenImages  func(ctx context.Context, dir string) (image.Fetcher, error)
	OpenKernel  func(ctx context.Context, dir string) (Kernel, error)
	// OpenDisks has root disks that are arriving be shown in a directory, when the first one is; nil: they come
	// whole first.
	OpenDisks func(dir string) (Disks, error)
	Connect   microvm.ConnectFunc
	// Wake is guest.Wake, with which guests of processes that have loaded device state ahead are woken; nil: none is.
	Wake func(ctx context.Context, conn net.Conn) (net.Conn, error)
	// Dial reaches the guest's port within a slot; default (*network.Slot).Dial.
	Dial func(ctx context.Context, s *network.Slot, port int) (net.Conn, error)
	Log  *slog.Logger // default: none
	// Remote is the snapshots in an object store; nil: none. With Config.Push those that
	// are made here are pushed to it by themselves.
	Remote *remote.Store
	// OnRecord is called for each invocation's record, off the request's way and
	// never twice at once: for metrics.
	OnRecord func(api.Invocation)
}

func (d *Deps) validate() error {
	switch {
	case d.VMM == nil, d.Policy == nil, d.OpenNetwork == nil, d.OpenImages == nil, d.OpenKernel == nil, d.Connect == nil:
		return errors.New("a dependency of the node is missing")
	}
	if d.Dial == nil {
		d.Dial = func(ctx context.Context, s *network.Slot, port int) (net.Conn, error) { return s.Dial(ctx, port) }
	}
	if d.Inhabitants == nil {
		d.Inhabitants = func() ([]int, error) { return nil, nil }
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}
