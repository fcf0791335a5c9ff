package agent

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// tree makes a root with some files; a value that begins with "->" is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLookUpUser(t *testing.T) {
	dir := tree(t, map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\nweb:x:33:34::/srv:\n7:x:70:71::/seven:\nhuge:x:4294967295:1::/:\n",
		"etc/group":  "root:x:0:\nweb:x:34:\nmedia:x:44:other,web\nbroken\n",
	})
	for _, c := range []struct {
		spec string
		want identity
		err  string
	}{
		{"", identity{home: "/root"}, ""},
		{"root", identity{home: "/root"}, ""},
		{"web", identity{uid: 33, gid: 34, groups: []uint32{44}, home: "/srv"}, ""},
		{"33", identity{uid: 33, gid: 34, groups: []uint32{44}, home: "/srv"}, ""},
		{"web:media", identity{uid: 33, gid: 44, home: "/srv"}, ""},
		{"web:9", identity{uid: 33, gid: 9, home: "/srv"}, ""},
		{"1000", identity{uid: 1000, home: "/"}, ""},
		{"1000:1001", identity{uid: 1000, gid: 1001, home: "/"}, ""},
		{"nobody", identity{}, "not in its /etc/passwd"},
		{"web:nobody", identity{}, "not in its /etc/group"},
		{"huge", identity{}, "not in its /etc/passwd"},
		{"-1", identity{}, "not in its /etc/passwd"},
	} {
		got, err := lookUpUser(dir, c.spec)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v, want %q", c.spec, err, c.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v, %v; want %+v", c.spec, got, err, c.want)
		}
	}
	if got, err := lookUpUser(t.TempDir(), "5"); err != nil || got.uid != 5 {
		t.Errorf("in an image without users: %+v, %v", got, err)
	}
}

func TestEnvironment(t *testing.T) {
	s := guest.Start{Instance: "i", Port: 80, Env: []string{"A=1", "PATH=/x", "broken", "=y", "A=2", "PORT=9"}}
	want := []string{"PATH=/x", "HOME=/h", "A=2", "PORT=80"}
	if got := environment(s, identity{home: "/h"}); !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLookPath(t *testing.T) {
	dir := tree(t, map[string]string{"bin/a": "x", "usr/bin/b": "->/bin/a", "srv/c": "x", "bin/out": "->/../../../../../../bin/sh"})
	if err := os.WriteFile(filepath.Join(dir, "bin/plain"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, path, want string }{
		{"a", "", "/bin/a"},
		{"b", "", "/usr/bin/b"},
		{"./c", "", "./c"},
		{"c", "PATH=/none:.", "/srv/c"},
		{"c", "PATH=/bin", ""},
		{"plain", "", ""}, // not executable
		{"bin", "PATH=/", ""},
		{"out", "", ""}, // no such file within the root
	} {
		var env []string
		if c.path != "" {
			env = []string{c.path}
		}
		got, err := lookPath(dir, "/srv", c.name, env)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s with %q: %q, %v; want %q", c.name, c.path, got, err, c.want)
		}
	}
}

func TestDirInRoot(t *testing.T) {
	dir := tree(t, map[string]string{"real/file": "x", "link": "->/real", "out": "->/../../../../tmp", "loop": "->loop", "file": "x"})
	for _, c := range []struct{ name, want string }{
		{"/real", "real"},
		{"/link/new/deep", "real/new/deep"},
		{"/a/b", "a/b"},
		{"/loop", ""},
		{"/file", ""},
		{"/out", ""}, // leads to nothing in the root
	} {
		f, err := dirInRoot(dir, c.name)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s is opened", c.name)
				f.Close()
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got, err := os.Readlink(inFD(f))
		if err != nil || got != filepath.Join(dir, c.want) {
			t.Errorf("%s is %s, %v; want %s", c.name, got, err, c.want)
		}
		f.Close()
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ old, name, before, after string }{
		{"i-1", "i-2", "a i-1\ni-1i-1", "a i-2\ni-2i-2"},
		{"i-1", "longer", "x i-1 y", "x longer y"},
		{"longer", "s", "x longer y", "x s y"},
		{"i-1", "i-2", "", ""},
		{"i-1", "i-2", strings.Repeat("i-1 ", maxIdentity), strings.Repeat("i-1 ", maxIdentity)}, // too long
	} {
		f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		f.WriteString(c.before)
		n := &names{files: []*os.File{f}, instance: c.old, buf: make([]byte, maxIdentity)}
		if err := n.change(c.name); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(f.Name()); string(got) != c.after {
			t.Errorf("%.30q with %s for %s: %.30q, want %.30q", c.before, c.name, c.old, got, c.after)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for name, want := range map[string]unix.Signal{"": unix.SIGTERM, "SIGINT": unix.SIGINT, "quit": unix.SIGQUIT, "9": unix.SIGKILL, "nonsense": unix.SIGTERM, "0": unix.SIGTERM} {
		if got := stopSignal(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

func TestOutputDropsTheOldest(t *testing.T) {
	o := newOutput()
	end := make(chan struct{})
	o.stateChanged()
	for i := range 20 {
		o.put(guest.KindStdout, []byte(strings.Repeat(string(rune('a'+i)), outputLimit/10)))
	}
	var got string
	var dropped int64
	for {
		c, ok := o.next(end)
		if !ok {
			t.Fatal("the output ended")
		}
		if c.data == nil && c.dropped == 0 {
			break // the state, after all output
		}
		dropped += c.dropped
		if c.data != nil {
			got += string(c.data[:1])
		}
	}
	if got != "klmnopqrst" || dropped != 10*(outputLimit/10) {
		t.Errorf("got %s, %d bytes dropped", got, dropped)
	}
}

func TestOutputHeldForTheNextLink(t *testing.T) {
	o := newOutput()
	first, second := make(chan struct{}), make(chan struct{})
	o.hold(first)
	o.put(guest.KindStdout, []byte("later"))
	ended := make(chan bool)
	go func() {
		_, ok := o.next(first)
		ended <- ok
	}()
	close(first)
	if <-ended {
		t.Error("the link that was held got something")
	}
	if c, ok := o.next(second); !ok || string(c.data) != "later" {
		t.Errorf("the next one got %q, %v", c.data, ok)
	}
}
