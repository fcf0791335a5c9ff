package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Descriptors that the node's first process is handed.
const (
	readyFD = 3 // a pipe, to which it writes what is wrong, if anything, and closes it
	doorFD  = 4 // a listener of the host's, for clients of the API server
)

// programName is what lists of processes show for the node's own.
const programName = "skep-cluster"

// Init makes the node of a cluster out of the namespaces that this process is the
// first in, starts Node in it, and reaps what ends. It returns when Node has ended, or
// with what kept it from starting. The kernel ends all others of the namespaces then.
func (c *Cluster) Init() error {
	ready := os.NewFile(readyFD, "ready")
	node, err := c.furnish()
	if err != nil {
		fmt.Fprint(ready, err)
		return err
	}
	if err := ready.Close(); err != nil {
		return err
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for processes: %w", err)
		}
		if pid == node {
			return errors.New("the node's supervisor has ended")
		}
	}
}

// furnish makes the node, and starts its supervisor.
func (c *Cluster) furnish() (supervisor int, err error) {
	// As the host has it: the new namespace's own /proc is not mounted yet.
	pid, err := os.Readlink("/proc/self")
	if err != nil {
		return 0, err
	}
	if err := write(c.path(pidFile), []byte(pid+"\n")); err != nil {
		return 0, err
	}
	for _, step := range []func() error{c.enterCgroup, c.mounts, network} {
		if err := step(); err != nil {
			return 0, err
		}
	}
	if err := unix.Sethostname([]byte(nodeName)); err != nil {
		return 0, fmt.Errorf("setting the host name: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", "node", "--dir", c.dir)
	cmd.Args[0] = programName
	cmd.Env = append(os.Environ(), c.mark())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(doorFD, "door")}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil // Init waits for it
}

// enterCgroup has all of the node's processes in a cgroup beside those of its pods.
func (c *Cluster) enterCgroup() error {
	m, err := manager.New(&cgroups.Cgroup{Path: c.Cgroup() + "/node", Resources: &cgroups.Resources{SkipDevices: true}})
	if err != nil {
		return err
	}
	if err := m.Apply(os.Getpid()); err != nil {
		return fmt.Errorf("entering cgroup %s: %w", c.Cgroup(), err)
	}
	return nil
}

// mounts gives the node directories of its own in place of the host's.
func (c *Cluster) mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	// What is mounted over is reached by descriptors that were opened before.
	own, err := open(c.dir)
	if err != nil {
		return err
	}
	defer own.Close()
	groups, err := open("/sys/fs/cgroup")
	if err != nil {
		return err
	}
	defer groups.Close()
	for _, m := range []struct {
		what, to, kind, options string
		flags                   uintptr
	}{
		{"proc", "/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{at(groups), "/sys/fs/cgroup", "", "", unix.MS_BIND | unix.MS_REC},
		{c.path("kernels"), c.path(nodeVar, "lib/skep-containerd/kernels"), "", "", unix.MS_BIND},
		{"overlay", "/etc", "overlay", fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", c.path(nodeEtc), c.path(nodeEtc+".work")), 0},
		{"overlay", "/usr/local", "overlay", fmt.Sprintf("lowerdir=/usr/local,upperdir=%s,workdir=%s", c.path(nodeLocal), c.path(nodeLocal+".work")), 0},
		{"tmpfs", "/run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{c.path(nodeVar), "/var", "", "", unix.MS_BIND | unix.MS_REC},
		{at(own), c.dir, "", "", unix.MS_BIND | unix.MS_REC},
	} {
		if c.bare() && m.what == c.path("kernels") {
			continue // whoever installs skep brings one
		}
		if err := os.MkdirAll(m.to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.what, m.to, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", m.what, m.to, err)
		}
	}
	if err := c.tunables(); err != nil {
		return err
	}
	// As on an ordinary node: what is mounted there shows in containers that want it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("making mounts shared: %w", err)
	}
	return nil
}

func open(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func at(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// tunables has the kubelet find the kernel's parameters as it wants them, behind which
// those of the host stay as they are: they are not the node's alone.
func (c *Cluster) tunables() error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := c.path("node/sysctl", strings.ReplaceAll(name, "/", "."))
		if err := write(file, []byte(value+"\n")); err != nil {
			return err
		}
		if err := unix.Mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting over /proc/sys/%s: %w", name, err)
		}
	}
	return nil
}

// network gives the node an address, and has it forward. It has no way out.
func network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "node0"
	node := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(node); err != nil {
		return fmt.Errorf("making node0: %w", err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeIP).To4(), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrAdd(node, addr); err != nil {
		return fmt.Errorf("giving node0 its address: %w", err)
	}
	if err := netlink.LinkSetUp(node); err != nil {
		return fmt.Errorf("setting node0 up: %w", err)
	}
	// What listens behind a service's address is found once a packet has a route.
	_, services, err := net.ParseCIDR(serviceCIDR)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: node.Attrs().Index, Dst: services, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("routing services' addresses: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

// Node runs the node's programs until ctx ends. It is called in what Init has made.
func (c *Cluster) Node(ctx context.Context) error {
	door := os.NewFile(readyFD, "door") // its only descriptor
	l, err := net.FileListener(door)
	if err != nil {
		return fmt.Errorf("the listener for clients of the API server: %w", err)
	}
	if err := door.Close(); err != nil {
		return err
	}
	if err := c.readPort(); err != nil {
		return err
	}
	pass := &passage{to: fmt.Sprintf("127.0.0.1:%d", c.port)}
	go pass.serve(l)
	defer l.Close()
	return c.supervise(ctx, c.services())
}
