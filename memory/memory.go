// Package memory fills the memory of restored microVMs. It is the fifth
// station of a cold invocation: while package vmm starts the VMM's process, a
// policy's Session already fetches what the guest will need; handed the guest's
// userfaultfd, it installs pages and serves the faults that remain. It knows
// nothing of VMMs. Packages node, which opens sessions, and microvm call it.
//
// A policy is one file and one line in the table of Policies.
package memory

import (
	"context"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory/userfaultfd"
)

// Source is the guest memory of one published, verified snapshot.
type Source struct {
	SnapshotID string
	Path       string // the memory file: sparse, holes are zero pages
	Size       int64  // bytes; the file must be exactly this long
	// Open opens the snapshot's memory where it is not in a file, for each session anew;
	// nil for the file at Path. What the VMM maps itself must be a file.
	Open func(context.Context) (Pages, error)
	// ReadLimit is how long a guest waits for a page of what Open opens before it is ended;
	// 0: as for a file.
	ReadLimit time.Duration
	// Dir is where trace and working-set files of this snapshot live. They
	// belong to the snapshot and die with it.
	Dir string
}

// Policy decides how the memory of a restored instance is filled.
type Policy interface {
	// Name is what users select it by: "mmap", "resident", "reap".
	Name() string
	// Open begins one restore. It is called as soon as a request is known to need
	// one, before the VMM is started.
	Open(ctx context.Context, src Source) (Session, error)
}

// Session is the memory of one restored instance, from before its VMM starts
// until after it has ended. Close must be called exactly once, after the VMM's
// process is gone.
type Session interface {
	// Attach is nil-able through Mapped: when Mapped returns true the VMM maps
	// the memory file itself and Attach is never called.
	Mapped() bool
	// Attach takes over the guest's memory and begins to serve its faults; see
	// vmm.Memory.Attach for the contract.
	Attach(ctx context.Context, g userfaultfd.Guest) error
	// Prefetch begins to read, in the background, what the policy wants to have
	// there ahead of faults. It is called as soon as the instance waits for nobody
	// else any more to be started: what is read holds buffers that all share until
	// it is installed. Install does it where that was left out.
	Prefetch()
	// Install returns when the policy wants the vCPUs to resume.
	Install(ctx context.Context) error
	// Responded tells that the first invocation's response is complete: a
	// recording is frozen here, before the VMM's own shutdown can add to it.
	// Abandoned tells that there was none, or not all of it: what was recorded is
	// not what an invocation needs, and is dropped. The first of the three counts.
	Responded()
	Abandoned()
	// Tried tells instead that the request of a trial was answered, by which a
	// deployment sees that its snapshot works: what was recorded may be prefetched
	// until the first invocation has recorded what it needs.
	Tried() error
	// Failed is closed when memory can no longer be served: the owner must kill
	// the instance at once; Err says why. It is never closed for a Mapped session.
	Failed() <-chan struct{}
	Err() error
	Stats() api.MemoryStats
	Close() error
}
