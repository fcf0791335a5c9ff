package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/testenv"
)

// What was withheld from a snapshot comes with the message that makes a clone: into the
// files that are there, and into none beside what the host delivers. When the host
// delivers all anew, nothing of the snapshot's is left.
func TestLateFiles(t *testing.T) {
	testenv.Need(t, "root")
	s := newStation(t)
	root := newRoot(t)
	s.mounts(root, guest.Mount{Path: "/run/secrets/x", Kind: guest.MountDirectory, Options: []string{"ro"}}, guest.Mount{Path: "/etc/key", Kind: guest.MountFile, Options: []string{"ro"}})
	source := t.TempDir()
	atomic(t, source+"/x", "..1", map[string]string{"token": "", "ca": ""})
	if err := errors.Join(os.WriteFile(source+"/key", nil, 0o600), s.deliver(source+"/x", "/run/secrets/x"), s.deliver(source+"/key", "/etc/key")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.fn.rehearseFiles([]string{"/run/secrets/x", "/etc/key", "/elsewhere"}),
		s.fn.deliveries.put(guest.File{Path: "/run/secrets/x/token", Data: []byte("longer than the next")}),
		s.fn.deliveries.put(guest.File{Path: "/run/secrets/x/token", Data: []byte("secret")}),
		s.fn.deliveries.put(guest.File{Path: "/etc/key", Data: []byte("key")})); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"/run/secrets/x/token": "secret", "/run/secrets/x/ca": "", "/etc/key": "key"} {
		if b, err := os.ReadFile(root + name); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
	if err := os.WriteFile(root+"/run/secrets/x/token", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("the container writes to it: %v", err)
	}
	for _, name := range []string{"/run/secrets/x/new", "/run/secrets/x", "/etc/passwd", "/run/secrets/x/../../../etc/key/x", "relative"} {
		if err := s.fn.deliveries.put(guest.File{Path: name, Data: []byte("x")}); err == nil {
			t.Errorf("%s was written", name)
		}
	}

	fresh := t.TempDir() // whose directory has another name, as each pod's
	atomic(t, fresh+"/x", "..2", map[string]string{"token": "renewed", "ca": "c"})
	if err := s.deliver(fresh+"/x", "/run/secrets/x"); err != nil {
		t.Fatal(err)
	}
	entries, err := filepath.Glob(root + "/run/secrets/x/..*")
	if b, rerr := os.ReadFile(root + "/run/secrets/x/token"); err != nil || rerr != nil || string(b) != "renewed" || strings.Contains(strings.Join(entries, " "), "..1") || len(entries) != 2 {
		t.Errorf("%q, %v, %v; there are %v", b, err, rerr, entries)
	}
}
