package shim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/shim/base"
)

// How a container's own process begins. Without a ready snapshot it is started in the
// guest that the create call has left. With one it runs there already, and goes on:
//
//	create  restore, held        start  clone message, attach, it answers
//
// The container that makes the snapshot is started from it as well, so that nothing
// of it is still a booted guest's, whose memory is a file:
//
//	create  boot, files          start  the process, it is ready, snapshot, restore, and as above
//
// Until then nobody can reach it, so that no client's request is in the snapshot, and
// none is lost with the guest that ends.

const (
	// For a process to be ready, of which a ready snapshot is to be made: where somebody
	// has said when it is, and where a port is taken for that, at which it may not serve.
	toldLimit    = time.Minute
	guessedLimit = 20 * time.Second

	answerLimit = 30 * time.Second // for one to answer that was restored
	// maxCloneNames bounds the texts that a clone is told, in bytes.
	maxCloneNames = 48 << 10
)

// lookForReady decides what the container has to do with ready snapshots, and says it.
func (r *room) lookForReady(ctx context.Context) (string, error) {
	// Before they are read for the key: what changes meanwhile is delivered again.
	if err := r.fresh.know(r.container.prompt()); err != nil {
		return "", err
	}
	plan, why, err := planReady(r.container, r.init.spec, r.wanted.Disk)
	if err != nil || plan == nil {
		return why, err
	}
	n, err := r.names()
	if err != nil {
		return "", err
	}
	if len(n.Hosts)+len(n.Resolv) > maxCloneNames {
		return "its /etc/hosts and /etc/resolv.conf are too long", nil
	}
	r.wanted.Port = portOf(r.container.Process.Env) // by Knative's contract it serves HTTP there
	ready, why, err := r.host.Ready(ctx, r.wanted, plan.key)
	if err != nil || ready == nil {
		return why, err
	}
	r.plan, r.ready = plan, ready
	if r.makes() {
		return "to be made", nil
	}
	return "there", nil
}

// fetchReady looks for the snapshot that is to be made in the object store.
func (r *room) fetchReady(ctx context.Context) (ready string) {
	began := time.Now()
	if err := r.ready.Fetch(ctx); err != nil {
		r.log.Info("booting rather than from a snapshot of the object store", "reason", err, "duration", time.Since(began))
		return "to be made"
	}
	return "from the object store"
}

func (s settings) makeLimit() time.Duration {
	if s.Port != 0 || len(s.ReadyCmd) > 0 {
		return toldLimit
	}
	return guessedLimit
}

func (r *room) makes() bool    { return r.ready != nil && !r.ready.There() }
func (r *room) restored() bool { return r.ready != nil && r.ready.There() }

// startGuest starts the guest that the container begins with.
func (r *room) startGuest(ctx context.Context) (*base.Guest, error) {
	if r.ready != nil {
		g, err := r.ready.Start(ctx, r.network)
		if err == nil {
			return g, nil
		}
		r.log.Warn("starting without a ready snapshot", "error", err)
		r.ready.Release()
		r.plan, r.ready = nil, nil
		if err := r.openPorts(); err != nil {
			return nil, err
		}
	}
	return r.host.Start(ctx, r.wanted)
}

func (r *room) openPorts() error {
	if !r.ports.Closed {
		return nil
	}
	r.ports.Closed = false
	return r.network.Open(r.ports)
}

// begin has the container's own process begin.
func (r *room) begin(ctx context.Context) error {
	p := r.init
	if r.plan == nil {
		ctx = r.steps.next(ctx, "process")
		defer r.host.Lane(ctx)()
		return p.start(ctx, r.dial)
	}
	if err := p.reserve(); err != nil {
		return err
	}
	r.turn.Lock()
	defer r.turn.Unlock()
	// Not the caller's, who may not wait that long.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	go func() {
		select {
		case <-r.ending:
			cancel(errEnded)
		case <-ctx.Done():
		}
	}()
	running, err := r.beginReady(ctx)
	r.ready.Release()
	if err == nil {
		err = r.openPorts()
	}
	if err != nil {
		return err
	}
	if running != nil {
		p.adopt(running)
	} else {
		p.goesOn()
		if isKnative(r.spec) { // whose request comes when queue-proxy has started, too
			go r.ask(r.events.ctx)
		}
	}
	r.keepFresh()
	return nil
}

func (r *room) beginReady(ctx context.Context) (*guest.Running, error) {
	if r.restored() {
		return r.goOn(ctx)
	}
	out := newHeld()
	running, err := r.init.run(r.steps.next(ctx, "process"), r.dial, r.plan.process, out.writer(r.init.io.stdout), out.writer(r.init.io.stderr))
	if err != nil {
		return nil, err
	}
	why := r.awaitReady(r.steps.next(ctx, "ready"), running, r.container.Settings.makeLimit())
	if why == nil {
		// Only what the key was made of may be in there.
		if key, err := readyKey(r.container, r.plan); err != nil || key != r.plan.key {
			why = errChanged
		}
	}
	if why == nil {
		return r.publish(ctx, running, out)
	}
	if ctx.Err() != nil {
		_ = running.Close()
		return nil, context.Cause(ctx)
	}
	late := r.container.late()
	if len(late) > 0 && !errors.Is(why, errHurry) && !succeeded(running) && r.asked(ctx) {
		_ = running.Close()
		return r.anew(ctx, fmt.Errorf("it has opened files whose content was to come later; %w", why))
	}
	out.release()
	r.log.Info("no ready snapshot is made", "why", why)
	if !errors.Is(why, errHurry) && !errors.Is(why, errChanged) {
		r.ready.GiveUp(why.Error())
	}
	if err := r.fresh.deliver(ctx, r.dial, late); err != nil && !isOver(running) {
		return nil, err
	}
	return running, nil
}

