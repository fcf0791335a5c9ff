package shim

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/guest"
)

// begun is a process of a guest that says nothing any more once that is started.
func begun(t *testing.T, id string) *proc {
	t.Helper()
	p := newProc(id, guest.Process{Argv: []string{"/app"}}, "", "", "")
	p.io = newStdio("")
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		if _, _, err := guest.ReadFrame(theirs, guest.FromExecHost, nil); err == nil {
			_ = guest.WriteFrame(theirs, guest.KindStarted, guest.EncodeCount(7))
		}
		_, _ = io.Copy(io.Discard, theirs) // until the shim closes it
	}()
	if err := p.start(t.Context(), func(context.Context) (io.ReadWriteCloser, error) { return ours, nil }); err != nil {
		t.Fatal(err)
	}
	return p
}

// A guest that is gone closes no connection: its processes have ended all the same,
// the container's own as the last.
func TestGuestIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		init, exec := begun(t, ""), begun(t, "e")
		later := newProc("later", guest.Process{Argv: []string{"/app"}}, "", "", "") // was not started
		ev := newEvents(t.Context(), nowhere{})
		r := &room{id: "c", init: init, execs: map[string]*proc{"e": exec, "later": later}, over: make(chan struct{}), ending: make(chan struct{}), events: ev, spec: &specs.Spec{}, begun: beginning{writing: new(sync.WaitGroup)}, log: slog.New(slog.DiscardHandler)}
		go r.await()
		go r.awaitExec(exec)
		there, stop := r.while(t.Context())
		defer stop()
		r.finish(r.lost(), time.Now()) // as watch does
		for _, p := range []*proc{init, exec} {
			if status, code, _ := p.status(); status != task.Status_STOPPED || code != 137 {
				t.Errorf("process %q is %v with code %d, want it stopped with 137", p.id, status, code)
			}
		}
		if status, _, _ := later.status(); status != task.Status_CREATED {
			t.Errorf("a process that was not started is %v", status)
		}
		synctest.Wait()
		if there.Err() == nil {
			t.Error("what needs the guest goes on")
		}
		ev.close()
	})
}
