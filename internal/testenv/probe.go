package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/sys"
)

func probeRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	return nil
}

// probeUserfaultfd makes one that gets faults from kernel mode too, as a VMM's
// memory needs.
func probeUserfaultfd() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	return unix.Close(int(fd))
}

// ContainerdEnv names the environment variable with a directory of programs of a
// containerd that tests meet beside the host's: containerd and ctr, and for the
// CRI crictl and critest.
const ContainerdEnv = "SKEP_CONTAINERD"

func probeFUSE() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), probeRoot())
}

func probeContainerd() error {
	if dir := os.Getenv(ContainerdEnv); dir != "" {
		_, err := os.Stat(filepath.Join(dir, "containerd"))
		return err
	}
	return probeCommand("containerd")()
}

// probeSystemd wants one that takes requests: its socket for root is there as long as
// it runs.
func probeSystemd() error {
	c, err := net.Dial("unix", "/run/systemd/private")
	if err != nil {
		return fmt.Errorf("no systemd runs: %w", err)
	}
	return c.Close()
}

func probeCommand(name string) func() error {
	return func() error {
		if _, err := exec.LookPath(name); err == nil {
			return nil
		}
		// Debian keeps system binaries off the PATH of plain users.
		if _, err := exec.LookPath(filepath.Join("/usr/sbin", name)); err == nil {
			return nil
		}
		return fmt.Errorf("no %s on the PATH", name)
	}
}

func probeQEMU() error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("guests are amd64, this is %s", runtime.GOARCH)
	}
	return probeCommand("qemu-system-x86_64")()
}

func probeFirecracker() error {
	if path := os.Getenv("SKEP_FIRECRACKER"); path != "" {
		_, err := exec.LookPath(path)
		return err
	}
	return probeCommand("firecracker")()
}

// probeFunctions is there when it is asked for: it is no property of the host.
func probeFunctions() error {
	if !required("functions") {
		return errors.New("big images are built only when asked for")
	}
	return nil
}

// probeCgroup wants the controllers that limit machines.
func probeCgroup() error {
	root := cgroup.Root()
	if root == "" {
		return errors.New("no writable cgroup v2 mount")
	}
	have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range []string{"memory", "pids", "cpu"} {
		if !slices.Contains(strings.Fields(string(have)), c) {
			return fmt.Errorf("%s has no %s controller", root, c)
		}
	}
	return nil
}

func probeNetNS() error { return inNewNetNS(func() error { return nil }) }

func probeTap() error {
	return inNewNetNS(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening /dev/net/tun: %w", err)
		}
		defer unix.Close(fd)
		ifr, err := unix.NewIfreq("probe0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return fmt.Errorf("making a tap: %w", err)
		}
		return nil
	})
}

// probeNFT makes a table with a masquerading chain in a namespace of its own.
func probeNFT() error {
	return inNewNetNS(func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("opening nftables: %w", err)
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "probe"})
		c.AddChain(&nftables.Chain{Table: table, Name: "post", Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		if err := c.Flush(); err != nil {
			return fmt.Errorf("making an nftables table: %w", err)
		}
		return nil
	})
}

// inNewNetNS runs fn on a thread in a new network namespace. The thread is not
// used again, and the namespace ends with it.
func inNewNetNS(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("making a network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// probeKVM lets the same test decide as the VMMs do: /dev/kvm alone can be a
// software emulation that runs no stock kernel.
func probeKVM() error {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if !strings.Contains(string(info), " vmx") && !strings.Contains(string(info), " svm") {
		return errors.New("the CPU has neither vmx nor svm")
	}
	// As vmm.HardwareKVM, which tests below package vmm cannot import.
	_, err = sys.KVMSelfTest(context.Background(), 20_000_000, time.Second)
	return err
}
