package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/skep-dev/skep/api"
)

// TestOthersReadNothing looks, as a user without rights, for what can be read or
// written of a daemon that has an instance and a snapshot of a function with a
// secret.
func TestOthersReadNothing(t *testing.T) {
	d := start(t)
	d.hello("hello", "--env", "DB_PASSWORD=hunter2")
	if a := d.invoke(api.InvokeRequest{Function: "hello", Path: "/"}); a.err != nil || a.status != 200 {
		t.Fatalf("%+v", a)
	}
	// The way there is open, so that what is found closed is closed by itself.
	for dir := d.dir; dir != filepath.Dir(os.TempDir()) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	as := func(args ...string) (string, error) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out bytes.Buffer
		cmd.Stdout = &out
		err := cmd.Run()
		return out.String(), err
	}
	if out, err := as("ls", d.dir); err != nil || out == "" {
		t.Fatalf("nobody does not get as far as %s: %v", d.dir, err)
	}
	open, _ := as("find", d.dir, "-mindepth", "1", "(", "-readable", "-o", "-writable", ")")
	if open != "" {
		t.Errorf("nobody may read or write:\n%s", open)
	}
	if _, err := as("cat", filepath.Join(d.data(), "skep.db")); err == nil {
		t.Error("nobody has read the database")
	}
}
