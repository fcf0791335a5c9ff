package functions

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestBuildTwice builds each function's image twice: the second time nothing is
// made, and what was made becomes a root disk.
func TestBuildTwice(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			if name != "hello" {
				testenv.Need(t, "root", "mmdebstrap")
			}
			dir := t.TempDir()
			var steps []string
			first, err := Build(t.Context(), dir, name, func(s string) { steps = append(steps, s) })
			if err != nil {
				t.Fatal(err)
			}
			made := len(steps)
			second, err := Build(t.Context(), dir, name, func(s string) { steps = append(steps, s) })
			if err != nil || second != first {
				t.Fatalf("the second time: %v, %s and %s", err, first, second)
			}
			if name != "hello" && len(steps) != made {
				t.Errorf("the second time made %q", steps[made:])
			}
			if half, _ := filepath.Glob(filepath.Join(dir, ".*")); len(half) > 0 {
				t.Errorf("left behind: %v", half)
			}
			store, err := image.Open(filepath.Join(dir, "images"), image.Options{})
			if err != nil {
				t.Fatal(err)
			}
			img, err := store.Fetch(t.Context(), first, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(img.Config.Entrypoint) == 0 {
				t.Error("the image has no entrypoint")
			}
			if st, err := os.Stat(img.Disk); err != nil || st.Size() > 120<<20 {
				t.Errorf("the disk: %v, %d bytes", err, st.Size())
			}
		})
	}
}

func TestUnknownFunction(t *testing.T) {
	if _, err := Build(t.Context(), t.TempDir(), "absent", nil); err == nil || !strings.Contains(err.Error(), "hello-python") {
		t.Errorf("error %v: want one that names those that there are", err)
	}
}
