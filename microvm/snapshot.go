package microvm

import (
	"context"

	"github.com/skep-dev/skep/internal/cause"
)

// Snapshot writes the microVM's device state and puts its memory at those new
// paths. It must have been booted and have no requests. It does not survive this,
// whether it works or not: Close is all that is left.
func (v *VM) Snapshot(ctx context.Context, state, memory string) error {
	guarded, stop := v.guard(ctx)
	defer stop()
	// Connections that are open now would be open, to nobody, in every clone.
	v.conns.close()
	if err := v.agent.Prepare(guarded); err != nil {
		return cause.Because(guarded, err)
	}
	if err := v.machine.Pause(guarded); err != nil {
		return cause.Because(guarded, err)
	}
	if err := v.machine.Snapshot(guarded, state, memory); err != nil {
		return cause.Because(guarded, err)
	}
	stop()
	return v.machine.Kill() // it writes to the memory file until then
}
