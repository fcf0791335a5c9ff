package main

import (
	"archive/tar"
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/guest"
)

type fakeVisit struct{ net.Conn }

func (fakeVisit) Instance() string { return "i-0123456789abcdef" }
func (fakeVisit) Err() error       { return nil }

// inGuest lets the control API's fake have an instance whose agent is that.
func inGuest(t *testing.T, agent func(k guest.Kind, payload []byte, c net.Conn)) string {
	t.Helper()
	socket, n := fakeDaemon(t)
	n.Visits = func(string, string) (control.Visit, error) {
		host, c := net.Pipe()
		go func() {
			defer c.Close()
			if k, p, err := guest.ReadFrame(c, guest.FromExecHost, nil); err == nil {
				agent(k, p, c)
			}
		}()
		return fakeVisit{host}, nil
	}
	return socket
}

func TestExecVerb(t *testing.T) {
	asked := make(chan guest.Process, 1)
	answers := make(chan func(net.Conn), 1)
	socket := inGuest(t, func(_ guest.Kind, p []byte, c net.Conn) {
		var got guest.Process
		if err := guest.Decode(p, &got); err != nil {
			t.Error(err)
		}
		asked <- got
		(<-answers)(c)
	})
	exits := func(e guest.ProcessExit) func(net.Conn) {
		return func(c net.Conn) {
			guest.WriteFrame(c, guest.KindStarted, guest.EncodeCount(7))
			guest.WriteFrame(c, guest.KindStdout, []byte("out"))
			guest.WriteFrame(c, guest.KindStderr, []byte("err"))
			guest.WriteFrame(c, guest.KindEnded, e.Encode())
		}
	}
	refuses := func(why guest.Refusal) func(net.Conn) {
		return func(c net.Conn) {
			guest.WriteFrame(c, guest.KindRefused, (&guest.RefusedError{Why: why, Text: "no such"}).Encode())
		}
	}
	for name, c := range map[string]struct {
		answer         func(net.Conn)
		code           int
		stdout, stderr string
	}{
		"done":           {exits(guest.ProcessExit{}), 0, "out", "err"},
		"status":         {exits(guest.ProcessExit{Code: 42}), 42, "out", "err"},
		"signal":         {exits(guest.ProcessExit{Code: 143, Signal: 15}), 143, "out", "err"},
		"no memory":      {exits(guest.ProcessExit{Code: 137, Signal: 9, OOM: true}), 137, "out", "errskep: the command was killed: the guest had no memory left\n"},
		"not found":      {refuses(guest.RefusedNotFound), 127, "", "skep: no such\n"},
		"not executable": {refuses(guest.RefusedNotExecutable), 126, "", "skep: no such\n"},
		"lost":           {func(net.Conn) {}, 1, "", "skep: the guest's agent is gone"},
	} {
		answers <- c.answer
		code, stdout, stderr := skep(t, socket, "exec", "-u", "me", "-w", "/d", "-e", "A=1", "echo", "--", "cmd", "-t", "--", "x")
		if code != c.code || stdout != c.stdout || !strings.HasPrefix(stderr, c.stderr) {
			t.Errorf("%s: %d, %q, %q", name, code, stdout, stderr)
		}
		if got := <-asked; got.User != "me" || got.Dir != "/d" || strings.Join(got.Env, " ") != "A=1" || strings.Join(got.Argv, " ") != "cmd -t -- x" || got.TTY || got.Stdin {
			t.Errorf("%s: the guest was asked for %+v", name, got)
		}
	}
	for _, args := range [][]string{{"exec", "echo"}, {"exec", "-it", "echo", "sh"}, {"cp", "a", "b"}, {"cp", "a:/b", "c:/d"}} {
		if code, _, stderr := skep(t, socket, args...); code != exitUsage {
			t.Errorf("%q: %d, %s", args, code, stderr)
		}
	}
}

func TestCopyVerb(t *testing.T) {
	dir := t.TempDir()
	type copied struct {
		to    string
		names []string
	}
	in := make(chan copied, 1)
	socket := inGuest(t, func(k guest.Kind, p []byte, c net.Conn) {
		if k == guest.KindCopyOut {
			if strings.HasSuffix(string(p), "/.") {
				guest.WriteFrame(c, guest.KindRefused, (&guest.RefusedError{Text: "none"}).Encode())
				return
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, name := range []string{"got", "got/f", "other"} {
				w.WriteHeader(&tar.Header{Name: name, Typeflag: map[bool]byte{true: tar.TypeDir, false: tar.TypeReg}[name == "got"], Mode: 0o755})
			}
			w.Close()
			guest.WriteFrame(c, guest.KindData, b.Bytes())
			guest.WriteFrame(c, guest.KindCopied, nil)
			return
		}
		got := copied{to: string(p)}
		var b bytes.Buffer
		for {
			k, p, err := guest.ReadFrame(c, guest.FromExecHost, nil)
			if err != nil || k == guest.KindEOF {
				break
			}
			b.Write(p)
		}
		for r := tar.NewReader(&b); ; {
			h, err := r.Next()
			if err != nil {
				break
			}
			got.names = append(got.names, h.Name)
		}
		in <- got
		guest.WriteFrame(c, guest.KindCopied, nil)
		io.Copy(io.Discard, c)
	})
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{"/etc/new": "/etc new", "/etc/": "/etc/ file"} {
		code, _, stderr := skep(t, socket, "cp", filepath.Join(dir, "file"), "echo:"+target)
		if got := <-in; code != 0 || got.to+" "+strings.Join(got.names, " ") != want {
			t.Errorf("%s: %d, %s; %+v", target, code, stderr, got)
		}
	}
	if code, _, stderr := skep(t, socket, "cp", "echo:/a/got", filepath.Join(dir, "new")); code != 0 {
		t.Errorf("%d, %s", code, stderr)
	}
	if code, _, stderr := skep(t, socket, "cp", "echo:/a/got", dir); code != 0 {
		t.Errorf("%d, %s", code, stderr)
	}
	all, _ := filepath.Glob(dir + "/*/*")
	if e, _ := os.ReadDir(dir); len(e) != 3 || len(all) != 2 { // file, new, got; a file in each; no other
		t.Errorf("there are %v, %v", e, all)
	}
}
