package agent

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// Where things are in the agent's own root, which is the initramfs.
const (
	lower     = "/lower" // the root disk, read-only
	scratch   = "/rw"    // tmpfs: what the function writes
	root      = "/root"  // overlay of both: the function's root
	groupRoot = "/sys/fs/cgroup"
	group     = groupRoot + "/function"
	// ModuleList names the modules in the initramfs, a path a line, in load order.
	ModuleList = "/modules.order"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mounting %s at %s: %w", m.fstype, m.target, err)
	}
	return nil
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// setUp makes the machine ready for a function: file systems, modules, network.
func setUp() error {
	for _, m := range []mount{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, ""},
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"cgroup2", groupRoot, "cgroup2", quiet, ""},
	} {
		if err := m.do(); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	if err := loadModules(); err != nil {
		return err
	}
	return setUpNetwork()
}

func loadModules() error {
	f, err := os.Open(ModuleList)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m, err := os.Open(lines.Text())
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(m.Fd()), "", 0)
		m.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("loading module %s: %w", lines.Text(), err)
		}
	}
	return lines.Err()
}

// setUpNetwork gives the machine the one address that every guest has. The
// gateway's MAC is fixed too, so that no clone starts with a question for it.
func setUpNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting the loopback device up: %w", err)
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("finding the network device: %w", err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: guest.Address, Mask: net.CIDRMask(guest.PrefixLen, 32)}}
	if err := netlink.AddrAdd(eth, addr); err != nil {
		return fmt.Errorf("setting the address: %w", err)
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return fmt.Errorf("setting the network device up: %w", err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: guest.Gateway}); err != nil {
		return fmt.Errorf("setting the default route: %w", err)
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: eth.Attrs().Index, Family: unix.AF_INET,
		State: netlink.NUD_PERMANENT, IP: guest.Gateway, HardwareAddr: guest.HostMAC})
}

// makeRoot lays the function's root: the read-only disk under a tmpfs.
func makeRoot(s guest.Start) error {
	for _, m := range []mount{
		{"/dev/vda", lower, "ext4", unix.MS_RDONLY, "noload"},
		{"tmpfs", scratch, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", max(1, s.DiskMiB))},
	} {
		if err := m.do(); err != nil {
			return err
		}
	}
	for _, d := range []string{scratch + "/upper", scratch + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	overlay := mount{"overlay", root, "overlay", 0, "lowerdir=" + lower + ",upperdir=" + scratch + "/upper,workdir=" + scratch + "/work"}
	if err := overlay.do(); err != nil {
		return err
	}
	if st, err := os.Stat(lower); err == nil {
		os.Chmod(root, st.Mode().Perm())
	}
	for _, m := range []mount{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet | unix.MS_RDONLY, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, ""},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, fmt.Sprintf("size=%dm", max(1, s.DiskMiB))},
	} {
		m.target = filepath.Join(root, m.target)
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(root+"/tmp", 0o1777); err != nil {
		return err
	}
	os.Chmod(root+"/tmp", os.ModeSticky|0o777)
	return writeEtc(s)
}

// writeEtc writes what a container's runtime would put into /etc. It replaces
// files and never follows the image's links.
func writeEtc(s guest.Start) error {
	if err := os.MkdirAll(root+"/etc", 0o755); err != nil {
		return err
	}
	resolv := ""
	for _, n := range s.Nameservers {
		resolv += "nameserver " + n + "\n"
	}
	for name, content := range map[string]string{
		"hosts":       "127.0.0.1\tlocalhost\n" + guest.Address.String() + "\t" + s.Instance + "\n",
		"hostname":    s.Instance + "\n",
		"resolv.conf": resolv,
	} {
		path := filepath.Join(root, "etc", name)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// reserveMiB is guest memory that the function may not have: for the kernel's
// own needs and the agent, so that a function that takes all can still be told.
const reserveMiB = 24

// maxTasks bounds the function's processes and threads.
const maxTasks = 4096

// makeGroup makes the function's cgroup and opens its directory.
func makeGroup() (*os.File, error) {
	os.WriteFile(groupRoot+"/cgroup.subtree_control", []byte("+memory +pids"), 0)
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, fmt.Errorf("making the function's cgroup: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, err
	}
	limit := int64(info.Totalram)*int64(info.Unit) - reserveMiB<<20
	for name, v := range map[string]int64{"memory.max": limit, "pids.max": maxTasks, "memory.oom.group": 1} {
		if err := os.WriteFile(filepath.Join(group, name), fmt.Append(nil, v), 0); err != nil {
			fmt.Fprintf(os.Stderr, "skep-agent: limiting the function (%s): %v\n", name, err)
		}
	}
	return os.Open(group)
}

func killGroup() { os.WriteFile(group+"/cgroup.kill", []byte("1"), 0) }

// PowerOff ends the machine. Resetting is what every VMM notices.
func PowerOff() {
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