// publish makes the guest a ready snapshot, and goes on from that.
func (r *room) publish(ctx context.Context, running *guest.Running, out *held) (*guest.Running, error) {
	began := time.Now()
	r.part()
	g, err := r.ready.Publish(r.steps.next(ctx, "make ready snapshot"))
	drain(running)
	if err == nil {
		out.release()
		err = r.replace(g)
	}
	if err == nil {
		err = r.deliverLate(ctx)
	}
	if err != nil {
		return r.anew(ctx, err)
	}
	r.log.Info("ready snapshot made", "snapshot", g.Snapshot, "duration", time.Since(began))
	return r.goOn(ctx)
}

// drainLimit bounds how long output that has come is waited for.
const drainLimit = 5 * time.Second

// drain waits until all has come that a process wrote which the guest has parted from
// its connection.
func drain(r *guest.Running) {
	select {
	case <-r.Done():
	case <-time.After(drainLimit):
	}
	_ = r.Close()
}

func isOver(r *guest.Running) bool {
	select {
	case <-r.Done():
		return true
	default:
		return false
	}
}

// succeeded says that a process has ended with 0.
func succeeded(r *guest.Running) bool {
	if !isOver(r) {
		return false
	}
	exit, err := r.End(context.Background())
	return err == nil && exit.Code == 0
}

// replace gives the room another guest.
func (r *room) replace(g *base.Guest) error {
	if err := r.take(g); err != nil {
		return err
	}
	go r.watch(g)
	return nil
}

// goOn lets a process run on that stands still. It returns it when it has answered; where
// there is nothing to ask, nil at once: to attach to it can wait until it has started.
func (r *room) goOn(ctx context.Context) (*guest.Running, error) {
	running, err := r.wake(r.steps.next(ctx, "clone"), r.plan.probe.asks())
	if err == nil {
		if !r.plan.probe.asks() {
			return nil, nil
		}
		if err = r.awaitReady(r.steps.next(ctx, "answer"), running, answerLimit); err == nil || errors.Is(err, errHurry) {
			return running, nil
		}
		_ = running.Close()
	}
	return r.anew(ctx, err)
}

// wake tells the guest that it is a clone, and finds the process there, if that is
// wanted: at the same time, since each takes a guest its time in which all is cold.
func (r *room) wake(ctx context.Context, attach bool) (*guest.Running, error) {
	n, err := r.names()
	if err != nil {
		return nil, err
	}
	files, err := r.clonesFiles()
	if err != nil {
		return nil, err
	}
	g := r.current()
	if g == nil {
		return nil, errEnded
	}
	defer r.host.Lane(ctx)()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running *guest.Running
	attached := make(chan error, 1)
	go func() {
		var err error
		if attach {
			running, err = r.init.attach(ctx, r.dial)
		}
		attached <- err
	}()
	if err = g.VM.Clone(ctx, n, files); err != nil {
		cancel()
	}
	if aerr := <-attached; err == nil {
		return running, aerr
	}
	if running != nil {
		_ = running.Close()
	}
	return nil, err
}

// anew starts the container from a base snapshot after all. Nobody has been told yet
// that it runs.
func (r *room) anew(ctx context.Context, why error) (*guest.Running, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	r.log.Warn("starting without a ready snapshot", "error", why)
	r.ready.GiveUp(why.Error())
	r.ready = nil
	if g := r.part(); g != nil {
		g.Close()
	}
	g, err := r.host.Start(r.steps.next(ctx, "guest"), r.wanted)
	if err != nil {
		return nil, err
	}
	if err := r.replace(g); err != nil {
		return nil, err
	}
	if err := r.furnish(r.steps.next(ctx, "furnish")); err != nil {
		return nil, err
	}
	return r.init.run(r.steps.next(ctx, "process"), r.dial, r.init.spec, r.init.io.stdout, r.init.io.stderr)
}

// askedLimit bounds a request that asks for nothing.
const askedLimit = 5 * time.Second

// ask makes a request to the server that asks for nothing (OPTIONS *), where by Knative's
// contract it speaks HTTP. What any first request needs of it is in a ready snapshot then,
// and no clone has to make it; and a clone that is asked before its first request comes has
// what that needs where it needs it. Whether it answers is no condition.
func (r *room) ask(ctx context.Context) {
	g := r.current()
	if g == nil || r.wanted.Port == 0 || r.plan.probe.asks() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askedLimit)
	defer cancel()
	if err := g.VM.Ask(ctx); err != nil && !r.isEnding() {
		r.log.Debug("the server has not answered what asks for nothing", "error", err)
	}
}

// errHurry says that somebody wants the process to do something else than to get
// ready.
var (
	errHurry   = errors.New("it was sent a signal, or lost")
	errChanged = errors.New("its files have changed meanwhile")
)

// awaitReady waits until the container is ready, and says why it is not.
func (r *room) awaitReady(ctx context.Context, running *guest.Running, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it is not ready after %v", limit))
	defer cancel()
	p := prober{probe: r.plan.probe, process: r.plan.process, dial: r.network.Dial}
	ready := make(chan error, 1)
	go func() {
		err := p.until(ctx)
		if err == nil && r.makes() {
			r.ask(ctx)
		}
		ready <- err
	}()
	var why error
	select {
	case err := <-ready:
		return err
	case <-r.init.hurry:
		why = errHurry
	case <-running.Done():
		why = errors.New("its process has ended before it was ready")
		if _, err := running.End(ctx); err != nil {
			why = errHurry
		}
	}
	cancel()
	<-ready
	return why
}
