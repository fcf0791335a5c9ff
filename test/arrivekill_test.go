package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/remote/remotetest"
)

// TestKilledWhileArriving kills a daemon with SIGKILL while a snapshot's memory and its root disk come from the object
// store, which another has pushed: as it deploys, as a guest serves, waits for a page or for a block, and about when
// all is here. The next is right at once: nothing is left or half there, what came is used again, and the function
// starts from the store's snapshot.
func TestKilledWhileArriving(t *testing.T) {
	testenv.Need(t, "fuse")
	s3, metrics := remotetest.Serve(t), testenv.FreeAddress(t)
	settings := []string{"store_bucket = '" + s3.Bucket + "'", "store_endpoints = ['" + s3.URL + "']", "shells = 0"}
	const mib = 32 // of memory that the guest has computed before its snapshot
	words := mib << 20 / 8
	const table = "/table"
	bodies := map[string]string{table: fmt.Sprint((words - 1) * words / 2)}
	late := make([]string, 3) // paths
	var files []file
	r := rand.NewChaCha8([32]byte{17})
	for i, size := range []int{6 << 20, 6 << 20, 6 << 20, 48 << 20} { // nobody reads the last
		b := make([]byte, size)
		_, _ = r.Read(b) // never fails
		name := fmt.Sprint("app/late", i)
		files = append(files, file{name, b})
		if i < len(late) {
			late[i] = "/read?path=/" + name
			bodies[late[i]] = string(b)
		}
	}

	maker := start(t, settings...)
	ref := inRegistry(t, "bees/late:v1", helloImage(t, filepath.Join(maker.bin, "skep-hello"), files...)).String()
	f := api.Function{Name: "late", Image: ref, ReadyTimeout: maker.ready(), KeepAlive: api.Duration(3 * time.Second), Env: map[string]string{"HELLO_TABLE_MIB": fmt.Sprint(mib)}}
	if _, err := maker.client.Deploy(maker.ctx(2*time.Minute), f, nil); err != nil {
		t.Fatal(err)
	}
	inStore := func(d *daemon) (api.RemoteSnapshot, error) {
		all, err := d.client.RemoteSnapshots(d.ctx(time.Minute), "late")
		if err != nil || len(all) != 1 {
			return api.RemoteSnapshot{}, fmt.Errorf("there is %+v, %w", all, err)
		}
		return all[0], nil
	}
	var id string
	eventually(t, "the snapshot in the store", time.Minute, func() error {
		s, err := inStore(maker)
		id = s.ID
		return err
	})
	maker.down()

	other := start(t, append(settings, "store_fill_rate = 1", "metrics_listen = '"+metrics+"'")...)
	asks := func(path string) answer { return other.get("late", path) }
	right := func(t *testing.T, paths ...string) {
		t.Helper()
		for i, path := range paths {
			a := asks(path)
			if a.err != nil || a.status != 200 || strings.TrimSpace(a.body) != strings.TrimSpace(bodies[path]) {
				t.Errorf("%s: %d, %v: %d bytes, %.200q", path, a.status, a.err, len(a.body), a.body)
			}
			if kind := a.header.Get(api.HeaderStart); i == 0 && kind != string(api.StartRestore) || kind == string(api.StartBoot) {
				t.Errorf("%s: a %s", path, kind)
			}
		}
	}
	// again starts another daemon, which has all that the killed one had or nothing of it.
	again := func(t *testing.T) (whole bool) {
		t.Helper()
		other.up()
		for what := range leftovers(other.data()) {
			kind, _, _ := strings.Cut(what, " ")
			used := kind == "namespace" || kind == "link" || kind == "nft" || kind == "cgroup" && !strings.HasSuffix(what, "cgroup.procs")
			if other.orphaned[what] && !used { // again
				t.Errorf("left from before: %s", what)
			}
		}
		if is, err := other.client.Instances(other.ctx(5*time.Second), ""); err != nil || len(is) > 0 {
			t.Errorf("instances: %v, %+v", err, is)
		}
		local, err := other.client.Snapshots(other.ctx(5*time.Second), "")
		if err != nil || len(local) > 1 {
			t.Fatalf("snapshots: %v, %+v", err, local)
		}
		if len(local) == 1 {
			whole = true
			if err := other.client.VerifySnapshot(other.ctx(time.Minute), local[0].ID); err != nil || local[0].ID != id {
				t.Errorf("snapshot %s is here: %v", local[0].ID, err)
			}
		} else if _, err := os.Stat(filepath.Join(other.data(), "snapshots", id)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("there are files of what is not here: %v", err)
		}
		return whole
	}

	for _, stage := range []api.DeployStage{api.StagePulling, api.StageChecking} {
		for _, delay := range []time.Duration{0, 150 * time.Millisecond, 600 * time.Millisecond} {
			t.Run(fmt.Sprintf("while %s, %v", stage, delay), func(t *testing.T) {
				told, err := other.killDuring(f, string(stage), delay)
				again(t)
				if _, ferr := other.client.Function(other.ctx(5*time.Second), "late"); told && (err == nil) != (ferr == nil) {
					t.Errorf("its deployment: %v, afterwards: %v", err, ferr)
				}
				if err == nil {
					other.mustCLI("rm", "late")
				}
			})
		}
	}
	if _, err := other.client.Deploy(other.ctx(2*time.Minute), f, nil); err != nil {
		t.Fatal(err)
	}
	// asked is what a client waits for when the daemon is killed, after how far that is, and afterwards what is read then.
	for _, m := range []struct {
		name       string
		asked      string
		after      time.Duration
		afterwards []string
	}{
		{"as it serves", "/", 500 * time.Millisecond, late[:1]},
		{"as a guest reads memory", table, 50 * time.Millisecond, late[:1]},
		{"as a guest reads memory for a while", table, 400 * time.Millisecond, []string{table, late[0]}},
		{"as a guest reads its root disk", late[1], 50 * time.Millisecond, []string{table}},
		{"as a guest reads its root disk for a while", late[2], 300 * time.Millisecond, late},
	} {
		t.Run(m.name, func(t *testing.T) {
			if a := asks("/"); a.err != nil || a.status != 200 || a.header.Get(api.HeaderStart) == string(api.StartBoot) {
				t.Fatalf("a %s: %d, %v: %.200s", a.header.Get(api.HeaderStart), a.status, a.err, a.body)
			}
			s, err := inStore(other)
			if err != nil || s.Here || s.Arriving == nil {
				t.Fatalf("it is not arriving: %+v, %v", s, err)
			}
			t.Logf("killed with %d of %d bytes here", s.Arriving.Done, s.Arriving.Total)
			sent := make(chan answer, 1)
			go func() { sent <- asks(m.asked) }()
			time.Sleep(m.after) // the point of the test: a moment nobody chose
			other.kill()
			<-sent
			if again(t) {
				t.Error("it is here whole")
			}
			right(t, m.afterwards...)
			if hits := metric(t, metrics, "skep_store_cache_hits_total"); hits == "" || hits == "0" {
				t.Errorf("%q chunks that had come were used again", hits)
			}
			other.kill() // and now: another starts with what this one has
			again(t)
		})
	}
	here := func(t *testing.T) {
		t.Helper()
		eventually(t, "all of it", 2*time.Minute, func() error {
			s, err := inStore(other)
			if err == nil && !s.Here {
				err = fmt.Errorf("it is here to %+v", s.Arriving)
			}
			return err
		})
	}
	right(t, table, late[0])
	here(t)
	// By now all of it is in the cache: it comes within a moment, and what was fetched is compared and published.
	for _, after := range []time.Duration{200 * time.Millisecond, 500 * time.Millisecond, 900 * time.Millisecond, 1500 * time.Millisecond} {
		t.Run(fmt.Sprintf("as it comes of the cache, %v", after), func(t *testing.T) {
			other.gone("late")
			if err := other.client.RemoveSnapshot(other.ctx(time.Minute), id); err != nil {
				t.Fatal(err)
			}
			sent := make(chan answer, 1)
			go func() { sent <- asks(table) }()
			time.Sleep(after) // as above
			other.kill()
			<-sent
			t.Logf("here whole: %v", again(t))
			right(t, table, late[0])
			here(t)
		})
	}
	s3.Kill()
	other.gone("late")
	right(t, table, late[0])
}

// metric is the value of a metric without labels at an address, "" if it is not there.
func metric(t *testing.T, address, name string) string {
	t.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			return string(bytes.TrimSpace(v))
		}
	}
	return ""
}
