package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
)

const block = 4096

func open(t testing.TB, b remote.Bucket) *remote.Store {
	t.Helper()
	s, err := remote.New(remote.Options{Bucket: b, Block: block, Pack: 64 << 10, Prefix: "team"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// content is a file of so many blocks: those whose seed is 0 are zeros, equal seeds equal blocks.
func content(seeds ...uint64) []byte {
	var out []byte
	for _, s := range seeds {
		b := make([]byte, block)
		if s != 0 {
			r := rand.New(rand.NewPCG(s, 0))
			for i := range b {
				b[i] = byte(r.IntN(16)) // some of it can be compressed away
			}
		}
		out = append(out, b...)
	}
	return out
}

func seeds(from, n uint64) (out []uint64) {
	for i := range n {
		out = append(out, from+i)
	}
	return out
}

// snap writes a snapshot of one file to disk.
func snap(t testing.TB, id string, data []byte) remote.Snapshot {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return remote.Snapshot{Function: "hello", ID: id, Fit: "fits", Meta: []byte("about " + id), Files: []remote.File{{Name: "memory", Path: path}}}
}

func push(t testing.TB, s *remote.Store, sn remote.Snapshot) remote.Pushed {
	t.Helper()
	out, err := s.Push(t.Context(), sn, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// buffer is a file in memory.
type buffer struct {
	mu sync.Mutex
	b  []byte
}

func (b *buffer) WriteAt(p []byte, off int64) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return copy(b.b[off:], p), nil
}

// pull reads the memory of a snapshot from a store that has not seen it.
func pull(ctx context.Context, b remote.Bucket, id string) ([]byte, error) {
	s, err := remote.New(remote.Options{Bucket: b, Prefix: "team"})
	if err != nil {
		return nil, err
	}
	e, err := s.Find(ctx, "hello", id)
	if err != nil {
		return nil, err
	}
	m, err := s.Load(ctx, e)
	if err != nil {
		return nil, err
	}
	if string(m.Meta) != "about "+id {
		return nil, fmt.Errorf("its manifest is %q", m.Meta)
	}
	f, _ := m.File("memory")
	out := &buffer{b: make([]byte, f.Size)}
	err = s.Fetch(ctx, m, []remote.Target{{Name: "memory", To: out}}, nil)
	return out.b, err
}

func TestPushAndPull(t *testing.T) {
	b := &remotetest.Memory{}
	s := open(t, b)
	data := append(content(1, 0, 2, 2, 0, 0, 3, 1), 7, 7, 7) // a short block at the end
	first := push(t, s, snap(t, "a", data))
	if first.Content != 5*block+3 || first.New != 3*block+3 {
		t.Errorf("pushed %+v", first)
	}
	if got, err := pull(t.Context(), b, "a"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	for _, key := range b.Keys("") {
		if !strings.HasPrefix(key, "team/skep1/packs/") && !strings.HasPrefix(key, "team/skep1/snapshots/hello/a/fits-") {
			t.Errorf("left behind: %s", key)
		}
	}
	// Another that has most of it, in other places.
	other := content(3, 1, 4, 0)
	second := push(t, s, snap(t, "b", other))
	if second.New != block {
		t.Errorf("of the second %d bytes were new", second.New)
	}
	if got, err := pull(t.Context(), b, "b"); err != nil || !bytes.Equal(got, other) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	// The same again is the same object.
	keys := b.Keys("")
	if again := push(t, s, snap(t, "a", data)); again.New != 0 || again.Entry.Sum != first.Entry.Sum || !slices.Equal(keys, b.Keys("")) {
		t.Errorf("again: %+v", again)
	}
	// With something more it takes the other's place.
	more := append(slices.Clone(data[:len(data)-3]), content(9)...)
	push(t, s, snap(t, "a", more))
	if got, err := pull(t.Context(), b, "a"); err != nil || !bytes.Equal(got, more) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if n := len(b.Keys("team/skep1/snapshots/hello/a/")); n != 1 {
		t.Errorf("%d manifests of one snapshot", n)
	}
}

func TestPullReadsFewRanges(t *testing.T) {
	b := &remotetest.Memory{}
	s := open(t, b)
	push(t, s, snap(t, "a", content(seeds(1, 200)...)))
	packs := len(b.Keys("team/skep1/packs/"))
	before, _ := b.Read()
	if _, err := pull(t.Context(), b, "a"); err != nil {
		t.Fatal(err)
	}
	if after, _ := b.Read(); after-before != packs+1 || packs < 3 {
		t.Errorf("%d reads for %d packs and a manifest", after-before, packs)
	}
}

func TestDamageIsSeen(t *testing.T) {
	for name, spoil := range map[string]func(key string, p []byte) []byte{
		"a bit of a pack":      func(key string, p []byte) []byte { p[len(p)/2] ^= 4; return p },
		"a pack cut short":     func(key string, p []byte) []byte { return p[:len(p)-100] },
		"another frame":        func(key string, p []byte) []byte { copy(p[16:], p[5000:9000]); return p },
		"a bit of a manifest":  func(key string, p []byte) []byte { p[50] ^= 4; return p },
		"a manifest cut short": func(key string, p []byte) []byte { return p[:len(p)-1] },
	} {
		b := &remotetest.Memory{}
		push(t, open(t, b), snap(t, "a", content(seeds(1, 60)...)))
		what := "packs/"
		if strings.Contains(name, "manifest") {
			what = "snapshots/"
		}
		b.Spoil = func(key string, p []byte) []byte {
			if strings.Contains(key, what) {
				return spoil(key, p)
			}
			return p
		}
		if _, err := pull(t.Context(), b, "a"); !errors.Is(err, remote.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
		v, err := open(t, b).Verify(t.Context(), "", false, nil)
		if err != nil || len(v.Problems) != 1 {
			t.Errorf("%s: verified %+v, %v", name, v, err)
		}
	}
}

// TestDamageOnTheWay has what arrives damaged once be read again.
func TestDamageOnTheWay(t *testing.T) {
	b := &remotetest.Memory{}
	data := content(seeds(1, 10)...)
	push(t, open(t, b), snap(t, "a", data))
	spoiled := false
	b.Spoil = func(key string, p []byte) []byte {
		if strings.Contains(key, "packs/") && !spoiled {
			spoiled = true
			p[100] ^= 1
		}
		return p
	}
	if got, err := pull(t.Context(), b, "a"); err != nil || !bytes.Equal(got, data) || !spoiled {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

var errCut = errors.New("cut off")

// cutAfter makes every operation fail from the n-th on, as if its caller had been killed.
func cutAfter(n int) func(op, key string) error {
	var mu sync.Mutex
	return func(string, string) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n < 0 {
			return errCut
		}
		return nil
	}
}

// TestKilledPush cuts a push off after each of its operations: nothing is to be seen of it
// but a whole snapshot, the other is unharmed, and what it left goes.
func TestKilledPush(t *testing.T) {
	for n := 0; ; n++ {
		b := &remotetest.Memory{}
		s := open(t, b)
		base := content(seeds(1, 30)...)
		push(t, s, snap(t, "base", base))
		data := content(append(seeds(20, 60), 0, 0)...)
		b.Fail = cutAfter(n)
		_, err := open(t, b).Push(t.Context(), snap(t, "a", data), nil)
		b.Fail = nil
		got, err2 := pull(t.Context(), b, "a")
		switch {
		case err == nil && (err2 != nil || !bytes.Equal(got, data)):
			t.Fatalf("%d: acknowledged, and then: %v", n, err2)
		case err2 == nil && !bytes.Equal(got, data):
			t.Fatalf("%d: half of it is to be seen", n)
		case err2 != nil && !errors.Is(err2, remote.ErrNotThere):
			t.Fatalf("%d: %v", n, err2)
		}
		// Its lease is over: an hour of a clock that ticks once for each object.
		for range 3601 {
			if err := b.Put(t.Context(), "tick", nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Collect(t.Context(), remote.CollectOptions{}); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		whole(t, b, map[string][]byte{"base": base})
		if err2 == nil {
			whole(t, b, map[string][]byte{"a": data})
		}
		tidy(t, b)
		if err == nil {
			return // it has been cut off everywhere
		}
	}
}

// whole checks that snapshots can be had.
func whole(t testing.TB, b remote.Bucket, want map[string][]byte) {
	t.Helper()
	for id, data := range want {
		if got, err := pull(t.Context(), b, id); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: got %d bytes of %d, %v", id, len(got), len(data), err)
		}
	}
}

// tidy checks that there is nothing in the bucket that no snapshot needs.
func tidy(t testing.TB, b *remotetest.Memory) {
	t.Helper()
	u, err := open(t, b).Usage(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if u.Condemned > 0 || u.Pushes > 0 || len(b.Keys("team/skep1/clock/")) > 0 {
		t.Errorf("left: %+v, %v", u, b.Keys("team/skep1/clock/"))
	}
	if len(u.Snapshots) == 0 && u.Packs > 0 {
		t.Errorf("%d packs for no snapshot", u.Packs)
	}
}

// hooked calls before ahead of every operation of a bucket.
type hooked struct {
	remote.Bucket
	before func()
}

func (h hooked) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	h.before()
	return h.Bucket.Get(ctx, key, limit)
}

func (h hooked) Put(ctx context.Context, key string, data []byte) error {
	h.before()
	return h.Bucket.Put(ctx, key, data)
}

func (h hooked) List(ctx context.Context, prefix string) iter.Seq2[remote.Object, error] {
	h.before()
	return h.Bucket.List(ctx, prefix)
}

func (h hooked) Delete(ctx context.Context, key string) error {
	h.before()
	return h.Bucket.Delete(ctx, key)
}

// TestCollectDuringPush holds a push up ahead of each of its operations, m, while the snapshot whose
// chunks it would use is removed, and a collection runs up to each of its own, n; then the push
// goes on to its end, and then the collection.
func TestCollectDuringPush(t *testing.T) {
	data := content(seeds(1, 40)...)
	run := func(m, n int) (heldUp, cut bool) {
		b := &remotetest.Memory{}
		push(t, open(t, b), snap(t, "base", content(seeds(1, 30)...)))
		held, resume, pushed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		var left, todo atomic.Int32
		left.Store(int32(m))
		todo.Store(int32(n))
		pusher := open(t, hooked{b, func() {
			if left.Add(-1) == -1 {
				close(held)
				<-resume
			}
		}})
		sn := snap(t, "a", data)
		go func() {
			_, err := pusher.Push(t.Context(), sn, nil)
			pushed <- err
		}()
		goOn := sync.OnceFunc(func() {
			close(resume)
			if err := <-pushed; err != nil {
				t.Errorf("pushing: %v", err)
			}
		})
		select {
		case <-held:
			heldUp = true
		case err := <-pushed:
			pushed <- err
		}
		remover := open(t, b)
		if err := remover.Remove(t.Context(), "hello", "base"); err != nil {
			t.Error(err)
		}
		collector := open(t, hooked{b, func() {
			if todo.Add(-1) == -1 {
				cut = true
				goOn()
			}
		}})
		if _, err := collector.Collect(t.Context(), remote.CollectOptions{}); err != nil {
			t.Errorf("collecting: %v", err)
		}
		goOn()
		whole(t, b, map[string][]byte{"a": data})
		return heldUp, cut
	}
	for m := 0; ; m++ {
		heldUp := false
		for n := 0; ; n++ {
			var cut bool
			if heldUp, cut = run(m, n); t.Failed() {
				t.Fatalf("with the push held up at %d, the collection at %d", m, n)
			}
			if !cut {
				break
			}
		}
		if !heldUp {
			if m < 8 {
				t.Errorf("a push has only %d operations", m)
			}
			return
		}
	}
}

// TestKilledCollect cuts a collection off after each of its operations.
func TestKilledCollect(t *testing.T) {
	for n := 0; ; n++ {
		b := &remotetest.Memory{}
		s := open(t, b)
		keep := content(append(seeds(1, 10), seeds(100, 20)...)...)
		push(t, s, snap(t, "old", content(seeds(1, 40)...)))
		push(t, s, snap(t, "keep", keep))
		if err := s.Remove(t.Context(), "hello", "old"); err != nil {
			t.Fatal(err)
		}
		b.Fail = cutAfter(n)
		_, err := s.Collect(t.Context(), remote.CollectOptions{})
		b.Fail = nil
		whole(t, b, map[string][]byte{"keep": keep})
		again := content(seeds(1, 40)...)
		push(t, s, snap(t, "again", again)) // relies on nothing that is to go
		if _, err := s.Collect(t.Context(), remote.CollectOptions{}); err != nil {
			t.Fatal(err)
		}
		whole(t, b, map[string][]byte{"keep": keep, "again": again})
		last, err2 := remote.New(remote.Options{Bucket: b, Prefix: "team", Lease: -time.Hour})
		if err2 != nil {
			t.Fatal(err2)
		}
		if _, err := last.Collect(t.Context(), remote.CollectOptions{}); err != nil {
			t.Fatal(err)
		}
		tidy(t, b)
		if err == nil {
			return
		}
	}
}

func TestCollectWaitsAndSaysWhat(t *testing.T) {
	b := &remotetest.Memory{}
	s := open(t, b)
	push(t, s, snap(t, "a", content(seeds(1, 40)...)))
	push(t, s, snap(t, "b", content(seeds(100, 40)...)))
	before := b.Keys("")
	dry, err := s.Collect(t.Context(), remote.CollectOptions{DryRun: true, Keep: 1})
	if err != nil || len(dry.Removed) != 1 || dry.Removed[0].ID != "a" || dry.Deleted == 0 || dry.Freed == 0 {
		t.Errorf("it would do %+v, %v", dry, err)
	}
	if !slices.Equal(before, b.Keys("")) {
		t.Errorf("a dry run has left %v of %v", b.Keys(""), before)
	}
	c, err := s.Collect(t.Context(), remote.CollectOptions{Keep: 1, Grace: 100 * time.Second})
	if err != nil || c.Condemned == 0 || c.Deleted != 0 || c.Waiting != c.Condemned {
		t.Errorf("it did %+v, %v", c, err)
	}
	// Whoever has the manifest still can read.
	if len(b.Keys("team/skep1/packs/")) != dry.Packs {
		t.Errorf("%d packs of %d are there", len(b.Keys("team/skep1/packs/")), dry.Packs)
	}
	for range 100 {
		_ = b.Put(t.Context(), "tick", nil)
	}
	if c, err = s.Collect(t.Context(), remote.CollectOptions{Grace: 100 * time.Second}); err != nil || c.Deleted != dry.Deleted || c.Freed != dry.Freed {
		t.Errorf("it did %+v, %v", c, err)
	}
	tidy(t, b)
}

func TestCollectLeavesWhatItCannotRead(t *testing.T) {
	b := &remotetest.Memory{}
	s := open(t, b)
	push(t, s, snap(t, "a", content(seeds(1, 40)...)))
	push(t, s, snap(t, "b", content(seeds(100, 40)...)))
	if err := s.Remove(t.Context(), "hello", "a"); err != nil {
		t.Fatal(err)
	}
	packs := b.Keys("team/skep1/packs/")
	b.Spoil = func(key string, p []byte) []byte {
		if strings.Contains(key, "/snapshots/") {
			p[60] ^= 1
		}
		return p
	}
	if _, err := open(t, b).Collect(t.Context(), remote.CollectOptions{}); !errors.Is(err, remote.ErrFormat) || !strings.Contains(err.Error(), "hello/b") {
		t.Errorf("%v", err)
	}
	if !slices.Equal(packs, b.Keys("team/skep1/packs/")) {
		t.Errorf("packs have gone")
	}
}

// TestCrowd has many push, remove and collect at once; what is acknowledged stays whole.
func TestCrowd(t *testing.T) {
	b := &remotetest.Memory{}
	var mu sync.Mutex
	want := map[string][]byte{}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			s := open(t, b)
			for i := range 12 {
				r := rand.New(rand.NewPCG(uint64(w), uint64(i)))
				id := fmt.Sprintf("w%d-%d", w, i)
				data := content(seeds(r.Uint64N(30), 20+r.Uint64N(30))...)
				if _, err := s.Push(t.Context(), snap(t, id, data), nil); err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				if i%3 > 0 {
					if err := s.Remove(t.Context(), "hello", id); err != nil {
						t.Errorf("%s: %v", id, err)
					}
					continue
				}
				mu.Lock()
				want[id] = data
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	var collectors sync.WaitGroup
	for range 2 {
		collectors.Go(func() {
			s := open(t, b)
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := s.Collect(t.Context(), remote.CollectOptions{}); err != nil && !errors.Is(err, remote.ErrUnavailable) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(done)
	collectors.Wait()
	whole(t, b, want)
}

// TestHeldUp has a push be taken for dead just before it publishes: it fails, and nothing is to be
// seen of it.
func TestHeldUp(t *testing.T) {
	b := &remotetest.Memory{}
	s := open(t, b)
	b.Fail = func(op, key string) error {
		if op == "put" && strings.Contains(key, "/snapshots/") {
			for _, k := range b.Keys("team/skep1/pushing/") {
				_ = b.Delete(context.Background(), k)
			}
		}
		return nil
	}
	if _, err := s.Push(t.Context(), snap(t, "a", content(1, 2)), nil); err == nil {
		t.Error("it was published")
	}
	b.Fail = nil
	if _, err := pull(t.Context(), b, "a"); !errors.Is(err, remote.ErrNotThere) {
		t.Errorf("%v", err)
	}
}

func TestUsage(t *testing.T) {
	b := &remotetest.Memory{}
	s := open(t, b)
	push(t, s, snap(t, "a", content(seeds(1, 20)...)))
	push(t, s, snap(t, "b", append(content(seeds(1, 21)...), make([]byte, 3*block)...)))
	u, err := s.Usage(t.Context(), "hello")
	if err != nil || len(u.Snapshots) != 2 || u.Snapshots[0].Entry.ID != "b" {
		t.Fatalf("%+v, %v", u, err)
	}
	one, two := u.Snapshots[1], u.Snapshots[0]
	if one.Own != 0 || one.Content != 20*block || two.Content != 21*block || two.Length != 24*block || two.Own == 0 || two.Own >= two.Stored || u.Needed != two.Stored {
		t.Errorf("%+v", u)
	}
}

// TestServer does it all on a real S3 server.
func TestServer(t *testing.T) {
	server := remotetest.Serve(t)
	b := server.Open(t)
	defer b.Close()
	s := open(t, b)
	data := content(append(seeds(1, 100), 0, 0, 1)...)
	push(t, s, snap(t, "a", data))
	if again := push(t, s, snap(t, "a", data)); again.New != 0 {
		t.Errorf("again: %+v", again)
	}
	whole(t, b, map[string][]byte{"a": data})
	if v, err := s.Verify(t.Context(), "", false, nil); err != nil || v.Snapshots != 1 || v.Chunks != 100 || len(v.Problems) != 0 {
		t.Errorf("verified %+v, %v", v, err)
	}
	if err := s.Remove(t.Context(), "hello", "a"); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Collect(t.Context(), remote.CollectOptions{}); err != nil || c.Deleted == 0 || c.Deleted != c.Packs {
		t.Errorf("collected %+v, %v", c, err)
	}
	for o, err := range b.List(t.Context(), "") {
		t.Errorf("left: %s, %v", o.Key, err)
	}
}
