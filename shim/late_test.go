package shim

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/tree"
)

// What may be secret, or differs between the pods of a specification, comes late.
func TestWhatComesLate(t *testing.T) {
	const pod = "/var/lib/kubelet/pods/u"
	for _, tt := range []struct {
		at   mount
		late bool
	}{
		{mount{Path: "/run/secrets/x", Source: "/x"}, true},
		{mount{Path: "/var/run/secrets", Source: "/x"}, true},
		{mount{Path: "/etc/tls", Source: pod + "/volumes/kubernetes.io~secret/tls"}, true},
		{mount{Path: "/x", Source: pod + "/volumes/kubernetes.io~projected/kube-api-access-x"}, true},
		{mount{Path: "/x", Source: pod + "/volumes/kubernetes.io~csi/x/mount"}, true},
		{mount{Path: "/x", Source: pod + "/volumes/kubernetes.io~downward-api/x"}, true},
		{mount{Path: "/x", Source: pod + "/volume-subpaths/x/c/0"}, true},
		{mount{Path: "/x", Source: pod + "/volumes/kubernetes.io~configmap/c"}, false},
		{mount{Path: "/run/secretsofmine", Source: "/x"}, false},
		{mount{Path: "/etc/nginx/nginx.conf", Source: "/srv/nginx.conf"}, false},
	} {
		c := container{Mounts: []mount{tt.at}}
		if len(c.late()) == 1 != tt.late || len(c.prompt()) == 1 == tt.late {
			t.Errorf("%+v: late %v, prompt %v", tt.at, c.late(), c.prompt())
		}
	}
}

func TestHollow(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a", []byte("a secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", dir+"/b"); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var packed, out bytes.Buffer
	if err := tree.Pack(root, ".", "s", &packed); err != nil {
		t.Fatal(err)
	}
	if err := hollow(&packed, &out); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out.Bytes(), []byte("a secret")) {
		t.Error("a secret is in there")
	}
	found := map[string]*tar.Header{}
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h
	}
	if a, b := found["s/a"], found["s/b"]; a == nil || a.Size != 0 || a.Mode != 0o600 || b == nil || b.Linkname != "a" {
		t.Errorf("there are %+v", found)
	}
}

// What is held comes out whole and in order, or not at all.
func TestHeldOutput(t *testing.T) {
	h := newHeld()
	var one, two bytes.Buffer
	a, b := h.writer(&one), h.writer(&one)
	io.WriteString(a, "1")
	io.WriteString(b, "2")
	io.WriteString(h.writer(&two), "x")
	if one.Len()+two.Len() > 0 {
		t.Error("it is not held")
	}
	h.release()
	io.WriteString(a, "3")
	io.WriteString(h.writer(&two), "y")
	if one.String() != "123" || two.String() != "xy" {
		t.Errorf("%q, %q", one.String(), two.String())
	}
	much := newHeld()
	one.Reset()
	io.WriteString(much.writer(&one), strings.Repeat("x", maxHeld+1))
	if one.Len() != maxHeld+1 {
		t.Errorf("of too much %d bytes have come", one.Len())
	}
	if much.writer(nil) != nil {
		t.Error("nowhere is somewhere")
	}
}

// What comes with the clone message are the files that a container sees, by its paths:
// also below a kubelet's link to a directory, and none that a link leads out to.
func TestSmallFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"..1/token": "t", "..1/sub/ca": "c", "plain": "p"} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"..data": "..1", "token": "..data/token", "sub": "..data/sub", "same": "plain", "out": "/etc/passwd", "loop": "."} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	m := mount{Path: "/run/secrets/x", Source: dir}
	files, err := filesOf(m, guest.MaxCloneFiles)
	slices.SortFunc(files, func(a, b guest.File) int { return strings.Compare(a.Path, b.Path) })
	if got := fmt.Sprintf("%s", files); err != nil || got != "[{/run/secrets/x/plain p} {/run/secrets/x/sub/ca c} {/run/secrets/x/token t}]" {
		t.Errorf("%s, %v", got, err)
	}
	if one, err := filesOf(mount{Path: "/run/secrets/one", Source: filepath.Join(dir, "token")}, 100); err != nil || fmt.Sprintf("%s", one) != "[{/run/secrets/one t}]" {
		t.Errorf("one file: %s, %v", one, err)
	}
	if _, err := filesOf(m, guest.FilesLen(files)-1); !errors.Is(err, errLarge) {
		t.Errorf("a byte too much: %v", err)
	}
	if err := os.Symlink("..data/../../../../../../../etc/passwd", filepath.Join(dir, "sly")); err != nil {
		t.Fatal(err)
	}
	if files, err := filesOf(m, guest.MaxCloneFiles); err == nil {
		t.Errorf("a link that leads out is followed: %s", files)
	}
	// What would never end to be read, here or behind a kubelet's link.
	odd := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(odd, "..1"), 0o755), unix.Mkfifo(filepath.Join(odd, "..1/pipe"), 0o600),
		os.Symlink("..1", filepath.Join(odd, "..data")), os.Symlink("..data/pipe", filepath.Join(odd, "pipe"))); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{odd, filepath.Join(odd, "..1"), filepath.Join(odd, "pipe")} {
		if files, err := filesOf(mount{Path: "/run/secrets/x", Source: source}, guest.MaxCloneFiles); err == nil {
			t.Errorf("a pipe is taken for a file: %s", files)
		}
	}
}
