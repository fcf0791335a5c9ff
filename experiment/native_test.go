package experiment

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/workingset"
)

// At native speed a trace has the same pages in the same order, and its times are
// those of the function's own work, spread as they were.
func TestAtNativeSpeed(t *testing.T) {
	recorded := &workingset.Trace{Of: workingset.Of{SnapshotID: "s", MemorySize: 1 << 20}}
	for i, after := range []time.Duration{0, 10, 1030, 1050, 4070} { // gaps of 0, 0, 1000, 0 and 3000 µs but for faults
		recorded.Touches = append(recorded.Touches, workingset.Touch{Page: uint32(9 - i), Write: i == 2, After: after * time.Microsecond})
	}
	for _, c := range []struct {
		fault time.Duration
		want  []time.Duration
	}{
		{0, []time.Duration{0, 0, 100, 100, 400}},
		{20 * time.Microsecond, []time.Duration{0, 20, 140, 160, 480}},
	} {
		got := atNativeSpeed(recorded, 400*time.Microsecond, c.fault)
		for i, touch := range got.Touches {
			if want := c.want[i] * time.Microsecond; touch.Page != uint32(9-i) || touch.Write != (i == 2) || (touch.After-want).Abs() > time.Microsecond {
				t.Errorf("with %v for a fault, touch %d is %+v: want it after %v", c.fault, i, touch, want)
			}
		}
	}
	if recorded.Touches[4].After != 4070*time.Microsecond {
		t.Error("the recording was changed")
	}
	// Where the recording says nothing, the work is spread evenly.
	even := &workingset.Trace{Touches: make([]workingset.Touch, 4)}
	if got := atNativeSpeed(even, 400, 0); got.Touches[0].After != 100 || got.Touches[3].After != 400 {
		t.Errorf("%+v", got.Touches)
	}
}

func TestNativeVariants(t *testing.T) {
	for variant, want := range map[string][2]string{
		"mmap": {"mmap", nativePlain}, "mmap-huge": {"mmap-huge", nativePlain}, "stream, ready process": {"stream", nativeReady},
		"reap, slow disk": {"reap", nativeSlow}, "mmap, other input": {"mmap", nativeOther}, "stream, memory alone": {"stream", nativeAlone},
	} {
		if policy, kind := nativeVariant(variant); policy != want[0] || kind != want[1] {
			t.Errorf("%s: %q, %q", variant, policy, kind)
		}
	}
}

// A function's server runs on this machine in the root of its image, answers each
// input, and leaves no process, mount or loop device.
func TestOwnWork(t *testing.T) {
	testenv.NoLeaks(t)
	testenv.Need(t, "root")
	testenv.NeedThat(t, "loop devices", loopDevices(), "modprobe loop, and on a container host pass /dev/loop-control and /dev/loop*")
	dir := testenv.Dir(t)
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := testenv.Build(filepath.Join(root, "hello"), "functions/hello"); err != nil {
		t.Fatal(err)
	}
	store, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := store.FetchTree(t.Context(), "hello", root)
	if err != nil {
		t.Fatal(err)
	}
	img.Config.Entrypoint = []string{"/hello"}
	work, err := ownWork(t.Context(), img, "")
	if err != nil {
		t.Fatal(err)
	}
	if work[0] != 0 || slices.Contains(work[1:], 0) {
		t.Errorf("it took %v", work)
	}
	for _, file := range []string{"/proc/self/mountinfo", "/proc/mounts"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("skep-bare-")) {
			t.Errorf("%s has a mount of it:\n%s", file, b)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "skep-bare-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// What cannot start says why.
	img.Config.Entrypoint = []string{"/absent"}
	if _, err := ownWork(t.Context(), img, ""); err == nil || !strings.Contains(err.Error(), "/absent") {
		t.Errorf("a server that is not there: %v", err)
	}
}
