package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestExperiment measures two figures of a function for real, interrupts the
// run, goes on, and compares the results with themselves.
func TestExperiment(t *testing.T) {
	testenv.Need(t, "root", "uffd", "tap", "qemu", "kernel")
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	skep := func(args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, "skep"), args...)
		cmd.Env = append(os.Environ(), "SKEP_DATA_DIR="+dir, "SKEP_KERNEL_DIR="+testenv.KernelStore(t))
		return cmd
	}
	measure := func() *exec.Cmd {
		return skep("experiment", "policies", "--functions", "hello", "--policies", "mmap,reap", "--runs", "2", "--out", out)
	}
	first := measure()
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	samples := filepath.Join(out, experiment.SamplesFile)
	eventually(t, "a sample is stored", 2*time.Minute, func() error {
		b, err := os.ReadFile(samples)
		if err == nil && strings.Count(string(b), "\n") < 2 {
			err = os.ErrNotExist
		}
		return err
	})
	if err := first.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err == nil {
		t.Log("it had ended before it was interrupted")
	}
	if b, err := measure().CombinedOutput(); err != nil {
		t.Fatalf("going on: %v\n%s", err, b)
	}
	d, err := experiment.Load(out)
	if err != nil || len(d.Samples) != 4 || len(d.Sessions) != 2 {
		t.Fatalf("%v: %d samples, %d sessions", err, len(d.Samples), len(d.Sessions))
	}
	for _, s := range d.Samples {
		if s.Record == nil || s.Record.Memory == nil || s.Record.Memory.Policy != s.Variant || s.Cache == nil || s.Cache.Left > 0 || s.Total() <= 0 {
			t.Errorf("%+v, %+v, %+v", s, s.Record, s.Cache)
		}
	}
	for _, file := range []string{"report.html", experiment.DatabaseFile, "figures/fig8-policies.png", "tables/fig8-policies.csv"} {
		if st, err := os.Stat(filepath.Join(out, file)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
	if b, err := skep("experiment", "compare", out, out).CombinedOutput(); err != nil || !strings.Contains(string(b), "too few samples") {
		t.Errorf("comparing: %v\n%s", err, b)
	}
}
