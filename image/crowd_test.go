package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// Environment of a crowd's members.
const (
	crowdDir    = "SKEP_TEST_IMAGE_STORE"
	crowdRefs   = "SKEP_TEST_IMAGE_REFS" // with spaces between
	crowdRemove = "SKEP_TEST_IMAGE_REMOVE"
)

// TestCrowdMakesOnce has processes fetch the same images, of which those that
// come to be making one are killed at it: the others take over, and each image is
// made to its end once.
func TestCrowdMakesOnce(t *testing.T) { crowd(t, false) }

// TestCrowdRemoves has them remove images, too: none goes while a process uses it,
// and what is there is whole.
func TestCrowdRemoves(t *testing.T) { crowd(t, true) }

func crowd(t *testing.T, removing bool) {
	if m, ok := testenv.CrowdMember(); ok {
		crowdMember(t, m, removing)
		return
	}
	dir := filepath.Join(t.TempDir(), "images")
	var refs []string
	for i := range 8 {
		ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", strings.Repeat(fmt.Sprint(i), 4<<20)))))
		refs = append(refs, ref)
	}
	said := testenv.Crowd{Size: 6, Kills: 18, Lines: 2, Within: 30 * time.Millisecond,
		Env: []string{crowdDir + "=" + dir, crowdRefs + "=" + strings.Join(refs, " ")}}.Run(t)
	count := map[string]int{}
	for _, lines := range said {
		for _, line := range lines {
			count[line]++
		}
	}
	t.Logf("%v", count)
	for line, n := range count {
		if strings.HasPrefix(line, "made ") && n > 1 && !removing {
			t.Errorf("%s %d times", line, n)
		}
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	digests, err := s.List()
	if err != nil || !removing && len(digests) != len(refs) {
		t.Errorf("there are %d images, %v: want %d", len(digests), err, len(refs))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != len(digests) {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, digest := range digests {
		img, err := s.Get(digest)
		if err != nil {
			t.Errorf("in the end: %v", err)
			continue
		}
		whole(t, img)
		if left, err := os.ReadDir(filepath.Dir(img.Disk)); err != nil || len(left) != 2 {
			t.Errorf("left in an image: %v, %v", left, err)
		}
		if err := s.Remove(digest); err != nil {
			t.Errorf("the dead still use it: %v", err)
		}
	}
}

// crowdMember fetches images, looks at them while it uses them, and removes some.
func crowdMember(t *testing.T, m *testenv.Member, removing bool) {
	testenv.NoLeaks(t)
	refs := strings.Fields(os.Getenv(crowdRefs))
	for range 5 {
		s, err := Open(os.Getenv(crowdDir), Options{})
		if err != nil {
			t.Fatal(err)
		}
		img := fetch(t, m, s, refs[m.IntN(len(refs))])
		for range 1 + m.IntN(3) {
			other := fetch(t, m, s, refs[m.IntN(len(refs))])
			if removing {
				remove(t, m, s, other.Digest, img.Digest)
			}
			whole(t, img) // whatever others remove
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	m.Say("survived")
}

// fetch fetches an image, tells whether it made it, and looks whether it is whole.
func fetch(t *testing.T, m *testenv.Member, s *Store, ref string) Image {
	var making, made bool
	img, err := s.Fetch(t.Context(), ref, func(stage string, done, total int64) {
		if stage == "build" && !making {
			making = true
			m.Say("making")
		}
		made = stage == "build" && done == total
	})
	if err != nil {
		t.Fatal(err)
	}
	if made {
		m.Say("made %s", img.Digest[:15])
	}
	whole(t, img)
	return img
}

// remove removes an image, if it is not the one that the member uses.
func remove(t *testing.T, m *testenv.Member, s *Store, digest, used string) {
	if digest == used {
		return
	}
	switch err := s.Remove(digest); {
	case err == nil:
		m.Say("removed")
	case errors.Is(err, ErrInUse):
		m.Say("refused: in use")
	case !errors.Is(err, ErrNotFound):
		t.Error(err)
	}
}

// whole checks every byte of a disk.
func whole(t *testing.T, img Image) {
	t.Helper()
	sum, err := fileDigest(t.Context(), img.Disk)
	if err != nil || sum != img.DiskDigest {
		t.Errorf("%s has digest %s, want %s (%v)", img.Disk, sum, img.DiskDigest, err)
	}
}
