package node

import (
	"fmt"
	"slices"

	"github.com/skep-dev/skep/api"
)

// transitions of an instance. Whatever ends one goes through draining, in which
// it gets no new request; stopped means that all it held is released.
//
//	starting ──▶ idle ◀──▶ busy
//	    │          │         │
//	    └──────────┴────┬────┘
//	                    ▼
//	                draining ──▶ stopped
var transitions = map[api.InstanceState][]api.InstanceState{
	api.InstanceStarting: {api.InstanceIdle, api.InstanceDraining},
	api.InstanceIdle:     {api.InstanceBusy, api.InstanceDraining},
	api.InstanceBusy:     {api.InstanceIdle, api.InstanceDraining},
	api.InstanceDraining: {api.InstanceStopped},
	api.InstanceStopped:  {},
}

// TransitionError is a step that the state machine does not have: a bug.
type TransitionError struct{ From, To api.InstanceState }

func (e *TransitionError) Error() string {
	return fmt.Sprintf("an instance cannot go from %s to %s", e.From, e.To)
}

// next returns to, or an error when an instance cannot go there.
func next(from, to api.InstanceState) (api.InstanceState, error) {
	if !slices.Contains(transitions[from], to) {
		return from, &TransitionError{from, to}
	}
	return to, nil
}
