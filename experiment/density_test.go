package experiment

import (
	"os"
	"strings"
	"testing"
)

// Ten clones that share 50 MiB and have 30 for themselves take 35 each; each further one takes 30.
func TestFurtherClones(t *testing.T) {
	var all []Sample
	add := func(n int, mib int64) {
		for range n {
			all = append(all, Sample{Point: Point{Variant: "mmap", N: n}, Clone: &Clone{PSS: mib<<20 - 1<<19, Tables: 1 << 19}})
		}
	}
	add(1, 80)
	add(10, 35)
	rows := showDensity(all).Tables[0]
	for i, want := range []string{"–", "30.0"} {
		found := false
		for _, cell := range rows.Rows[i] {
			found = found || cell == want
		}
		if !found {
			t.Errorf("row %d is %v, of %v; want %s in it", i, rows.Rows[i], rows.Head, want)
		}
	}
}

func TestMemoryOfProcess(t *testing.T) {
	if n, err := pageTables(os.Getpid()); err != nil || n < 4096 || n > 1<<30 {
		t.Errorf("the page tables of this process are %d bytes, %v", n, err)
	}
	if n, err := available(); err != nil || n < 1<<20 {
		t.Errorf("%d bytes are available, %v", n, err)
	}
	if _, err := kibOf("/proc/self/status", "VmAbsent"); err == nil || !strings.Contains(err.Error(), "VmAbsent") {
		t.Errorf("a field that is not there: %v", err)
	}
}
