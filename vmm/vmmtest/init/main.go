// Command init is PID 1 of the conformance suite's guest. It counts on the
// serial console, and with every count makes sure that its memory is intact,
// so that a wrong or missing page cannot go unnoticed. The word vmmtest=… of
// the kernel's command line makes it do something else after the third count.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const patternPages = 2048 // 8 MiB

func main() {
	signal.Ignore()
	for _, m := range [][3]string{{"proc", "/proc", "proc"}, {"sys", "/sys", "sysfs"}, {"dev", "/dev", "devtmpfs"}} {
		_ = os.MkdirAll(m[1], 0o755)
		_ = unix.Mount(m[0], m[1], m[2], 0, "")
	}
	console, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	loadModules(console)
	showDisk(console)
	var count atomic.Int64
	if err := serve(&count); err != nil {
		fmt.Fprintf(console, "network: %v\n", err)
	}
	what := mode()
	pattern := makePattern()
	for {
		n := count.Add(1)
		state := "ok"
		if err := checkPattern(pattern, n); err != nil {
			state = err.Error()
		}
		if what == "random" {
			uuid, _ := os.ReadFile("/proc/sys/kernel/random/uuid")
			fmt.Fprintf(console, "random %s", uuid)
		}
		fmt.Fprintf(console, "tick %d %s\n", n, state)
		if n == 3 {
			act(console, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// loadModules loads what the initramfs lists, in its order.
func loadModules(console *os.File) {
	list, err := os.ReadFile("/modules.order")
	if err != nil {
		fmt.Fprintf(console, "modules: %v\n", err)
	}
	for name := range strings.Lines(string(list)) {
		f, err := os.Open(strings.TrimSpace(name))
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			f.Close()
		}
		if err != nil {
			fmt.Fprintf(console, "module %s: %v\n", name, err)
		}
	}
}

// showDisk prints the first bytes of the root disk, and whether it can be written.
func showDisk(console *os.File) {
	f, err := os.Open("/dev/vda")
	if err != nil {
		fmt.Fprintf(console, "disk none\n")
		return
	}
	defer f.Close()
	b := make([]byte, 16)
	_, err = f.Read(b)
	access := "read-only"
	if w, err := os.OpenFile("/dev/vda", os.O_RDWR|os.O_SYNC, 0); err == nil {
		if _, err := w.Write([]byte("overwritten")); err == nil {
			access = "writable"
		}
		w.Close()
	}
	fmt.Fprintf(console, "disk %q %s %v\n", bytes.TrimRight(b, "\x00"), access, err)
}

// serve answers connections to port 10 with the count. Without a network it
// does nothing.
func serve(count *atomic.Int64) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil
	}
	addr, err := netlink.ParseAddr("172.31.254.2/30")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":10")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "tick %d\n", count.Load())
			c.Close()
		}
	}()
	return nil
}

func mode() string {
	cmdline, _ := os.ReadFile("/proc/cmdline")
	for _, w := range strings.Fields(string(cmdline)) {
		if v, ok := strings.CutPrefix(w, "vmmtest="); ok {
			return v
		}
	}
	return ""
}

func act(console *os.File, what string) {
	switch what {
	case "exit":
		os.Exit(1) // PID 1: the kernel panics
	case "poweroff":
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	case "flood":
		line := strings.Repeat("flood ", 1000) + "\n"
		for {
			_, _ = console.WriteString(line)
		}
	}
}

// makePattern fills pages each with its own number.
func makePattern() []byte {
	b := make([]byte, patternPages*4096)
	for p := range patternPages {
		for i := 0; i < 4096; i += 8 {
			binary.LittleEndian.PutUint64(b[p*4096+i:], uint64(p)<<16|uint64(i))
		}
	}
	return b
}

// checkPattern looks at a part of every page, a different one with each count.
func checkPattern(b []byte, n int64) error {
	i := int(n*8) % 4096
	for p := range patternPages {
		if got, want := binary.LittleEndian.Uint64(b[p*4096+i:]), uint64(p)<<16|uint64(i); got != want {
			return fmt.Errorf("BAD page %d offset %d: %#x instead of %#x", p, i, got, want)
		}
	}
	return nil
}
