package remote_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/bucket"
	"github.com/skep-dev/skep/remote/remotetest"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// crowd is one process of those that share a bucket, and directories of snapshots.
type crowd struct {
	s            *remote.Store
	made, pulled *snapshot.Store
}

func openCrowd(t *testing.T, name, url, dir string, lease time.Duration) crowd {
	t.Helper()
	b, err := bucket.Open(t.Context(), bucket.Options{Name: name, Endpoints: []string{url}})
	must(t, err)
	t.Cleanup(b.Close)
	var c crowd
	c.s, err = remote.New(remote.Options{Bucket: b, Block: block, Pack: 128 << 10, Key: tenant(1), Lease: lease})
	must(t, err)
	c.made, err = snapshot.Open(filepath.Join(dir, "made"))
	must(t, err)
	c.pulled, err = snapshot.Open(filepath.Join(dir, "pulled"))
	must(t, err)
	return c
}

// TestKilledProcesses has processes push, pull, remove and collect snapshots in a bucket of a real S3 server, some of
// which are killed in the middle of it. What was acknowledged is there, and everything that is there is what its maker
// pushed; what was pulled is that, or is not there; of the dead nothing is left.
func TestKilledProcesses(t *testing.T) {
	const bucketEnv, urlEnv, dirEnv = "SKEP_TEST_BUCKET", "SKEP_TEST_S3", "SKEP_TEST_DIR"
	if m, ok := testenv.CrowdMember(); ok {
		c := openCrowd(t, os.Getenv(bucketEnv), os.Getenv(urlEnv), os.Getenv(dirEnv), 0)
		for range 8 {
			switch m.IntN(8) {
			case 0, 1, 2:
				c.push(t, m)
			case 3, 4, 5:
				c.pull(t, m)
			case 6:
				c.remove(t, m)
			case 7:
				m.Say("collecting -")
				if _, err := c.s.Collect(t.Context(), remote.CollectOptions{}); err != nil && !errors.Is(err, remote.ErrUnavailable) {
					t.Error(err)
				}
				m.Say("collected -")
			}
		}
		return
	}
	server := remotetest.Serve(t)
	dir := t.TempDir()
	said := testenv.Crowd{Size: 4, Kills: 24, Lines: 10, Within: 60 * time.Millisecond,
		Env: []string{bucketEnv + "=" + server.Bucket, urlEnv + "=" + server.URL, dirEnv + "=" + dir}}.Run(t)
	ids := map[string][]string{}
	for _, lines := range said {
		for _, line := range lines {
			what, id, _ := strings.Cut(line, " ")
			ids[what] = append(ids[what], id)
		}
	}
	for what, list := range ids {
		t.Logf("%s: %d", what, len(list))
	}
	// Nobody lives: whatever is written down as under way is dead.
	c := openCrowd(t, server.Bucket, server.URL, dir, -time.Hour)
	there := c.check(t, ids)
	if _, err := c.s.Collect(t.Context(), remote.CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	if again := c.check(t, ids); !slices.Equal(again, there) {
		t.Errorf("after a collection there are %v, were %v", again, there)
	}
	v, err := c.s.Verify(t.Context(), "", false, nil)
	if err != nil || len(v.Problems) > 0 || v.Snapshots != len(there) {
		t.Errorf("verified %+v, %v", v, err)
	}
	u, err := c.s.Usage(t.Context(), "")
	if err != nil || u.Condemned > 0 || u.Pushes > 0 {
		t.Errorf("left: %+v, %v", u, err)
	}
	for _, id := range there {
		must(t, c.s.Remove(t.Context(), "hello", id))
	}
	if _, err := c.s.Collect(t.Context(), remote.CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	b := server.Open(t)
	defer b.Close()
	for o, err := range b.List(t.Context(), "") {
		t.Errorf("left: %s, %v", o.Key, err)
	}
}

// check compares what is in the bucket, and what was pulled, with what processes have said.
func (c crowd) check(t *testing.T, ids map[string][]string) (there []string) {
	t.Helper()
	list, err := c.s.List(t.Context(), "")
	must(t, err)
	for _, e := range list {
		there = append(there, e.ID)
		if !slices.Contains(ids["pushing"], e.ID) {
			t.Errorf("%s is there, and nobody pushed it", e.ID)
		}
		if back, err := got(t, c.s, e.ID); err != nil || !bytes.Equal(back, memoryOf(e.ID)) {
			t.Errorf("%s is not what was pushed: %d bytes, %v", e.ID, len(back), err)
		}
	}
	slices.Sort(there)
	for _, id := range ids["pushed"] {
		if !slices.Contains(there, id) && !slices.Contains(ids["removing"], id) {
			t.Errorf("%s was pushed, and is gone", id)
		}
	}
	for _, id := range ids["removed"] {
		if slices.Contains(there, id) {
			t.Errorf("%s was removed, and is there", id)
		}
	}
	local, err := c.pulled.IDs("")
	must(t, err)
	for _, id := range ids["pulled"] {
		if !slices.Contains(local, id) {
			t.Errorf("%s was pulled, and is not here", id)
		}
	}
	for _, id := range local {
		must(t, c.pulled.Verify(t.Context(), id))
		snap, err := c.pulled.Take(t.Context(), id)
		must(t, err)
		if b, err := os.ReadFile(snap.MemoryPath()); err != nil || !bytes.Equal(b, memoryOf(id)) {
			t.Errorf("%s was pulled wrong: %v", id, err)
		}
		snap.Release()
	}
	return there
}

// memoryOf is the memory of the snapshot with that id: itself, then blocks that others have too, and zeros.
func memoryOf(id string) []byte {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	r := rand.New(rand.NewPCG(h.Sum64(), 0))
	var seeds []uint64
	for range 1<<20/block - 1 {
		seeds = append(seeds, r.Uint64N(200)) // 0 is zeros
	}
	first := make([]byte, block)
	copy(first, id)
	return append(first, content(seeds...)...)
}

func (c crowd) push(t *testing.T, m *testenv.Member) {
	g, err := c.made.Stage("hello")
	must(t, err)
	defer g.Abort()
	must(t, os.WriteFile(g.State(), []byte("state"), 0o600))
	must(t, os.WriteFile(g.Memory(), memoryOf(g.ID), 0o600))
	_, err = g.Publish(t.Context(), snapshot.Manifest{Reason: "ready", VMM: vmm.Info{Name: "qemu", Version: "7", Accel: "tcg"},
		CPU: snapshot.CPU{Vendor: "v", Model: "m"}, HostKernel: "h", GuestKernel: "k", Initramfs: "i", Agent: "1", ImageDigest: "sha256:aa", DiskDigest: "bb", Spec: "cc", VCPUs: 1, MemoryMiB: 1})
	must(t, err)
	snap, err := c.made.Take(t.Context(), g.ID)
	must(t, err)
	defer snap.Release()
	meta, err := snap.Manifest.Encode()
	must(t, err)
	m.Say("pushing %s", g.ID)
	_, err = c.s.Push(t.Context(), remote.Snapshot{Function: "hello", ID: g.ID, Fit: "fits", Meta: meta,
		Files: []remote.File{{Name: snapshot.PartState, Path: snap.StatePath()}, {Name: snapshot.PartMemory, Path: snap.MemoryPath()}}}, nil)
	if err != nil {
		t.Errorf("pushing: %v", err) // others are killed, the store is not
		return
	}
	m.Say("pushed %s", g.ID)
}

func (c crowd) any(t *testing.T, m *testenv.Member) (remote.Entry, bool) {
	list, err := c.s.List(t.Context(), "hello")
	must(t, err)
	if len(list) == 0 {
		return remote.Entry{}, false
	}
	return list[m.IntN(len(list))], true
}

func (c crowd) pull(t *testing.T, m *testenv.Member) {
	e, ok := c.any(t, m)
	if !ok {
		return
	}
	m.Say("pulling %s", e.ID)
	err := c.receive(t, e)
	if errors.Is(err, remote.ErrNotThere) {
		// Only what somebody removes goes while it is read.
		if _, err := c.s.Find(t.Context(), "hello", e.ID); !errors.Is(err, remote.ErrNotThere) {
			t.Errorf("%s is there, and cannot be read: %v", e.ID, err)
		}
		return
	}
	if err != nil {
		t.Errorf("pulling %s: %v", e.ID, err)
		return
	}
	m.Say("pulled %s", e.ID)
}

func (c crowd) receive(t *testing.T, e remote.Entry) error {
	stored, err := c.s.Load(t.Context(), e)
	if err != nil {
		return err
	}
	if !json.Valid(stored.Meta) {
		t.Errorf("the manifest of %s is %q", e.ID, stored.Meta)
	}
	manifest, err := snapshot.Decode(stored.Meta)
	if err != nil {
		return err
	}
	g, err := c.pulled.Receive(manifest)
	if err != nil {
		return err
	}
	defer g.Abort()
	var targets []remote.Target
	for name, path := range map[string]string{snapshot.PartState: g.State(), snapshot.PartMemory: g.Memory()} {
		f, err := os.Create(path)
		must(t, err)
		defer f.Close()
		content, _ := stored.File(name)
		must(t, f.Truncate(content.Size))
		targets = append(targets, remote.Target{Name: name, To: f})
	}
	if err := c.s.Fetch(t.Context(), stored, targets, nil); err != nil {
		return err
	}
	_, err = g.Adopt(t.Context(), manifest)
	return err
}

func (c crowd) remove(t *testing.T, m *testenv.Member) {
	e, ok := c.any(t, m)
	if !ok {
		return
	}
	m.Say("removing %s", e.ID)
	if err := c.s.Remove(t.Context(), "hello", e.ID); err != nil && !errors.Is(err, remote.ErrNotThere) {
		t.Errorf("removing: %v", err)
		return
	}
	m.Say("removed %s", e.ID)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
