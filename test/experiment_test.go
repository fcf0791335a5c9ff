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

// TestExperimentRemote measures starts from an object store, over links, on nodes that have nothing else, for real.
func TestExperimentRemote(t *testing.T) {
	testenv.Need(t, "root", "uffd", "tap", "qemu", "kernel")
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	if err := testenv.Build(filepath.Join(bin, "skep-s3"), "functions/s3"); err != nil {
		t.Fatal(err)
	}
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	cmd := exec.Command(filepath.Join(bin, "skep"), "experiment", "remote", "--quick", "--functions", "hello", "--policies", "stream", "--runs", "1", "--out", out)
	cmd.Env = append(os.Environ(), "SKEP_DATA_DIR="+dir, "SKEP_KERNEL_DIR="+testenv.KernelStore(t))
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	d, err := experiment.Load(out)
	if err != nil || len(d.Samples) != 1+3+2+3*4 {
		t.Fatalf("%v: %d samples", err, len(d.Samples))
	}
	fetched := map[string]int64{}
	for _, s := range d.Samples {
		r := s.Remote
		switch {
		case r == nil || r.Guest == 0:
			t.Errorf("%s: %+v", s.Variant, r)
		case s.Variant == "stored":
			if r.Pushed == nil || r.Pushed.Written <= 0 || r.Pushed.Written >= r.Pushed.Content {
				t.Errorf("%+v", r.Pushed)
			}
		case s.Variant == "stream, local":
			if r.Fetched != 0 || r.Requests != 0 || s.Record.Memory.Remote != nil || s.Cache.Files < 3 || s.Cache.Left > 0 {
				t.Errorf("a local start: %+v, %+v", r, s.Cache)
			}
		default:
			if r.Fetched <= 0 || r.Requests <= 0 || r.Total < r.Fetched || r.Whole <= 0 || r.Link == nil || r.Link.Request < r.Link.RTT || s.Record.Memory.Remote == nil {
				t.Errorf("%s: %+v", s.Variant, r)
			}
			fetched[s.Variant] = r.Total
		}
	}
	if a, b := fetched["stream, 1 ms"], fetched["stream, 1 ms, disk here"]; a <= b {
		t.Errorf("%d bytes came with the root disk, %d without", a, b)
	}
	for _, file := range []string{"figures/remote.png", "tables/remote.csv", "tables/remote-nodes.csv", "tables/remote-stored.csv", "tables/remote-links.csv"} {
		if st, err := os.Stat(filepath.Join(out, file)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", file, err)
		}
	}
	for _, name := range []string{"nodes", "store-*"} {
		if left, _ := filepath.Glob(filepath.Join(dir, name)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}
