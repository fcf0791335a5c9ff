package testenv

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// recorder is a testing.TB that keeps what a test would have said, and runs its
// own cleanups.
type recorder struct {
	testing.TB
	said     strings.Builder
	failed   bool
	cleanups []func()
}

type stopped struct{}

func (r *recorder) Helper()                  {}
func (r *recorder) Cleanup(f func())         { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Skipf(f string, a ...any) { r.say("skip: "+f, a...); panic(stopped{}) }
func (r *recorder) Fatalf(f string, a ...any) {
	r.failed = true
	r.say("fatal: "+f, a...)
	panic(stopped{})
}
func (r *recorder) Errorf(f string, a ...any) { r.failed = true; r.say("error: "+f, a...) }
func (r *recorder) say(f string, a ...any)    { r.said.WriteString(fmt.Sprintf(f, a...) + "\n") }

// run calls fn and then the cleanups, and returns what was said.
func (r *recorder) run(fn func(t testing.TB)) string {
	func() {
		defer func() {
			if p := recover(); p != nil {
				if _, ok := p.(stopped); !ok {
					panic(p)
				}
			}
		}()
		fn(r)
	}()
	for i := len(r.cleanups) - 1; i >= 0; i-- {
		r.cleanups[i]()
	}
	return r.said.String()
}

func TestNeedSkipsWithCureAndFailsWhenRequired(t *testing.T) {
	t.Setenv("SKEP_FIRECRACKER", "/nonexistent/firecracker")
	for _, tc := range []struct{ require, want string }{
		{"", "skip: needs firecracker"},
		{"root,uffd", "skip: needs firecracker"},
		{"root,firecracker", "fatal: firecracker is required here"},
		{"all", "fatal: firecracker is required here"},
	} {
		t.Setenv(RequireEnv, tc.require)
		got := new(recorder).run(func(t testing.TB) { Need(t, "firecracker") })
		if !strings.HasPrefix(got, tc.want) || !strings.Contains(got, "SKEP_FIRECRACKER") {
			t.Errorf("with %q required: %q, want %q and the cure", tc.require, got, tc.want)
		}
	}
	if got := new(recorder).run(func(t testing.TB) { Need(t, "unicorn") }); !strings.HasPrefix(got, "fatal") {
		t.Errorf("an unknown need: %q", got)
	}
}

func TestEveryProbeAnswers(t *testing.T) {
	NoLeaks(t)
	for name, n := range needs {
		if n.cure == "" {
			t.Errorf("%s has no cure", name)
		}
		t.Logf("%s: %v", name, n.probe())
	}
}

func TestNoLeaksSeesThem(t *testing.T) {
	stop := make(chan struct{})
	var keep *os.File
	var child *exec.Cmd
	for _, tc := range []struct {
		name string
		leak func(t testing.TB)
		mend func()
		want string
	}{
		{"nothing", func(testing.TB) {}, func() {}, ""},
		{"goroutine", func(testing.TB) { go func() { <-stop }() }, func() { close(stop) }, "found unexpected goroutines"},
		{"descriptor", func(t testing.TB) { keep, _ = os.Open("/dev/null") }, func() { keep.Close() }, "/dev/null"},
		{"child", func(t testing.TB) {
			child = exec.CommandContext(context.Background(), "sleep", "60")
			child.Env = []string{"SKEP_TESTENV=mark"}
			if err := child.Start(); err != nil {
				t.Errorf("starting: %v", err)
			}
		}, func() { child.Process.Kill(); child.Wait() }, "process"},
		{"what ends by itself", func(testing.TB) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				l.Close()
			}
		}, func() {}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := new(recorder).run(func(t testing.TB) {
				NoLeaks(t, Leaks{ProcessMark: "SKEP_TESTENV=mark"})
				tc.leak(t)
			})
			tc.mend()
			if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
				t.Errorf("said %q, want %q", got, tc.want)
			}
		})
	}
}
