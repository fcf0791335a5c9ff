package qemu

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/vmm"
)

func countRights(t *testing.T, oob []byte) int {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Error(err)
	}
	n := 0
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			t.Error(err)
		}
		for _, fd := range fds {
			n++
			_ = unix.Close(fd)
		}
	}
	return n
}

func TestParseVersion(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) …\n", "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"},
		{"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n", "10.0.2 (Debian 1:10.0.2+ds-2)"},
		{"QEMU emulator version 9.1.0\n", "9.1.0"},
		{"QEMU emulator version 99999999999999999999.1.0\n", ""},
		{"bochs 2.7", ""},
		{"", ""},
	} {
		v, err := parseVersion(test.text)
		if (err != nil) != (test.want == "") {
			t.Errorf("%q: %v", test.text, err)
		}
		if err == nil && v.String() != test.want {
			t.Errorf("%q: %s; want %s", test.text, v, test.want)
		}
	}
	if !(version{7, 2, 0, ""}).before(version{8, 1, 0, ""}) || (version{10, 0, 0, ""}).before(version{9, 2, 9, ""}) {
		t.Error("versions are ordered wrongly")
	}
}

// The device is there only where the guest's kernel has a driver for it.
func TestGenerationArgs(t *testing.T) {
	p := &probed{version: oldest, accel: "tcg"}
	for _, want := range []bool{false, true} {
		got := strings.Join(machineArgs(p, vmm.Config{VCPUs: 1, MemoryMiB: 64, Generation: want}, vmm.Host{ID: "a", Dir: "/d"}, ram{}), " ")
		if strings.Contains(got, "-device vmgenid,guid=auto") != want {
			t.Errorf("%v: %s", want, got)
		}
	}
}

// What differs between versions, users and ways of memory; the rest of the
// command line is tried by the conformance suite.
func TestMachineArgs(t *testing.T) {
	for _, test := range []struct {
		name       string
		version    version
		uid        int
		ram        ram
		want, lack []string
	}{
		{"oldest", version{7, 2, 0, ""}, 1000, ram{file: "/m,1", private: true},
			[]string{"-runas 1000:1000 -chroot /d/root", "mem-path=/m,,1,share=off ", "-sandbox " + sandbox + " "}, []string{"readonly=on,rom=off", "elevate"}},
		{"8.1", version{8, 1, 0, ""}, 1000, ram{file: "/m"}, []string{"-runas 1000:1000 -run-with chroot=/d/root", "mem-path=/m,share=on"}, []string{"-chroot"}},
		{"8.2", version{8, 2, 0, ""}, 1000, ram{file: "/m", private: true}, []string{"share=off,readonly=on,rom=off"}, nil},
		{"newest", version{10, 0, 0, ""}, 1000, ram{}, []string{"-run-with user=1000:1000,chroot=/d/root", "memory-backend-ram,id=ram,size=64M,share=off"}, []string{"-runas", "mem-path"}},
		{"as the caller", version{10, 0, 0, ""}, 0, ram{}, []string{"elevateprivileges=deny"}, []string{"-runas", "-run-with", "chroot"}},
	} {
		p := &probed{version: test.version, accel: "tcg", sandbox: true}
		c := vmm.Config{VCPUs: 1, MemoryMiB: 64, RootDisk: "/disk"}
		h := vmm.Host{ID: "a", Dir: "/d", UID: test.uid, GID: test.uid, MAC: guest.MAC}
		got := strings.Join(machineArgs(p, c, h, test.ram), " ") + " "
		for _, w := range test.want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: no %q in %s", test.name, w, got)
			}
		}
		for _, l := range append(test.lack, "virtio-net") {
			if strings.Contains(got, l) {
				t.Errorf("%s: %q in %s", test.name, l, got)
			}
		}
	}
}

func TestBootArgs(t *testing.T) {
	got := bootArgs(vmm.Config{Kernel: "/k", Cmdline: "quiet a=b"})
	if want := []string{"-kernel", "/k", "-append", "console=ttyS0 panic=-1 reboot=t quiet a=b"}; !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestHostAddress(t *testing.T) {
	for _, test := range []struct {
		text string
		want uint64 // 0 is an error
	}{
		{"Host virtual address for 0x0 (ram) is 0x7f0ab0000000\r\n", 0x7f0ab0000000},
		{"Host virtual address for 0x0 (pc.bios) is 0x7f0ab0000000\r\n", 0},
		{"No memory is mapped at address 0x0\r\n", 0},
		{"Host virtual address for 0x0 (ram) is 0x7f0ab000000000000000000\r\n", 0},
		{"", 0},
	} {
		answer, err := json.Marshal(test.text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := hostAddress(answer)
		if got != test.want || (err != nil) != (test.want == 0) {
			t.Errorf("%q: %#x, %v; want %#x", test.text, got, err, test.want)
		}
	}
	if _, err := hostAddress([]byte("{}")); err == nil {
		t.Error("an object was taken for text")
	}
}

func TestFindMapping(t *testing.T) {
	const maps = `55d0c0000000-55d0c0100000 r--p 00000000 fe:00 4242                       /usr/bin/qemu-system-x86_64
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
7f0010000000-7f0010001000 ---p 00000000 00:00 0
7f0020000000-7f0030000000 rw-s 00000000 fe:00 77 /memory
7f0040000000-7f0050000000 ---p 00000000 00:00 0 [guard]
`
	for _, test := range []struct {
		addr, size uint64
		ok         bool
	}{
		{0x7f0000000000, 0x10000000, true},
		{0x7f0000000000, 0x10001000, false}, // not just this size
		{0x7f0000001000, 0x0ffff000, false},
		{0x7f0020000000, 0x10000000, false}, // shared
		{0x7f0040000000, 0x10000000, false}, // without access
		{0x7f0060000000, 0x10000000, false}, // not there
	} {
		if err := findMapping(strings.NewReader(maps), test.addr, test.size); (err == nil) != test.ok {
			t.Errorf("%#x, %#x: %v", test.addr, test.size, err)
		}
	}
}

func TestCheck(t *testing.T) {
	good := vmm.Config{VCPUs: 1, MemoryMiB: 64}
	host := vmm.Host{ID: "a-1", UID: 7, GID: 7}
	if err := vmm.Check(good, host, maxVCPUs); err != nil {
		t.Errorf("a good machine: %v", err)
	}
	for name, change := range map[string]func(*vmm.Config, *vmm.Host){
		"vcpus": func(c *vmm.Config, _ *vmm.Host) { c.VCPUs = 256 },
		"mac":   func(_ *vmm.Config, h *vmm.Host) { h.Tap = "t" },
		"group": func(_ *vmm.Config, h *vmm.Host) { h.GID = 0 },
		"id":    func(_ *vmm.Config, h *vmm.Host) { h.ID = "ä" },
	} {
		c, h := good, host
		change(&c, &h)
		if err := vmm.Check(c, h, maxVCPUs); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
