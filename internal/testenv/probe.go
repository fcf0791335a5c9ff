package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// KernelsEnv names the environment variable with the directory of guest
// kernels that tests boot.
const KernelsEnv = "SKEP_TEST_KERNELS"

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

// probeKVM reads the CPU's flags: /dev/kvm alone can be a software emulation
// that runs no stock kernel.
func probeKVM() error {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(info)) {
		name, flags, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, f := range strings.Fields(flags) {
			if f == "vmx" || f == "svm" {
				return openKVM()
			}
		}
		break
	}
	return errors.New("the CPU has neither vmx nor svm")
}

func openKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func probeKernel() error {
	dir, err := kernelsDir()
	if err != nil {
		return err
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(found) > 0 {
		return nil
	}
	if err := probeCommand("apt-get")(); err != nil {
		return fmt.Errorf("no guest kernel in %s, and none to be had: %w", dir, err)
	}
	return nil // KernelStore fetches it
}

func kernelsDir() (string, error) {
	if dir := os.Getenv(KernelsEnv); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory: %w", err)
	}
	return filepath.Join(cache, "skep", "kernels"), nil
}
