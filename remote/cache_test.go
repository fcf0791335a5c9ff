package remote_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
)

// cached opens a store with a cache in dir.
func cached(t testing.TB, b remote.Bucket, dir string, max int64) (*remote.Store, *remote.Cache) {
	t.Helper()
	c, err := remote.OpenCache(dir, max)
	if err != nil {
		t.Fatal(err)
	}
	s, err := remote.New(remote.Options{Bucket: b, Prefix: "team", Cache: c})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// fetched fetches the memory of a snapshot, and says how many bytes of the store it took.
func fetched(t testing.TB, s *remote.Store, id string, want []byte) int64 {
	t.Helper()
	e, err := s.Find(t.Context(), "hello", id)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Load(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Stats().Fetched
	to := &buffer{b: make([]byte, len(want))}
	if err := s.Fetch(t.Context(), m, []remote.Target{{Name: "memory", To: to}}, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(to.b, want) {
		t.Errorf("the content of %s is wrong", id)
	}
	return s.Stats().Fetched - before
}

// TestCacheFetchesOnlyWhatIsNew has a second snapshot of the same base come but for what it shares with the
// first, over a restart too, and damage in the cache be nobody's.
func TestCacheFetchesOnlyWhatIsNew(t *testing.T) {
	b, dir := &remotetest.Memory{}, t.TempDir()
	base := content(seeds(1, 100)...)
	next := append(bytes.Clone(base), content(seeds(500, 3)...)...)
	copy(next[40*block:], content(777))
	w := open(t, b)
	push(t, w, snap(t, "a", base))
	push(t, w, snap(t, "b", next))

	s, c := cached(t, b, dir, 1<<30)
	all := fetched(t, s, "a", base)
	few := fetched(t, s, "b", next)
	if few == 0 || few > all/10 {
		t.Errorf("fetched %d bytes for the first and %d for the second", all, few)
	}
	if st := c.Stats(); st.Hits != 99 || st.Misses != 104 || st.Chunks != 104 || st != s.Stats().Cache {
		t.Errorf("%+v", st)
	}
	if n := fetched(t, s, "b", next); n != 0 {
		t.Errorf("fetched %d bytes of what is here", n)
	}
	// By what arrives, too.
	e, err := s.Find(t.Context(), "hello", "b")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Load(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	to := &buffer{b: make([]byte, len(next))}
	a, err := s.Arrive(m, "memory", to, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if a.Bring(t.Context(), 0, block) != nil || a.Fill(t.Context(), nil) != nil || !bytes.Equal(to.b, next) || a.Progress().Fetched != 0 {
		t.Errorf("%+v", a.Progress())
	}

	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 104 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	spoil := []func(path string) error{
		os.Remove,
		func(path string) error { return os.Truncate(path, 0) },
		func(path string) error { return os.Truncate(path, 20) },
		func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte{7}, 3000), 0o600) },
	}
	for i, f := range spoil {
		if err := f(files[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, ".tmp-left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ = cached(t, b, dir, 1<<30)
	if n := fetched(t, s, "b", next); n == 0 || n > all/10 {
		t.Errorf("fetched %d bytes for what was damaged", n)
	}
	if n := fetched(t, s, "b", next); n != 0 {
		t.Errorf("fetched %d bytes after what was damaged had come again", n)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".tmp-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCacheEvictsWhatWasNotUsed has the cache never take more than it may, and keep what is used.
func TestCacheEvictsWhatWasNotUsed(t *testing.T) {
	b, dir := &remotetest.Memory{}, t.TempDir()
	hot, cold := content(seeds(1, 5)...), content(seeds(100, 60)...)
	w := open(t, b)
	push(t, w, snap(t, "hot", hot))
	push(t, w, snap(t, "cold", cold))
	for i := range 12 {
		push(t, w, snap(t, "cold"+string(rune('a'+i)), cold[5*i*block:5*(i+1)*block]))
	}
	const room = 20 * block
	s, c := cached(t, b, dir, room)
	fetched(t, s, "hot", hot)
	for i := range 12 {
		fetched(t, s, "cold"+string(rune('a'+i)), cold[5*i*block:5*(i+1)*block])
		if n := fetched(t, s, "hot", hot); n != 0 {
			t.Errorf("what was used last was evicted: fetched %d bytes", n)
		}
	}
	onDisk := func() (n int64) {
		files, _ := os.ReadDir(dir)
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				n += info.Size()
			}
		}
		return n
	}
	if st := c.Stats(); st.Bytes > room || onDisk() != st.Bytes || st.Chunks < 10 {
		t.Errorf("%+v, %d bytes on disk", st, onDisk())
	}
	// With less room after a restart, and with none for even one.
	if _, c = cached(t, b, dir, room/2); c.Stats().Bytes > room/2 || onDisk() != c.Stats().Bytes {
		t.Errorf("%+v, %d bytes on disk", c.Stats(), onDisk())
	}
	s, _ = cached(t, b, dir, 1)
	if n := fetched(t, s, "cold", cold); n == 0 || onDisk() != 0 {
		t.Errorf("fetched %d, %d bytes on disk", n, onDisk())
	}
	// What cannot be kept is fetched all the same.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s, _ = cached(t, b, dir, room)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	fetched(t, s, "cold", cold)
}
