package snapshot

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// TestCrowd has processes stage, publish, use and remove snapshots of one store,
// some of which are killed in the middle of it. No snapshot goes while one uses it;
// in the end those are there, whole, that were published and not removed, and
// nothing else.
func TestCrowd(t *testing.T) {
	const dirEnv = "SKEP_TEST_SNAPSHOTS"
	if m, ok := testenv.CrowdMember(); ok {
		testenv.NoLeaks(t)
		s := open(t, os.Getenv(dirEnv))
		for range 12 {
			switch m.IntN(5) {
			case 0, 1:
				crowdUse(t, m, s)
			case 2, 3:
				crowdPublish(t, m, s)
			case 4:
				crowdRemove(t, m, s)
			}
		}
		m.Say("survived -")
		return
	}
	dir := t.TempDir()
	first, _ := publish(t, open(t, dir), nil)
	said := testenv.Crowd{Size: 6, Kills: 24, Lines: 8, Within: 20 * time.Millisecond, Env: []string{dirEnv + "=" + dir}}.Run(t)
	ids := map[string][]string{"published": {first}}
	for _, lines := range said {
		for _, line := range lines {
			what, id, _ := strings.Cut(line, " ")
			ids[what] = append(ids[what], id)
		}
	}
	for what, list := range ids {
		t.Logf("%s: %d", what, len(list))
	}
	s := open(t, dir)
	there := idsOf(t, s)
	for _, id := range ids["published"] {
		if !slices.Contains(there, id) && !slices.Contains(ids["removing"], id) {
			t.Errorf("%s was published, and is gone", id)
		}
	}
	for _, id := range ids["removed"] {
		if slices.Contains(there, id) {
			t.Errorf("%s was removed, and is there", id)
		}
	}
	for _, id := range there {
		if !slices.Contains(ids["publishing"], id) && id != first {
			t.Errorf("%s is there, and nobody published it", id)
		}
		if err := s.Verify(t.Context(), id); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(filepath.Join(dir, id))
		if err != nil || len(left) != 5 { // manifest, parts, stamps, trace
			t.Errorf("in %s are %v, %v", id, left, err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, id, traceName)); err != nil || len(left) != 0 {
			t.Errorf("in the trace of %s are %v, %v", id, left, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != len(there) {
		t.Errorf("there are %v, %v: want %v", left, err, there)
	}
	for _, id := range there {
		must(t, s.Remove(id))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("the dead still use %v, %v", left, err)
	}
}

func crowdPublish(t *testing.T, m *testenv.Member, s *Store) {
	g, err := s.Stage("hello")
	must(t, err)
	defer g.Abort()
	must(t, os.WriteFile(g.State(), []byte("state"), 0o600))
	must(t, os.WriteFile(g.Memory(), memoryOf(g.ID), 0o600))
	if m.IntN(4) == 0 {
		return
	}
	m.Say("publishing %s", g.ID)
	_, err = g.Publish(t.Context(), example())
	must(t, err)
	m.Say("published %s", g.ID)
}

// memoryOf is the memory of the snapshot with that id; most of it is zero.
func memoryOf(id string) []byte {
	b := make([]byte, testMiB<<20)
	random := rand.NewChaCha8([32]byte([]byte(id + strings.Repeat(" ", 32))[:32]))
	copy(b, id)
	_, _ = random.Read(b[len(id) : 64<<10])
	return b
}

func crowdUse(t *testing.T, m *testenv.Member, s *Store) {
	w := wanted(example())
	if ids := idsOf(t, s); len(ids) > 0 && m.IntN(4) == 0 { // as after a failed restore
		s.Restored(ids[m.IntN(len(ids))], errors.New("for a test"))
		s.Restored(ids[0], nil)
	}
	snap, reasons := s.Newest(t.Context(), w)
	if snap == nil {
		for _, err := range reasons {
			if !strings.Contains(err.Error(), "for a test") {
				t.Error(err)
			}
		}
		m.Say("none -")
		return
	}
	defer snap.Release()
	m.Say("using %s", snap.Manifest.ID)
	for range 1 + m.IntN(3) {
		got, err := os.ReadFile(snap.MemoryPath())
		if err != nil {
			t.Errorf("%s went while it was used: %v", snap.Manifest.ID, err)
			return
		}
		if want := memoryOf(snap.Manifest.ID); bytes.HasPrefix(got, []byte(snap.Manifest.ID)) && !bytes.Equal(got, want) {
			t.Errorf("%s has not the memory that it was published with", snap.Manifest.ID)
		}
		time.Sleep(time.Duration(m.IntN(5)) * time.Millisecond) // so that others remove it
	}
}

func crowdRemove(t *testing.T, m *testenv.Member, s *Store) {
	ids := idsOf(t, s)
	if len(ids) == 0 {
		return
	}
	id := ids[m.IntN(len(ids))]
	m.Say("removing %s", id)
	if err := s.Remove(id); err != nil && !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	m.Say("removed %s", id)
}
