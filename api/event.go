package api

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// EventKind says what an event tells, and which of its fields are set.
type EventKind string

const (
	// EventResync comes first, and whenever events were lost: what came before is not
	// told, and who keeps a state reads it anew. Reason says why.
	EventResync EventKind = "resync"
	// EventInstance is an instance in another state than before, with Reason once
	// it ends.
	EventInstance EventKind = "instance"
	// EventPhase is a phase of an instance's start that is over.
	EventPhase EventKind = "phase"
	// EventInvocation is the record of an invocation that has ended.
	EventInvocation EventKind = "invocation"
	// EventDeploy tells how far a deployment, or the making of a snapshot, is.
	EventDeploy EventKind = "deploy"
	// EventFunction is a function that was deployed, set or rolled back: Reason says
	// which. EventFunctionRemoved is one that is gone.
	EventFunction        EventKind = "function"
	EventFunctionRemoved EventKind = "function_removed"
	// EventSnapshot is a snapshot that was published, EventSnapshotRemoved one that
	// is gone.
	EventSnapshot        EventKind = "snapshot"
	EventSnapshotRemoved EventKind = "snapshot_removed"
)

// EventKinds are all there are.
var EventKinds = []EventKind{
	EventResync, EventInstance, EventPhase, EventInvocation, EventDeploy,
	EventFunction, EventFunctionRemoved, EventSnapshot, EventSnapshotRemoved,
}

// Event is one thing that happened in a node. No value of a function's environment
// is in it.
type Event struct {
	ID         string       `json:"id"` // where in the stream it is, to go on after it
	Time       time.Time    `json:"time"`
	Kind       EventKind    `json:"kind"`
	Function   string       `json:"function,omitempty"` // that it is about
	Reason     string       `json:"reason,omitempty"`
	Instance   *Instance    `json:"instance,omitempty"`   // of EventInstance, as it is then
	Phase      *StartPhase  `json:"phase,omitempty"`      // of EventPhase
	Invocation *Invocation  `json:"invocation,omitempty"` // of EventInvocation
	Deploy     *DeployEvent `json:"deploy,omitempty"`     // of EventDeploy
	Settings   *Function    `json:"settings,omitempty"`   // of EventFunction
	Snapshot   *Snapshot    `json:"snapshot,omitempty"`   // of EventSnapshot; of EventSnapshotRemoved its id alone
}

// StartPhase is a phase of an instance's start.
type StartPhase struct {
	Instance string        `json:"instance"`
	Name     string        `json:"name"` // one of PhaseNames, slot to init
	Took     time.Duration `json:"took_ns"`
}

// EventQuery selects events. The zero value is all, from now on.
type EventQuery struct {
	Function string      // about this one
	Kinds    []EventKind // of these kinds, and EventResync
	After    string      // those after the event with this id, as far as they are remembered; "": from now on
}

// Validate says which kind there is not.
func (q EventQuery) Validate() error {
	for _, k := range q.Kinds {
		if !slices.Contains(EventKinds, k) {
			var known []string
			for _, k := range EventKinds {
				known = append(known, string(k))
			}
			return fmt.Errorf("kind of event is %q: want %s", k, strings.Join(known, ", "))
		}
	}
	return nil
}

// Selects says whether the query selects an event.
func (q EventQuery) Selects(e Event) bool {
	if e.Kind == EventResync {
		return true
	}
	return (q.Function == "" || q.Function == e.Function) && (len(q.Kinds) == 0 || slices.Contains(q.Kinds, e.Kind))
}
