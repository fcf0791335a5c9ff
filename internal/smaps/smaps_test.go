package smaps

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	all, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	own, guest := Beside(all)
	if own < 1<<20 || own > 1<<30 || guest < 0 {
		t.Errorf("this process has %d bytes beside %d of a guest", own, guest)
	}
	if _, err := Of(-1); err == nil {
		t.Error("it knows of a process that cannot be")
	}
}

// Memory that was split is found whole; what only lies near is not.
func TestSpanning(t *testing.T) {
	all, err := parse(strings.NewReader(`1000-3000 rw-p 00000000 00:00 0
Size: 8 kB
Pss: 1 kB
4000-6000 rw-p 00000000 00:00 0
Size: 8 kB
Pss: 2 kB
6000-9000 rw-p 00000000 00:00 0
Size: 12 kB
Pss: 3 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Size: 4 kB
`))
	if err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int64]string{0x5000: "2048 3072 ", 0x3000: "3072 ", 0x4000: "", 0x8000: ""} {
		got := ""
		for _, m := range Spanning(all, size) {
			got += fmt.Sprint(m.PSS, " ")
		}
		if got != want {
			t.Errorf("%#x bytes: %q, want %q", size, got, want)
		}
	}
}

// The guest's memory is the largest mapping, where one is large enough.
func TestBeside(t *testing.T) {
	const guest = `7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
KernelPageSize:        4 kB
Rss:               60000 kB
Pss:               30000 kB
Pss_Dirty:         30000 kB
VmFlags: rd wr mr mw me ac
`
	const rest = `55d000000000-55d000100000 r-xp 00000000 08:01 77 /usr/bin/vmm: it has a colon
Size:               1024 kB
Rss:                 512 kB
Pss:                 100 kB
55d000100000-55d000200000 r--p 00000000 08:01 77 /usr/bin/vmm
Size:               1024 kB
Rss:                   8 kB
Pss:                   8 kB
`
	for _, tt := range []struct {
		text       string
		own, guest int64
	}{{rest, 108 << 10, 0}, {rest + guest, 108 << 10, 30000 << 10}, {"", 0, 0}} {
		all, err := parse(strings.NewReader(tt.text))
		if own, of := Beside(all); err != nil || own != tt.own || of != tt.guest {
			t.Errorf("%d bytes beside %d, %v: want %d beside %d of\n%s", own, of, err, tt.own, tt.guest, tt.text)
		}
	}
	for _, broken := range []string{"Rss: 1 kB\n", "Size: x kB\n"} {
		if all, err := parse(strings.NewReader(broken)); err == nil {
			t.Errorf("%q is taken for %v", broken, all)
		}
	}
}
