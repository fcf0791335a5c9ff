package agent

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// rootOf makes a root with some files; a value that begins with "->" is a link.
func rootOf(t *testing.T, files map[string]string) string {
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
	dir := rootOf(t, map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\nweb:x:33:34::/srv:\n7:x:70:71::/seven:\nhuge:x:4294967295:1::/:\nodd:x:a:1::/:\nshort:x:8:9\n",
		"etc/group":  "root:x:0:\nweb:x:34:\nmany:x:45:" + strings.Repeat("member,", 20_000) + "web\nmedia:x:44:other,web\nbroken\n",
	})
	for _, c := range []struct {
		spec string
		want identity
		err  string
	}{
		{"", identity{home: "/root"}, ""},
		{"root", identity{home: "/root"}, ""},
		{"web", identity{uid: 33, gid: 34, groups: []uint32{45, 44}, home: "/srv"}, ""},
		{"web:", identity{uid: 33, gid: 34, groups: []uint32{45, 44}, home: "/srv"}, ""},
		{"33", identity{uid: 33, gid: 34, groups: []uint32{45, 44}, home: "/srv"}, ""},
		{"7", identity{uid: 7, home: "/"}, ""}, // and not the user of that name
		{"short", identity{uid: 8, gid: 9, home: "/"}, ""},
		{"web:media", identity{uid: 33, gid: 44, home: "/srv"}, ""},
		{"web:9", identity{uid: 33, gid: 9, home: "/srv"}, ""},
		{"1000", identity{uid: 1000, home: "/"}, ""},
		{"1000:1001", identity{uid: 1000, gid: 1001, home: "/"}, ""},
		{"nobody", identity{}, "not in its /etc/passwd"},
		{"web:nobody", identity{}, "not in its /etc/group"},
		{"huge", identity{}, "not in its /etc/passwd"},
		{"odd", identity{}, "not in its /etc/passwd"}, // and never root
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
	// A line that is cut would say another id.
	long := "web:x:1000:1000::/:\n"
	long = "#" + strings.Repeat(".", maxAccounts-len(long)+4) + "\n" + long
	if got, err := lookUpUser(rootOf(t, map[string]string{"etc/passwd": long}), "web"); err == nil || !strings.Contains(err.Error(), "/etc/passwd") {
		t.Errorf("in an image whose users are too many to be read: %+v, %v", got, err)
	}
	if got, err := lookUpUser(t.TempDir(), "5"); err != nil || got.uid != 5 {
		t.Errorf("in an image without users: %+v, %v", got, err)
	}
}

func TestEnvironment(t *testing.T) {
	s := guest.Start{Instance: "i", Port: 80, Env: []string{"A=1", "PATH=/x", "broken", "=y", "A=2", "PORT=9", "HOME="}}
	want := []string{"PATH=/x", "HOME=/h", "A=2", "PORT=80"}
	if got := environment(s, identity{home: "/h"}); !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestLookPath(t *testing.T) {
	dir := rootOf(t, map[string]string{"bin/a": "x", "usr/bin/b": "->/bin/a", "srv/c": "x", "bin/out": "->/../../../../../../bin/sh"})
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
	dir := rootOf(t, map[string]string{"real/file": "x", "link": "->/real", "out": "->/../../../../tmp", "loop": "->loop", "file": "x",
		"deep/er/file": "x", "into": "->deep/er", "later": "->/made/later", "beside": "->also/made/", "round": "->no/../round"})
	for _, c := range []struct{ name, want string }{
		{"", ""},
		{"real/../link", "real"}, // relative to the root
		{"//real/.//", "real"},
		{"/../../real", "real"}, // the root is its own parent
		{"/into/..", "deep"},    // the parent of where the link leads, as the kernel has it
		{"/into/../new", "deep/new"},
		{"/later/x", "made/later/x"}, // links to what is missing
		{"/beside", "also/made"},
		{"/round", "!"},
		{"/real", "real"},
		{"/link/new/deep", "real/new/deep"},
		{"/a/b", "a/b"},
		{"/loop", "!"},
		{"/file", "!"},
		{"/file/x", "!"},
		{"/out", "tmp"}, // in the root
	} {
		f, err := dirInRoot(dir, c.name)
		if c.want == "!" {
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

func TestWorkDir(t *testing.T) {
	dir := rootOf(t, map[string]string{"srv/app/file": "x", "link": "->/srv"})
	for name, want := range map[string]string{"": "/", "/": "/", "/link/app": "/srv/app", "link/new": "/srv/new", "/a/b/": "/a/b"} {
		f, path, err := workDir(dir, name)
		if err != nil || path != want {
			t.Errorf("%q: %q, %v; want %q", name, path, err, want)
			continue
		}
		f.Close()
		if st, err := os.Stat(dir + path); err != nil || st.Mode() != os.ModeDir|0o755 {
			t.Errorf("%q: %v, %v", name, st.Mode(), err)
		}
	}
	_, _, err := workDir(dir, "/srv/app/file/x")
	if err == nil || !strings.Contains(err.Error(), "the working directory /srv/app/file/x") {
		t.Errorf("a file for a directory: %v", err)
	}
}

func TestExplain(t *testing.T) {
	dir := rootOf(t, map[string]string{"bin/script": "#!/bin/none\n"})
	if err := os.WriteFile(filepath.Join(dir, "bin/plain"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		err  error
		want string
	}{
		{"/bin/none", unix.ENOENT, "no such program"},
		{"./none", unix.ENOENT, "no such program"},
		{"./script", unix.ENOENT, "not the interpreter"},
		{"script", unix.ENOEXEC, "this machine's processor"},
		{"/bin/plain", unix.EACCES, "no file that may be executed"},
		{"/bin/script", unix.EACCES, "permission denied"},
	} {
		err := explain(dir, "/bin", c.path, c.err)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path+" in the directory /bin") {
			t.Errorf("%s: %v: %q, want %q", c.path, c.err, err, c.want)
		}
	}
}

func TestTmp(t *testing.T) {
	dir := t.TempDir()
	tmp := filepath.Join(dir, "tmp")
	for _, want := range []os.FileMode{0o777 | os.ModeSticky | os.ModeDir, 0o700 | os.ModeDir} {
		if err := makeTmp(dir); err != nil {
			t.Error(err)
		}
		if st, err := os.Stat(tmp); err != nil || st.Mode() != want {
			t.Errorf("%v, %v; want %v", st.Mode(), err, want)
		}
		if err := os.Chmod(tmp, 0o700); err != nil { // as an image may have it
			t.Fatal(err)
		}
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
		if err := replace(f, make([]byte, maxIdentity), c.old, c.name); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(f.Name()); string(got) != c.after {
			t.Errorf("%.30q with %s for %s: %.30q, want %.30q", c.before, c.name, c.old, got, c.after)
		}
	}
}

// The clock goes forward to what it is told, and never back.
func TestAdvance(t *testing.T) {
	for _, c := range []struct{ at, to, want int64 }{{100, 150, 150}, {100, 50, 100}, {100, 100, 100}} {
		clock := c.at
		got, err := advance(c.to, func() int64 { return clock }, func(n int64) error { clock = n; return nil })
		if got != c.want || clock != c.want || err != nil {
			t.Errorf("at %d, told %d: it is %d and said to be %d, %v; want %d", c.at, c.to, clock, got, err, c.want)
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
