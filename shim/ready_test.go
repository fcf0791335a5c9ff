package shim

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/image"
)

func planned(t *testing.T, c container, img image.Config) (*readyPlan, string) {
	t.Helper()
	p, why, err := planReady(c, c.Process, image.Image{Config: img})
	if err != nil {
		t.Fatal(err)
	}
	return p, why
}

// When a container is ready is what its annotations say, or else its port answers.
func TestWhenReady(t *testing.T) {
	env := func(v ...string) guest.Process { return guest.Process{Argv: []string{"/app"}, Env: v} }
	for name, tt := range map[string]struct {
		c       container
		exposed []string
		want    probe
	}{
		"nothing":              {c: container{Process: env("PATH=/bin")}},
		"PORT":                 {c: container{Process: env("PORT=8080")}, want: probe{Port: 8080}},
		"no port":              {c: container{Process: env("PORT=http")}},
		"the image's":          {exposed: []string{"53/udp", "80/tcp"}, want: probe{Port: 80}},
		"the image's, two":     {exposed: []string{"80/tcp", "443"}},
		"annotation over all":  {c: container{Process: env("PORT=8080"), Settings: settings{Port: 9}}, exposed: []string{"80/tcp"}, want: probe{Port: 9}},
		"PORT over the image":  {c: container{Process: env("PORT=8080")}, exposed: []string{"80/tcp"}, want: probe{Port: 8080}},
		"a path":               {c: container{Process: env("PORT=8080"), Settings: settings{ReadyPath: "/h"}}, want: probe{Port: 8080, Path: "/h"}},
		"a path without port":  {c: container{Settings: settings{ReadyPath: "/h"}}},
		"a command and a port": {c: container{Process: env("PORT=8080"), Settings: settings{ReadyCmd: []string{"x"}}}, want: probe{Port: 8080, Command: []string{"x"}}},
	} {
		if got := probeOf(tt.c, image.Config{Exposed: tt.exposed}); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

// What may be secret is in no ready snapshot, unless its owner says that it is not.
func TestSecretsMakeNone(t *testing.T) {
	ofImage := []string{"PATH=/bin", "LANG=C"}
	for _, tt := range []struct {
		env  []string
		use  snapshotUse
		tty  bool
		want string // why there is none; "": there is one
	}{
		{env: []string{"PATH=/usr/bin", "LANG=C", "PORT=80", "HOSTNAME=x", "K_SERVICE=s"}},
		{env: []string{"KUBERNETES_SERVICE_HOST=10.0.0.1", "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_SERVICE_PORT_HTTPS=443", "KUBERNETES_PORT=tcp://10.0.0.1:443",
			"KUBERNETES_PORT_443_TCP=tcp://10.0.0.1:443", "KUBERNETES_PORT_443_TCP_PROTO=tcp", "KUBERNETES_PORT_443_TCP_PORT=443", "KUBERNETES_PORT_443_TCP_ADDR=fd00::1"}},
		{env: []string{"LANG=de"}, want: "LANG"},
		{env: []string{"PASSWORD=x", "TOKEN=y"}, want: "PASSWORD, TOKEN"},
		{env: []string{"DB_PORT=s3cret"}, want: "DB_PORT"},
		{env: []string{"DB_SERVICE_HOST=user:pw@10.0.0.1"}, want: "DB_SERVICE_HOST"},
		{env: []string{"PASSWORD=x"}, use: snapshotReady},
		{use: snapshotBase, want: "base"},
		{use: snapshotOff, want: "off"},
		{tty: true, want: "terminal"},
	} {
		c := container{Process: guest.Process{Argv: []string{"/app"}, Env: tt.env, TTY: tt.tty}, Settings: settings{Port: 80, Snapshot: tt.use}}
		p, why := planned(t, c, image.Config{Env: ofImage})
		if (p == nil) != (tt.want != "") || !strings.Contains(why, tt.want) {
			t.Errorf("%+v: %+v, %q, want %q", tt, p, why, tt.want)
		}
		if p != nil {
			for _, v := range p.process.Env {
				if strings.HasPrefix(v, "HOSTNAME=") {
					t.Errorf("it is told %s", v)
				}
			}
		}
	}
}

// Containers share a snapshot that are the same but for what a clone is told.
func TestReadyKey(t *testing.T) {
	pod := func(name, stamp, text string) string {
		dir := filepath.Join(t.TempDir(), name, "volumes/kubernetes.io~configmap/c")
		if err := os.MkdirAll(filepath.Join(dir, ".."+stamp), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{os.WriteFile(filepath.Join(dir, ".."+stamp, "a"), []byte(text), 0o644),
			os.Symlink(".."+stamp, filepath.Join(dir, "..data")), os.Symlink("..data/a", filepath.Join(dir, "a"))} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	secret := func(text string) string {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	one := func() container {
		return container{Hostname: "one", Process: guest.Process{Argv: []string{"/app"}, Env: []string{"PATH=/bin", "PORT=1", "PORT=80", "HOSTNAME=one"}, IDs: &guest.IDs{UID: 1}},
			Settings: settings{Port: 80, Policy: "reap"}, NetNS: "/one", Cgroup: "/one",
			Mounts: []mount{{Path: "/etc/c", Source: pod("one", "2026", "text"), Flags: []string{"ro"}}, {Path: "/etc/hosts", Source: hosts}, {Path: "/tmp"}, {Path: "/run/secrets/s", Source: secret("one")}}}
	}
	key := func(change func(*container)) string {
		t.Helper()
		c := one()
		change(&c)
		p, why := planned(t, c, image.Config{})
		if p == nil {
			t.Fatal(why)
		}
		return p.key
	}
	same := key(func(*container) {})
	for name, change := range map[string]func(*container){
		"names": func(c *container) {
			c.Hostname, c.Process.Env = "two", []string{"PATH=/bin", "PORT=1", "PORT=80", "HOSTNAME=two"}
		},
		"their order": func(c *container) { c.Process.Env = []string{"PORT=1", "HOSTNAME=one", "PORT=80", "PATH=/bin"} },
		"place":       func(c *container) { c.NetNS, c.Cgroup, c.Settings.Policy = "/two", "/two", "lazy" },
		"the times":   func(c *container) { c.Mounts[0].Source = pod("two", "2027", "text") },
		"its hosts":   func(c *container) { c.Mounts[1].Source = "/other" },
		"secrets":     func(c *container) { c.Mounts[3].Source = secret("other") },
	} {
		if key(change) != same {
			t.Errorf("%s: another key", name)
		}
	}
	for name, change := range map[string]func(*container){
		"a variable":  func(c *container) { c.Process.Env = []string{"PATH=/x", "PORT=1", "PORT=80"} },
		"the last":    func(c *container) { c.Process.Env = []string{"PATH=/bin", "PORT=80", "PORT=1"} },
		"an argument": func(c *container) { c.Process.Argv = []string{"/app", "-x"} },
		"the user":    func(c *container) { c.Process.IDs = &guest.IDs{UID: 2} },
		"its input":   func(c *container) { c.Process.Stdin = true },
		"a text":      func(c *container) { c.Mounts[0].Source = pod("two", "2026", "other") },
		"a mount":     func(c *container) { c.Mounts = c.Mounts[:2] },
		"when ready":  func(c *container) { c.Settings.ReadyPath = "/h" },
		"its limit":   func(c *container) { c.ProcessesMiB = 100 },
		"its CPUs":    func(c *container) { c.CPUs = 0.5 },
		"its root":    func(c *container) { c.ReadOnly = true },
		"a sysctl":    func(c *container) { c.Sysctls = map[string]string{"a": "b"} },
	} {
		if key(change) == same {
			t.Errorf("%s: the same key", name)
		}
	}
}

// A server that is not there yet, or says that it is not ready, is asked again.
func TestProbeAsksUntilReady(t *testing.T) {
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked++; {
		case asked < 3:
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		case r.URL.String() != "/health?x=1" || r.UserAgent() != "skep-probe":
			t.Errorf("asked for %s by %s", r.URL, r.UserAgent())
		default:
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}
	}))
	defer s.Close()
	dialled := 0
	p := prober{probe: probe{Port: 80, Path: "/health?x=1"}, dial: func(ctx context.Context, port int) (net.Conn, error) {
		if dialled++; port != 80 {
			t.Errorf("dialling port %d", port)
		}
		if dialled < 3 {
			return nil, errors.New("refused")
		}
		return net.Dial("tcp", s.Listener.Addr().String())
	}}
	if err := p.until(t.Context()); err != nil || asked != 3 {
		t.Errorf("%v, asked %d times", err, asked)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	p.Path = ""
	p.dial = func(context.Context, int) (net.Conn, error) { cancel(why); return nil, io.EOF }
	if err := p.until(ctx); !errors.Is(err, why) || !errors.Is(err, io.EOF) {
		t.Errorf("given up: %v", err)
	}
}

// A command that asks is run as the container's process, but is not that: it is not
// the first of a PID namespace once more, and has no terminal or input.
func TestReadyCommand(t *testing.T) {
	ran := make(chan guest.Process, 1)
	p := prober{probe: probe{Command: []string{"/bin/check", "-q"}}, dial: func(context.Context, int) (net.Conn, error) {
		host, agent := net.Pipe()
		go func() {
			defer agent.Close()
			var got guest.Process
			k, b, err := guest.ReadFrame(agent, guest.FromExecHost, nil)
			if err != nil || k != guest.KindExec || guest.Decode(b, &got) != nil {
				t.Errorf("frame of kind %d, %q, %v", k, b, err)
			}
			ran <- got
			_ = guest.WriteFrame(agent, guest.KindStarted, guest.EncodeCount(7))
			_ = guest.WriteFrame(agent, guest.KindEnded, guest.ProcessExit{}.Encode())
		}()
		return host, nil
	}}
	p.process = guest.Process{ID: "init", Argv: []string{"/app"}, Env: []string{"A=1"}, IDs: &guest.IDs{UID: 7}, Init: true, Keep: true, Stdin: true, TTY: true}
	if err := p.until(t.Context()); err != nil {
		t.Error(err)
	}
	if got, want := <-ran, (guest.Process{ID: "ready-1", Argv: []string{"/bin/check", "-q"}, Env: []string{"A=1"}, IDs: &guest.IDs{UID: 7}}); !reflect.DeepEqual(got, want) {
		t.Errorf("it runs %+v, want %+v", got, want)
	}
}

// What a process is sent while it is started waits until it runs.
func TestSignalsWait(t *testing.T) {
	p := newProc("", guest.Process{Argv: []string{"/app"}}, "", "", "")
	p.io = newStdio("")
	if err := p.signal(15, false); !errors.Is(err, errNotStarted) {
		t.Errorf("before its start: %v", err)
	}
	if err := p.reserve(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint32{15, 9} {
		if err := p.signal(n, n == 9); err != nil {
			t.Error(err)
		}
	}
	select {
	case <-p.hurry:
	default:
		t.Error("nobody is told to hurry")
	}
	host, agent := net.Pipe()
	type sent struct {
		number int
		to     guest.SignalTo
	}
	frames := make(chan sent, 2)
	go func() {
		defer agent.Close()
		if k, _, err := guest.ReadFrame(agent, guest.FromExecHost, nil); err != nil || k != guest.KindAttach {
			t.Errorf("frame of kind %d, %v", k, err)
		}
		_ = guest.WriteFrame(agent, guest.KindStarted, guest.EncodeCount(7))
		for range 2 {
			_, b, err := guest.ReadFrame(agent, guest.FromExecHost, nil)
			n, to, err2 := guest.DecodeSignal(b)
			if err != nil || err2 != nil {
				t.Error(err, err2)
			}
			frames <- sent{n, to}
		}
	}()
	r, err := p.attach(t.Context(), func(context.Context) (io.ReadWriteCloser, error) { return host, nil })
	if err != nil {
		t.Fatal(err)
	}
	p.adopt(r)
	for _, want := range []sent{{15, guest.ToBeginning}, {9, guest.ToAll}} {
		select {
		case got := <-frames:
			if got != want {
				t.Errorf("it is sent %v, want %v", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatal("it is sent nothing")
		}
	}
	_ = r.Close()
}

func TestReadyAnnotations(t *testing.T) {
	for v, want := range map[string][]string{
		"test -e /ready":           {"/bin/sh", "-c", "test -e /ready"},
		`["/bin/check", "-q", ""]`: {"/bin/check", "-q", ""},
		"":                         nil, "[]": nil, `[""]`: nil, `["x"`: nil,
	} {
		s, err := readSettings(map[string]string{annotationCommand: v})
		if (err == nil) != (want != nil) || err == nil && !reflect.DeepEqual(s.ReadyCmd, want) {
			t.Errorf("%q: %q, %v", v, s.ReadyCmd, err)
		}
	}
	for v, ok := range map[string]bool{"/healthz": true, "/a?b=c": true, "": false, "healthz": false, "/a#b": false, "/%zz": false} {
		if _, err := readSettings(map[string]string{annotationPath: v}); (err == nil) != ok {
			t.Errorf("%q: %v", v, err)
		}
	}
}
