package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/cause"
	"github.com/skep-dev/skep/memory"
)

const (
	// checkLimit is how long a function that is ready has to answer a request that
	// comes from outside its guest: see answerLimit.
	checkLimit = 10 * time.Second
	// settle is for how long it has to go on running then, before it is taken for
	// one that does.
	settle = time.Second
)

// check makes a request to an instance that was started to see whether it works,
// the way that a client's will come: ready by the agent's account, its server may
// listen on the guest's loopback alone. long: it must also go on for a while.
func (n *Node) check(ctx context.Context, inst *instance, long bool) error {
	ctx, stop := inst.vm.While(ctx)
	defer stop()
	err := inst.answersOutside(ctx)
	if err == nil && long {
		select {
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-time.After(settle):
		}
	}
	if err == nil {
		return nil
	}
	return &StartError{Function: inst.dep.fn.Name, Instance: inst.id, Err: cause.Because(ctx, err), Logs: inst.vm.LastLines()}
}

// answerLimit is checkLimit, and more as ready_timeout is beyond its default, for
// hosts that are slower than that.
func (i *instance) answerLimit() time.Duration {
	return max(checkLimit, i.dep.fn.ReadyTimeout.D()/6)
}

func (i *instance) answersOutside(ctx context.Context) error {
	limit := i.answerLimit()
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	err := i.vm.Answers(limited)
	switch port := i.dep.fn.Port; {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return err
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("it is ready but cannot be reached: does its server listen on 127.0.0.1 only? It must listen on port %d of all addresses (0.0.0.0): %w", port, err)
	default:
		return fmt.Errorf("it is ready but does not answer requests: its server must speak HTTP/1.1, or HTTP/2 without TLS (h2c), on port %d: %w", port, err)
	}
}

// tryRestored starts an instance from the snapshot that was just made, whose place is
// reserved, and checks it, with the function's rehearsal where it has one. What it touched until then is
// kept for the first start. It returns what its own start has taken.
func (n *Node) tryRestored(ctx context.Context, p *pool, d *deployment) (time.Duration, error) {
	t, err := n.try(ctx, p, d, api.StartRestore)
	if err != nil {
		return 0, notRestored(err)
	}
	defer t.end()
	took := time.Since(t.created)
	if err := n.check(t.ctx, t.instance, false); err != nil {
		return 0, notRestored(err)
	}
	if err := n.rehearse(t.ctx, t.instance); err != nil {
		return 0, err
	}
	t.vm.WithSession(func(s memory.Session) {
		if err := s.Tried(); err != nil { // the first start is slower
			n.log.Warn("keeping what a trial touched", "function", d.fn.Name, "instance", t.id, "snapshot", t.snapshot, "error", err)
		}
	})
	return took, nil
}

// rehearse makes the request that the function's snapshots are tried with, if it has one.
func (n *Node) rehearse(ctx context.Context, inst *instance) error {
	r, limit := inst.dep.fn.Rehearsal, inst.dep.fn.Timeout
	if r.IsZero() {
		return nil
	}
	ctx, stop := inst.vm.While(ctx)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, limit.D(), fmt.Errorf("no whole answer within %v (timeout)", limit))
	defer cancel()
	if err := inst.rehearse(ctx, r); err != nil {
		err = fmt.Errorf("rehearsing %v, restored from its snapshot: %w", r, cause.Because(ctx, err))
		return &StartError{Function: inst.dep.fn.Name, Instance: inst.id, Err: err, Logs: inst.vm.LastLines()}
	}
	return nil
}

// rehearsed is how much of a bad answer to a rehearsal is told, in bytes.
const rehearsed = 300

func (i *instance) rehearse(ctx context.Context, r api.Rehearsal) error {
	req, err := r.Request("http://" + i.dep.fn.Name)
	if err != nil {
		return err
	}
	resp, err := i.vm.Transport(false).RoundTrip(req.WithContext(ctx))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	head, err := io.ReadAll(io.LimitReader(resp.Body, rehearsed))
	if err == nil && resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("it is answered with %s: %q", resp.Status, head)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return err
}

func notRestored(err error) error {
	return fmt.Errorf("it answers when it is booted, but not when it is restored from its snapshot (mend that, or deploy it without one: snapshot.off): %w", err)
}
