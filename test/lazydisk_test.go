package test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/remote/remotetest"
)

// TestRootDiskArrivesLate has a daemon that has neither image nor snapshot start a function of a registry while
// its root disk is still in the object store, and the guest read it late: from a store that answers, one that is
// dead, and one that is back, to a daemon that was killed meanwhile.
func TestRootDiskArrivesLate(t *testing.T) {
	testenv.Need(t, "fuse")
	s3 := remotetest.Serve(t)
	settings := []string{"store_bucket = '" + s3.Bucket + "'", "store_endpoints = ['" + s3.URL + "']", "shells = 0"}
	maker := start(t, settings...)
	late := make([][]byte, 3)
	var files []file
	r := rand.NewChaCha8([32]byte{13})
	for i := range late {
		late[i] = make([]byte, 12<<20)
		_, _ = r.Read(late[i]) // never fails
		files = append(files, file{fmt.Sprintf("app/late%d", i), late[i]})
	}
	ref := inRegistry(t, "bees/late:v1", helloImage(t, filepath.Join(maker.bin, "skep-hello"), files...)).String()
	deploy := func(d *daemon) {
		t.Helper()
		d.mustCLI("deploy", ref, "--name", "late", "--ready-timeout", d.ready().String())
	}
	// reads has the guest read a file of its root disk.
	reads := func(d *daemon, i int, start api.StartKind) answer {
		t.Helper()
		return d.invoke(api.InvokeRequest{Function: "late", Path: fmt.Sprintf("/read?path=/app/late%d", i), Start: start})
	}
	right := func(a answer, i int) bool {
		return a.err == nil && a.status == 200 && sha256.Sum256([]byte(a.body)) == sha256.Sum256(late[i])
	}
	inStore := func(d *daemon) (api.RemoteSnapshot, error) {
		all, err := d.client.RemoteSnapshots(d.ctx(time.Minute), "late")
		if err != nil || len(all) == 0 {
			return api.RemoteSnapshot{}, fmt.Errorf("there is %+v, %w", all, err)
		}
		return all[len(all)-1], nil
	}
	images := func(d *daemon) (list []string) {
		list, _ = filepath.Glob(filepath.Join(d.data(), "images", "[0-9a-f]*"))
		return list
	}
	mounted := func(d *daemon) bool {
		b, err := os.ReadFile("/proc/self/mountinfo")
		return err == nil && strings.Contains(string(b), filepath.Join(d.data(), "disks"))
	}

	began := time.Now()
	deploy(maker)
	t.Logf("deployed by a boot, with the root disk made of the registry's layers, in %v", time.Since(began))
	if a := reads(maker, 0, ""); !right(a, 0) {
		t.Fatalf("where it was made: %d, %v", a.status, a.err)
	}
	eventually(t, "the snapshot in the store", time.Minute, func() error {
		_, err := inStore(maker)
		return err
	})
	maker.down()

	other := start(t, append(settings, "store_wait = '3s'", "store_fill_rate = 1", "store_cache_mib = 0")...)
	began = time.Now()
	deploy(other)
	t.Logf("deployed from the store in %v", time.Since(began))
	if a := reads(other, 0, ""); !right(a, 0) || a.header.Get(api.HeaderStart) != string(api.StartRestore) {
		t.Errorf("read late: a %s, %d, %v", a.header.Get(api.HeaderStart), a.status, a.err)
	}
	if s, err := inStore(other); err != nil || s.Here || s.Arriving == nil || s.Arriving.Done >= s.Arriving.Total || len(images(other)) > 0 || !mounted(other) {
		t.Errorf("in the store: %+v, %v; images here: %v", s, err, images(other))
	} else {
		t.Logf("a file of 12 MiB was read with %d of %d bytes here", s.Arriving.Done, s.Arriving.Total)
	}

	s3.Kill()
	began = time.Now()
	if a := reads(other, 1, ""); a.status != 503 || !strings.Contains(a.body, "root disk") || !strings.Contains(a.body, "object store is not to be reached") {
		t.Errorf("from a dead store: %d, %v: %.400s", a.status, a.err, a.body)
	} else {
		t.Logf("after %v: %s", time.Since(began), a.body)
	}
	other.gone("late")
	if a := reads(other, 1, api.StartRestore); a.status != 503 || !strings.Contains(a.body, "object store") {
		t.Errorf("a restore from a dead store: %d, %.400s", a.status, a.body)
	}

	other.kill()
	if !mounted(other) {
		t.Error("nothing is mounted after SIGKILL: nothing is left to clear away")
	}
	s3.Start(t)
	other.up()
	if mounted(other) {
		t.Error("what a killed daemon had mounted is there still")
	}
	if a := reads(other, 1, ""); !right(a, 1) || a.header.Get(api.HeaderStart) != string(api.StartRestore) {
		t.Errorf("read after all: a %s, %d, %v", a.header.Get(api.HeaderStart), a.status, a.err)
	}
	if !mounted(other) {
		t.Error("it was not read late")
	}
	eventually(t, "all of it", 4*time.Minute, func() error {
		s, err := inStore(other)
		if err == nil && !s.Here {
			err = fmt.Errorf("it is here to %+v", s.Arriving)
		}
		return err
	})
	if len(images(other)) != 1 {
		t.Errorf("images here: %v", images(other))
	}
	s3.Kill()
	if a := reads(other, 2, api.StartRestore); !right(a, 2) {
		t.Errorf("from what is here: %d, %v", a.status, a.err)
	}
	if a := reads(other, 2, ""); !right(a, 2) { // by the one that has its disk open since before
		t.Errorf("from what has come: %d, %v", a.status, a.err)
	}
}
