package agent

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// newInitStation is one with this machine's files once more as the root, with a
// /proc that may be replaced.
func newInitStation(t *testing.T) *station {
	t.Helper()
	s := newStation(t)
	root := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	for _, m := range []mount{{"/", root, "", unix.MS_BIND, ""}, {"", root, "", unix.MS_PRIVATE, ""}, {"proc", root + "/proc", "proc", 0, ""}} {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			t.Fatal(err)
		}
	}
	s.fn.root = root
	t.Cleanup(func() {
		if s.fn.pids != nil {
			s.fn.pids.fd.Close()
		}
	})
	return s
}

// refused is an error of a process's start that says this.
func (s *station) refused(p guest.Process, says string) {
	s.t.Helper()
	if _, err := guest.Exec(s.ctx(), s.dial(), p, nil, nil); err == nil || !strings.Contains(err.Error(), says) {
		s.t.Errorf("%q: %v, want an error with %q", p.Argv, err, says)
	}
}

// A container's process is the first of a PID namespace with a /proc of its own;
// what is run later is in there, too, and ends with it.
func TestInit(t *testing.T) {
	s := newInitStation(t)
	s.refused(guest.Process{ID: "first", Argv: []string{"/none/such"}, Init: true}, "no such program")
	// One that cannot be run leaves nothing of its namespace.
	text := t.TempDir() + "/text"
	if err := os.WriteFile(text, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.refused(guest.Process{ID: "first", Argv: []string{text}, Init: true}, "exec format")
	if out, errs, exit := s.run(guest.Process{ID: "x", Argv: []string{"cat", "/proc/self/comm"}}); out != "cat\n" {
		t.Errorf("after one that could not be run /proc has %q %s %+v", out, errs, exit)
	}

	first := s.exec(guest.Process{ID: "first", Argv: []string{"cat"}, Stdin: true, Init: true, Keep: true}, io.Discard, nil)
	out, errs, exit := s.run(guest.Process{ID: "x", Argv: []string{"cat", "/proc/1/cmdline", "/proc/self/stat"}})
	// Its threads, and who has mounted /proc, have had the numbers before it.
	if after, ok := strings.CutPrefix(out, "cat\x00"); !ok || strings.Index(after, " ") > 2 {
		t.Errorf("beside the first process /proc has %q %s %+v", out, errs, exit)
	}
	if out, errs, exit := s.run(guest.Process{ID: "x", Argv: []string{"cat", "/proc/1/cmdline"}, Rlimits: []guest.Rlimit{{Type: "RLIMIT_CORE"}}}); out != "cat\x00" {
		t.Errorf("with limits of its own it sees %q %s %+v", out, errs, exit)
	}
	s.refused(guest.Process{ID: "y", Argv: []string{"cat"}, Init: true}, "there can be one")
	var got bytes.Buffer
	beside := s.exec(guest.Process{ID: "x", Argv: []string{"cat"}, Stdin: true}, &got, nil)
	// The kernel keeps from a first process what it does not handle.
	if err := first.Signal(int(unix.SIGTERM), guest.ToProcess); err != nil {
		t.Error(err)
	}
	if err := first.CloseStdin(); err != nil {
		t.Error(err)
	}
	if exit, err := first.Wait(s.ctx()); err != nil || exit.Code != 0 {
		t.Errorf("the end of the first: %+v, %v", exit, err)
	}
	if exit, err := beside.Wait(s.ctx()); err != nil || exit.Signal != int(unix.SIGKILL) {
		t.Errorf("the end of what was beside it: %+v, %v", exit, err)
	}
	s.refused(guest.Process{ID: "z", Argv: []string{"cat"}}, "has ended")
}

// What a first process is sent before it runs ends it, unless it handles that by then.
func TestInitBeginning(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		n      unix.Signal
		want   guest.ProcessExit
	}{
		"not handled": {"echo begun; read x; exit 3", unix.SIGTERM, guest.ProcessExit{Code: 143, Signal: 15}},
		"handled":     {"trap 'exit 7' TERM; echo begun; read x; exit 3", unix.SIGTERM, guest.ProcessExit{Code: 7}},
		"ignored":     {"trap '' TERM; echo begun; read x; exit 3", unix.SIGTERM, guest.ProcessExit{Code: 3}},
		"harmless":    {"echo begun; read x; exit 3", unix.SIGWINCH, guest.ProcessExit{Code: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newInitStation(t)
			begun := make(chan struct{})
			r := s.exec(guest.Process{ID: "first", Argv: []string{"sh", "-c", tt.script}, Stdin: true, Init: true, Keep: true}, closer{begun}, nil)
			<-begun
			if err := r.Signal(int(tt.n), guest.ToBeginning); err != nil {
				t.Error(err)
			}
			if err := r.CloseStdin(); err != nil {
				t.Error(err)
			}
			exit, err := r.Wait(s.ctx())
			if exit.UnixNano = 0; err != nil || exit != tt.want {
				t.Errorf("%+v, %v, want %+v", exit, err, tt.want)
			}
		})
	}
}

// closer closes a channel at the first write, which is the only one.
type closer struct{ c chan struct{} }

func (c closer) Write(p []byte) (int, error) {
	close(c.c)
	return len(p), nil
}

// By force the first process ends as any other does, and all with it.
func TestInitKilled(t *testing.T) {
	s := newInitStation(t)
	first := s.exec(guest.Process{ID: "first", Argv: []string{"sh", "-c", "sleep 1000; true"}, Init: true, Keep: true}, nil, nil)
	var out bytes.Buffer
	beside := s.exec(guest.Process{ID: "x", Argv: []string{"sh", "-c", "sleep 1000; true"}}, &out, nil)
	if err := first.Signal(int(unix.SIGKILL), guest.ToProcess); err != nil {
		t.Error(err)
	}
	for who, r := range map[string]*guest.Running{"the first": first, "what was beside it": beside} {
		if exit, err := r.Wait(s.ctx()); err != nil || exit.Signal != int(unix.SIGKILL) || exit.Code != 137 {
			t.Errorf("the end of %s: %+v, %v", who, exit, err)
		}
	}
}
