package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/api"
)

const (
	// probeLimit is how long an instance on probation has to show that it answers.
	// A server that takes one request at a time works on the abandoned one first.
	probeLimit = 10 * time.Second
	// maxTimeouts is how many requests in a row an instance may leave without an
	// answer, whatever it answers to probes in between: there are servers that
	// answer those beside a handler that hangs.
	maxTimeouts = 2
)

// probeAgent names probes to the function's server, which may want to tell them
// from requests.
const probeAgent = "skep-probe"

// suspect puts an instance on probation whose request was left or not answered in
// time: it is not lent until it has answered a probe, and ends if it does not.
// Others serve meanwhile, and may be started. The mutex is held.
func (p *pool) suspect(inst *instance) {
	if inst.probation || inst.alone != nil || inst.state == api.InstanceDraining || inst.state == api.InstanceStopped {
		return
	}
	inst.probation, inst.suspected = true, time.Now()
	p.dropFree(inst)
	p.n.spawn(func() { p.probe(inst) }) // if the node drains it ends anyway
}

// probe ends an instance's probation.
func (p *pool) probe(inst *instance) {
	ctx, cancel := context.WithTimeoutCause(inst.ctx, probeLimit, fmt.Errorf("no answer to a probe within %v", probeLimit))
	defer cancel()
	err := inst.answers(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if inst.ctx.Err() == nil {
			p.end(inst, fmt.Errorf("%w: after a request that was left or not answered in time: %w", errHangs, err), false)
		}
		return
	}
	inst.probation = false
	if inst.returns() && inst.active < inst.dep.fn.Concurrency {
		p.setFree(inst)
		p.armJanitor()
	}
	p.pump()
}

// answers asks the function's server for a sign of life, the way that a client's
// request goes, until it gives one or ctx ends: a 2xx at its ready path. Without
// a path any answer will do, to a request that asks for nothing: OPTIONS * is
// HTTP's own ping. Whether it is refused, or in HTTP/2, who answers is alive.
func (i *instance) answers(ctx context.Context) error {
	pause := 10 * time.Millisecond
	for {
		err := i.ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return because(ctx, err)
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		}
	}
}

func (i *instance) ask(ctx context.Context) error {
	err := i.askOver(ctx, false)
	if err != nil && ctx.Err() == nil && !errors.Is(err, syscall.ECONNREFUSED) && i.dep.fn.ReadyPath == "" {
		if i.askOver(ctx, true) == nil { // with prior knowledge: a server of gRPC has nothing else
			return nil
		}
	}
	return err
}

func (i *instance) askOver(ctx context.Context, h2 bool) error {
	fn := &i.dep.fn
	req := &http.Request{Method: http.MethodOptions, URL: &url.URL{Scheme: "http", Host: fn.Name, Opaque: "*"}}
	if fn.ReadyPath != "" {
		u, err := url.Parse("http://" + fn.Name + "/" + strings.TrimPrefix(fn.ReadyPath, "/"))
		if err != nil {
			return err
		}
		req.Method, req.URL = http.MethodGet, u
	}
	req.Header = http.Header{"User-Agent": {probeAgent}}
	req.Close = true // the next connection may be the only one that the server takes
	resp, err := i.transports.get(h2).RoundTrip(req.WithContext(ctx))
	if err != nil {
		return err
	}
	resp.Body.Close()
	if fn.ReadyPath != "" && resp.StatusCode/100 != 2 {
		return fmt.Errorf("GET %s is answered with %s", fn.ReadyPath, resp.Status)
	}
	return nil
}
