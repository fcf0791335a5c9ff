package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/remote/remotetest"
)

// TestRemoteStartIsLazy has a second daemon start from a snapshot of the first while most of its memory is
// still in the object store, on a real S3 server. Then the store dies under a guest, and comes back.
func TestRemoteStartIsLazy(t *testing.T) {
	s3 := remotetest.Serve(t)
	const mib = 64 // of memory that the guest has computed before its snapshot
	words := mib << 20 / 8
	sum := fmt.Sprint((words - 1) * words / 2)
	settings := []string{"store_bucket = '" + s3.Bucket + "'", "store_endpoints = ['" + s3.URL + "']", "shells = 0"}

	maker := start(t, settings...)
	maker.hello("hello", "--env", fmt.Sprintf("HELLO_TABLE_MIB=%d", mib))
	list := func(d *daemon) (api.RemoteSnapshot, error) { // the first: the other makes one of its own when it has booted
		all, err := d.client.RemoteSnapshots(d.ctx(time.Minute), "")
		if err != nil || len(all) == 0 {
			return api.RemoteSnapshot{}, fmt.Errorf("there is %+v, %w", all, err)
		}
		return all[len(all)-1], nil
	}
	eventually(t, "the snapshot in the store", time.Minute, func() error {
		_, err := list(maker)
		return err
	})
	maker.down()

	other := start(t, append(settings, "store_wait = '3s'", "store_fill_rate = 1", "store_cache_mib = 0")...)
	other.hello("hello", "--env", fmt.Sprintf("HELLO_TABLE_MIB=%d", mib))
	if a := other.mustGet("hello", "/"); a.header.Get(api.HeaderStart) != string(api.StartRestore) {
		t.Errorf("a %s", a.header.Get(api.HeaderStart))
	}
	if s, err := list(other); err != nil || s.Here || s.Arriving == nil || s.Arriving.Done >= s.Arriving.Total {
		t.Errorf("in the store: %+v, %v", s, err)
	}
	first := other.records("hello", 1)[0]
	if first.Memory == nil || first.Memory.Remote == nil {
		t.Fatalf("the first start was not from the store: %+v", first)
	}
	switch r := first.Memory.Remote; {
	case r.Fetched <= 0 || r.Fetched >= r.Total:
		t.Errorf("fetched %d of %d bytes before the first response", r.Fetched, r.Total)
	default:
		t.Logf("first response with %d of %d bytes here, the first of them in %v; %d waits, %v", r.Fetched, r.Total, r.Began, r.Waits, r.Waited)
	}

	// The guest that serves by now needs what is not here, of a store that is dead.
	s3.Kill()
	a := other.get("hello", "/table")
	if a.err != nil || a.status != 503 || !strings.Contains(a.body, "object store is not to be reached") {
		t.Errorf("a page from a dead store: %+v", a)
	}
	t.Log(a.body)
	other.gone("hello")
	if a := other.invoke(api.InvokeRequest{Function: "hello", Path: "/", Start: api.StartRestore}); a.status != 503 || !strings.Contains(a.body, "object store") {
		t.Errorf("a restore from a dead store: %+v", a)
	}
	if a := other.mustGet("hello", "/table"); strings.TrimSpace(a.body) != sum || a.header.Get(api.HeaderStart) != string(api.StartBoot) {
		t.Errorf("a %s: %s", a.header.Get(api.HeaderStart), a.body)
	}

	s3.Start(t)
	eventually(t, "the whole snapshot", 3*time.Minute, func() error {
		s, err := list(other)
		if err == nil && !s.Here {
			err = fmt.Errorf("it is here to %+v", s.Arriving)
		}
		return err
	})
	for _, policy := range []string{"stream", "reap", "mmap", "resident"} {
		a := other.invoke(api.InvokeRequest{Function: "hello", Path: "/table", Policy: policy, Start: api.StartRestore})
		if a.err != nil || a.status != 200 || strings.TrimSpace(a.body) != sum {
			t.Errorf("%s: %+v", policy, a)
		}
	}
	for _, r := range other.records("hello", 8)[:4] { // the newest come first
		if r.Start != api.StartRestore || r.Memory != nil && r.Memory.Remote != nil {
			t.Errorf("a %s from %s, with %+v", r.Start, r.Snapshot, r.Memory)
		}
	}
}
