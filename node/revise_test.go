package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

func change(t testing.TB, n *Node, patch string) api.Function {
	t.Helper()
	f, err := n.Set(t.Context(), "hello", []byte(patch), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What is looked up at each request is in force at once: no boot, no snapshot,
// and the instances go on.
func TestSetAppliesAtOnce(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.Env = map[string]string{"DB": "secret"} }))
		l := acquire(t, n, AcquireOptions{})
		l.Release(okRecord())
		boots, snaps := w.boots, snapshotIDs(t, n)
		f := change(t, n, `{"timeout":"5s","idle_timeout":"3s","max_instances":3,"keep_alive":"10s"}`)
		if f.Timeout.D() != 5*time.Second || f.Env["DB"] != "secret" || f.Revision != 2 {
			t.Errorf("changed to %+v", f)
		}
		if got, _ := n.Function("hello"); got.MaxInstances != 3 || got.Timeout != f.Timeout {
			t.Errorf("in force: %+v", got)
		}
		if w.boots != boots || !slices.Equal(snapshotIDs(t, n), snaps) {
			t.Errorf("%d boots, snapshots %q, was %q", w.boots-boots, snapshotIDs(t, n), snaps)
		}
		again := acquire(t, n, AcquireOptions{})
		if again.Instance() != l.Instance() || again.Start() != api.StartWarm {
			t.Errorf("the instance was not kept: %s %s", again.Instance(), again.Start())
		}
		again.Release(okRecord())
		// The new keep_alive counts, though the old one was longer.
		time.Sleep(21 * time.Second)
		synctest.Wait()
		if states(n) != "" {
			t.Errorf("after the new keep_alive: %q", states(n))
		}
	})
}

// What an instance is made by, and is not in its memory, makes new instances
// from the snapshot that is there.
func TestSetOfInstanceSettings(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		l := acquire(t, n, AcquireOptions{})
		first := l.Instance()
		boots, snaps := w.boots, snapshotIDs(t, n)
		change(t, n, `{"concurrency":4}`)
		next := acquire(t, n, AcquireOptions{})
		if next.Instance() == first || next.Start() != api.StartRestore {
			t.Errorf("served by %s, a %s", next.Instance(), next.Start())
		}
		if w.boots != boots || !slices.Equal(snapshotIDs(t, n), snaps) {
			t.Errorf("%d boots, snapshots %q, was %q", w.boots-boots, snapshotIDs(t, n), snaps)
		}
		next.Release(okRecord())
		l.Release(okRecord())
	})
}

// What is in the guest's memory needs a trial and a new snapshot; a trial that
// fails changes nothing.
func TestSetOfWhatIsInTheSnapshot(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		defer n.Close(context.Background())
		deploy(t, n, hello(func(f *api.Function) { f.Env = map[string]string{"DB": "secret"} }))
		boots := w.boots
		f := change(t, n, `{"env":{"LEVEL":"2"}}`)
		if w.boots != boots+1 || f.Env["DB"] != "secret" || f.Env["LEVEL"] != "2" {
			t.Errorf("%d boots, %+v", w.boots-boots, f)
		}
		w.set(func() { w.readyErr = errors.New("exit status 1") })
		if _, err := n.Set(t.Context(), "hello", []byte(`{"env":{"LEVEL":"hunter2"}}`), nil); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %v", err)
		}
		w.set(func() { w.readyErr = nil })
		if got, _ := n.Function("hello"); got.Env["LEVEL"] != "2" || got.Revision != 2 {
			t.Errorf("after a change that failed: %+v", got)
		}
		for _, patch := range []string{`{"memory_mib":1}`, `{"memory_policy":"none-such"}`, `{"nope":1}`} {
			if _, err := n.Set(t.Context(), "hello", []byte(patch), nil); err == nil {
				t.Errorf("%s was taken", patch)
			}
		}
		if _, err := n.Set(t.Context(), "none", []byte(`{"timeout":"1s"}`), nil); !errors.Is(err, ErrNoFunction) {
			t.Errorf("no function: %v", err)
		}
	})
}

