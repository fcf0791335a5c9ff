package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/network"
	"github.com/skep-dev/skep/node"
	"github.com/skep-dev/skep/remote/lazydisk"
	"github.com/skep-dev/skep/vmm"
)

// nodeConfig turns settings into the node's.
func nodeConfig(cfg config.Config) node.Config {
	c := node.Config{
		DataDir:       cfg.DataDir,
		RunDir:        cfg.RunDir,
		DefaultPolicy: cfg.MemoryPolicy,
		Scaling:       cfg.Scaling,
		MaxInstances:  cfg.MaxInstances,
		Shells:        cfg.Shells,
		MemoryMiB:     cfg.MemoryBudget,
		LogBytes:      int64(cfg.KeepLogMiB) << 20,
		KeepRecords:   keptRecords(cfg),
		KeepRevisions: cfg.KeepRevisions,
		DrainTimeout:  cfg.DrainTimeout.D(),
		Nameservers:   cfg.Nameservers,
		Push:          cfg.StorePush,
		StoreWait:     cfg.StoreWait.D(),
	}
	if c.ImageGrace, c.ImageBytes = cfg.KeepImages.D(), int64(cfg.ImageBudget)<<20; c.ImageGrace == 0 {
		c.ImageGrace = -1
	}
	if c.DefaultPolicy == "" {
		c.DefaultPolicy = memory.Default
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = availableMiB() * 9 / 10
	}
	if !cfg.ConfineUser {
		c.UIDBase = -1
	}
	c.Limits = vmm.Limits{MemoryMiB: cfg.VMMMemory, PIDs: cfg.VMMPIDs, CPUs: float64(cfg.VMMCPUs)}
	switch cfg.CgroupRoot {
	case "auto":
		c.Limits.CgroupRoot = cgroup.Root()
	case "none":
	default:
		c.Limits.CgroupRoot = cfg.CgroupRoot
	}
	return c
}

// keptRecords is the setting in the node's terms, to whom zero means a default.
func keptRecords(cfg config.Config) int64 {
	if cfg.KeepRecords == 0 {
		return -1
	}
	return int64(cfg.KeepRecords)
}

// deps hands the node every other package.
func (d *daemon) deps() node.Deps {
	return node.Deps{
		VMM:         d.vmm,
		Policy:      d.policy.Lookup,
		Ahead:       d.policy.Ahead,
		OpenNetwork: d.openNetwork,
		Inhabitants: d.inhabitants,
		OpenImages:  d.openImages,
		OpenKernel:  d.openKernel,
		Connect:     microvm.Connect,
		Wake:        guest.Wake,
		OpenDisks:   func(dir string) (node.Disks, error) { return lazydisk.Open(dir) },
		Remote:      d.remote,
		Log:         d.log,
		OnRecord:    d.metrics.Observe,
	}
}

// slotPrefix begins the names of slots. It carries a digest of the data directory,
// by which a daemon knows after a crash which ones are its own.
func (d *daemon) slotPrefix() (string, error) {
	dir, err := filepath.Abs(d.cfg.DataDir)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(dir))
	return "skep-" + hex.EncodeToString(sum[:4]), nil
}

func (d *daemon) inhabitants() ([]int, error) {
	prefix, err := d.slotPrefix()
	if err != nil {
		return nil, err
	}
	return network.Inhabitants(prefix)
}

// openNetwork opens the slots.
func (d *daemon) openNetwork(ctx context.Context) (network.Pool, error) {
	prefix, err := d.slotPrefix()
	if err != nil {
		return nil, err
	}
	pool, err := netip.ParsePrefix(d.cfg.NATPool)
	if err != nil {
		return nil, fmt.Errorf("nat_pool: %w", err)
	}
	var servers []netip.Addr
	for _, s := range d.cfg.Nameservers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("nameservers: %w", err)
		}
		servers = append(servers, a)
	}
	named, err := d.cfg.Services()
	if err != nil {
		return nil, err
	}
	var services []network.Service
	for port, target := range named {
		services = append(services, network.Service{Port: port, Target: target})
	}
	return network.Open(ctx, network.Options{
		Prefix:   prefix,
		Ahead:    d.cfg.Slots,
		GuestMAC: guest.MAC, HostMAC: guest.HostMAC,
		Guest: guest.Address, Gateway: guest.Gateway, PrefixLen: guest.PrefixLen,
		NATPool: pool, Nameservers: servers, Services: services, Logger: d.log,
	})
}

// vmmName is what people call a VMM: "qemu 7.2.22 tcg".
func vmmName(i vmm.Info) string {
	return strings.Join([]string{i.Name, i.Version, i.Accel}, " ")
}

// availableMiB is how much memory the host can give without swapping; 0 when
// it does not say.
func availableMiB() int {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kib int
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			return kib >> 10
		}
	}
	return 0
}

// openImages opens the image store.
func (d *daemon) openImages(_ context.Context, dir string) (image.Fetcher, error) {
	s, err := image.Open(dir, image.Options{Logger: d.log})
	if err != nil {
		return nil, err
	}
	d.images = s
	return s, nil
}
