package experiment

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory/replay"
)

// Each floor that this machine can measure is there, and took some time.
func TestStartFloors(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(state, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{floorExec, floorState, floorUnix, floorTCP, floorHTTP}
	vmm, err := exec.LookPath("qemu-system-x86_64")
	if err == nil {
		want = append(want, floorProgram, floorVMM)
	}
	floors, err := startFloors(t.Context(), vmm, state)
	if err != nil {
		if strings.Contains(err.Error(), "O_DIRECT") {
			t.Skipf("%v: set TMPDIR to a directory on a disk", err)
		}
		t.Fatal(err)
	}
	var got []string
	for _, f := range floors {
		if got = append(got, f.Name); f.Total <= 0 {
			t.Errorf("%s took %v", f.Name, f.Total)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%q; want %q", got, want)
	}
	if _, err := startFloors(t.Context(), "", state+"absent"); err == nil {
		t.Error("a file that is not there was read")
	}
}

// A row's ratio is that of the medians; the sum counts each part once.
func TestLimitRows(t *testing.T) {
	var all []Sample
	for i := range 3 {
		ms := time.Duration(i+1) * time.Millisecond
		all = append(all, Sample{
			Record: &api.Invocation{Phases: api.Phases{Queue: ms, Spawn: 40 * ms, Load: 5 * ms, Resume: ms, Process: time.Second}},
			Floors: []replay.Floor{{Name: floorExec, Total: ms / 100}, {Name: floorProgram, Total: 8 * ms}, {Name: floorVMM, Total: 10 * ms}, {Name: floorState, Total: ms}, {Name: floorUnix, Total: ms / 1000}},
		})
	}
	rows := untilRunning(all, false)
	last := rows[len(rows)-1].row()
	if want := []string{"until the vCPUs run", "94.0 [47.0–141]", "22.0 [11.0–33.0]", "4.27×", "the sum of the last of each"}; !slices.Equal(last, want) {
		t.Errorf("%q; want %q", last, want)
	}
	if got := fine([]float64{0.0123}); got != "0.0123" {
		t.Errorf("%q", got)
	}
	if rows := untilRunning(nil, true); rows != nil {
		t.Errorf("rows of nothing: %v", rows)
	}
}
