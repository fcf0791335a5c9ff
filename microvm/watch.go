package microvm

import (
	"context"
	"errors"
	"fmt"
)

// Wait returns when the microVM cannot go on, or ctx ends, and says why.
func (v *VM) Wait(ctx context.Context) error {
	var exited <-chan struct{} // nil: never
	if v.agent != nil {
		exited = v.agent.Exited()
	}
	return v.wait(ctx, exited)
}

func (v *VM) wait(ctx context.Context, exited <-chan struct{}) error {
	var done, failed <-chan struct{}
	if v.machine != nil {
		done = v.machine.Done()
	}
	session := v.session
	if session != nil && !session.Mapped() {
		failed = session.Failed()
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-failed:
		return fmt.Errorf("its memory cannot be served any more: %w", orUnknown(session.Err()))
	case <-done:
		// A fault that cannot be served may be why the machine is gone.
		select {
		case <-failed:
			return fmt.Errorf("its memory cannot be served any more: %w", orUnknown(session.Err()))
		default:
		}
		return fmt.Errorf("its VMM ended: %w", orUnknown(v.machine.Err()))
	case <-exited:
		return fmt.Errorf("%w: %w", ErrExited, orUnknown(v.agent.ExitErr()))
	}
}

var errUnknown = errors.New("without saying why")

func orUnknown(err error) error {
	if err == nil {
		return errUnknown
	}
	return err
}

// While derives a context that ends, with the reason, when the microVM cannot go
// on: so that nothing waits for one that is gone. The returned function must be
// called.
func (v *VM) While(ctx context.Context) (context.Context, func()) { return during(ctx, v.Wait) }

// guard is the same for the machine and its memory alone. The agent's own calls
// tell when the server exits.
func (v *VM) guard(ctx context.Context) (context.Context, func()) {
	return during(ctx, func(ctx context.Context) error { return v.wait(ctx, nil) })
}

func during(ctx context.Context, wait func(context.Context) error) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		cancel(wait(ctx))
	}()
	return ctx, func() {
		cancel(nil)
		<-over
	}
}
