package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/remote/remotetest"
)

// TestSnapshotTravels has one daemon make a snapshot, and another, which shares nothing with it but a
// bucket on a real S3 server and a key, start from that without ever booting. Then the store is damaged, dies and
// comes back.
func TestSnapshotTravels(t *testing.T) {
	s3 := remotetest.Serve(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, bytes.Repeat([]byte("secret"), 6), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := []string{
		"store_key_command = 'cat " + key + "'",
		"store_bucket = '" + s3.Bucket + "'",
		"store_endpoints = ['" + s3.URL + "']",
		"shells = 0",
	}
	const mib = 8 // of memory that the guest has computed before its snapshot
	words := mib << 20 / 8
	sum := fmt.Sprint((words - 1) * words / 2)
	right := func(d *daemon, policy string, kind api.StartKind) {
		t.Helper()
		a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/table", Policy: policy, Start: kind})
		if a.err != nil || a.status != 200 || strings.TrimSpace(a.body) != sum {
			t.Errorf("%s %s: %+v, want %s", kind, policy, a, sum)
		}
	}
	inStore := func(d *daemon) (list []api.RemoteSnapshot) {
		t.Helper()
		list, err := d.client.RemoteSnapshots(d.ctx(time.Minute), "")
		if err != nil {
			t.Fatal(err)
		}
		return list
	}

	maker := start(t, settings...)
	maker.hello("hello", "--env", fmt.Sprintf("HELLO_TABLE_MIB=%d", mib))
	eventually(t, "the snapshot in the store", time.Minute, func() error {
		if list := inStore(maker); len(list) != 1 || !list[0].Usable || !list[0].Here {
			return fmt.Errorf("there is %+v", list)
		}
		return nil
	})
	right(maker, "stream", api.StartRestore) // records its working set
	eventually(t, "the working set in the store", 3*time.Minute, func() error {
		marks, _ := filepath.Glob(filepath.Join(maker.data(), "snapshots", "*", "pushed.json"))
		for _, m := range marks {
			if b, err := os.ReadFile(m); err == nil && strings.Contains(string(b), `"working_set":true`) {
				return nil
			}
		}
		return errors.New("it was not pushed since it has one")
	})
	id := inStore(maker)[0].ID
	t.Log(maker.mustCLI("store", "usage"))

	other := start(t, settings...)
	began := time.Now()
	other.hello("hello", "--env", fmt.Sprintf("HELLO_TABLE_MIB=%d", mib))
	t.Logf("deployed on the other within %v", time.Since(began))
	eventually(t, "all of the snapshot on the other", time.Minute, func() error {
		if list := inStore(other); len(list) != 1 || list[0].ID != id || !list[0].Here || !list[0].Usable {
			return fmt.Errorf("there is %+v", list)
		}
		return nil
	})
	for _, policy := range []string{"stream", "reap", "mmap", "resident"} {
		right(other, policy, api.StartRestore)
	}
	for _, r := range other.records("hello", 4) {
		if r.Start != api.StartRestore || r.Snapshot != id {
			t.Errorf("a %s from %s", r.Start, r.Snapshot)
		}
		if r.Memory != nil && r.Memory.Policy == "stream" && r.Memory.Prefetched == 0 {
			t.Errorf("the working set has not come along: %+v", *r.Memory)
		}
	}
	booted := func() bool { return strings.Contains(other.log.String(), "booting") }
	if booted() {
		t.Error("the other has booted")
	}

	// Fetched anew by a start, and by hand.
	other.mustCLI("snapshot", "rm", id)
	right(other, "", api.StartRestore)
	other.gone("hello")
	other.mustCLI("snapshot", "rm", id)
	if got := strings.TrimSpace(other.mustCLI("snapshot", "pull", "hello")); got != id {
		t.Errorf("pulled %q", got)
	}
	other.mustCLI("snapshot", "push", id)
	other.mustCLI("store", "verify")
	var gc api.Collected
	if err := json.Unmarshal([]byte(other.mustCLI("store", "gc", "--grace", "0s", "--json")), &gc); err != nil || len(gc.Removed) > 0 || gc.Pushes > 0 {
		t.Errorf("collected %+v, %v", gc, err)
	}
	other.mustCLI("store", "verify", "hello")

	// Nothing there, nor in a log, tells what it is.
	err := filepath.WalkDir(s3.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, told := range []string{"HELLO_TABLE_MIB", "image_digest", "trace/", "\x28\xb5\x2f\xfd"} {
			// Four bytes may come about by chance, at the beginning of a chunk they do not.
			if i := strings.Index(string(b), told); i >= 0 && (len(told) > 4 || i < 64) {
				t.Errorf("%s has %q at %d", path, told, i)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*daemon{maker, other} {
		if log := d.log.String(); strings.Contains(log, "secretsecret") || !strings.Contains(log, "what goes to the object store is encrypted") {
			t.Errorf("the log tells the key, or not that there is one:\n%s", log)
		}
	}

	// A store without it, that is damaged, or dead.
	packs, err := filepath.Glob(filepath.Join(s3.Dir, "skep1", "packs", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("packs: %v, %v", packs, err)
	}
	for _, p := range packs {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := other.cli("store", "verify"); err == nil || !strings.Contains(out, "changed or damaged") {
		t.Errorf("verified what is damaged: %s, %v", out, err)
	}
	s3.Kill()
	right(other, "stream", api.StartRestore) // what is local still starts
	if _, err := other.cli("snapshot", "ls", "--remote"); err == nil || !strings.Contains(err.Error(), "not to be reached") {
		t.Errorf("a dead store: %v", err)
	}
	other.mustCLI("snapshot", "rm", id)
	if booted() {
		t.Error("the other has booted")
	}
	other.mustGet("hello", "/")
	if !booted() {
		t.Error("it has not booted without the store")
	}
}