// An earlier revision comes back from its snapshot, without a boot, over a
// restart too; and the one that was rolled back can be had again.
func TestRollback(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, nil)
		if _, err := n.Rollback(t.Context(), "hello", 0, nil); !errors.Is(err, ErrNoFunction) {
			t.Errorf("no function: %v", err)
		}
		deploy(t, n, hello(func(f *api.Function) { f.Env = map[string]string{"V": "1"} }))
		if _, err := n.Rollback(t.Context(), "hello", 0, nil); !errors.Is(err, ErrNoRevision) {
			t.Errorf("nothing before: %v", err)
		}
		first := snapshotIDs(t, n)[0]
		change(t, n, `{"env":{"V":"2"}}`)
		change(t, n, `{"timeout":"7s"}`) // does not cost the first its snapshot
		n.Close(context.Background())

		n = w.open(t, nil)
		defer n.Close(context.Background())
		boots := w.boots
		f, err := n.Rollback(t.Context(), "hello", 1, nil)
		if err != nil || f.Env["V"] != "1" || f.Revision != 4 || w.boots != boots {
			t.Fatalf("%+v, %v, %d boots", f, err, w.boots-boots)
		}
		list, err := n.Snapshots(t.Context(), "hello")
		if err != nil || len(list) != 2 || list[0].Usable || !list[0].Rollback || !list[1].Usable || list[1].Rollback {
			t.Errorf("snapshots %+v, %v: want the newer one kept for a rollback", list, err)
		}
		l := acquire(t, n, AcquireOptions{})
		if l.Start() != api.StartRestore || l.(*lease).inst.snapshot != first {
			t.Errorf("%s from %s, want a restore from %s", l.Start(), l.(*lease).inst.snapshot, first)
		}
		l.Release(okRecord())
		if f, err = n.Rollback(t.Context(), "hello", 0, nil); err != nil || f.Env["V"] != "2" || f.Timeout.D() != 7*time.Second || w.boots != boots {
			t.Errorf("back again: %+v, %v, %d boots", f, err, w.boots-boots)
		}
		revs, err := n.Revisions(t.Context(), "hello")
		var got []string
		for _, r := range revs {
			got = append(got, r.Change)
		}
		want := []string{"rollback to 3", "rollback to 1", "set timeout", "set env.V", "deploy"}
		if err != nil || !slices.Equal(got, want) || !revs[0].Current || revs[0].Snapshots != 1 || revs[4].Snapshots != 1 {
			t.Errorf("revisions %q, want %q: %+v, %v", got, want, revs, err)
		}
		if _, err := n.Rollback(t.Context(), "hello", 99, nil); !errors.Is(err, ErrNoRevision) {
			t.Errorf("no such revision: %v", err)
		}
	})
}

// Only so many revisions are kept, and the snapshots of two guests: of the one
// in force and of the one before. One whose snapshot is gone is booted again.
func TestRevisionsAreBounded(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.KeepRevisions = 3 })
		defer n.Close(context.Background())
		deploy(t, n, hello(nil))
		for _, v := range []string{"1", "2", "3", "4"} {
			change(t, n, `{"env":{"V":"`+v+`"}}`)
		}
		revs, err := n.Revisions(t.Context(), "hello")
		if err != nil || len(revs) != 3 || revs[2].Number != 3 {
			t.Fatalf("%+v, %v", revs, err)
		}
		if len(snapshotIDs(t, n)) != 2 || revs[0].Snapshots != 1 || revs[1].Snapshots != 1 || revs[2].Snapshots != 0 {
			t.Errorf("snapshots %q: %+v", snapshotIDs(t, n), revs)
		}
		boots := w.boots
		if f, err := n.Rollback(t.Context(), "hello", 3, nil); err != nil || f.Env["V"] != "2" || w.boots != boots+1 {
			t.Errorf("%+v, %v, %d boots", f, err, w.boots-boots)
		}
		if err := n.Remove(t.Context(), "hello"); err != nil {
			t.Fatal(err)
		}
		deploy(t, n, hello(nil))
		if revs, err = n.Revisions(t.Context(), "hello"); err != nil || len(revs) != 1 || revs[0].Number != 1 {
			t.Errorf("after it was removed and made again: %+v, %v", revs, err)
		}
	})
}

// An image stays for as long as a kept revision needs it.
func TestImagesOfRevisionsStay(t *testing.T) {
	w := newWorld(t)
	w.bootTime = 0
	n := w.open(t, nil)
	deploy(t, n, hello(func(f *api.Function) { f.Image = "one" }))
	deploy(t, n, hello(func(f *api.Function) { f.Image = "two" }))
	if functions, _, err := n.imageUsers(t.Context()); err != nil || !slices.Equal(functions["sha256:one"], []string{"hello"}) {
		t.Errorf("%+v, %v", functions, err)
	}
}

// A function of before there were revisions has one.
func TestMigrationMakesRevisions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skep.db")
	db, err := openSQLite(path, "OFF", 1)
	if err != nil {
		t.Fatal(err)
	}
	insert := `INSERT INTO functions VALUES ('hello', '{"name":"hello","image":"x","args":["a"],"snapshot":{}}', '{"digest":"sha256:x","config":{}}');`
	if _, err := db.ExecContext(t.Context(), strings.Join(migrations[:3], "")+insert+"PRAGMA user_version = 3"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := openDatabase(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	revs, err := d.revisions(t.Context(), "hello")
	if err != nil || len(revs) != 1 || revs[0].change != "deploy" || revs[0].dep.fn.Revision != 1 {
		t.Errorf("%+v, %v", revs, err)
	}
}
