package memory

import (
	"context"
	"fmt"
	"os"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory/userfaultfd"
)

// mmapPolicy is the baseline: the VMM maps the memory file privately, and the
// host's kernel pages it in.
type mmapPolicy struct{}

func (mmapPolicy) Name() string { return "mmap" }

// Mapped says that under the policy of that name every VMM maps the memory file itself.
func Mapped(policy string) bool { return policy == mmapPolicy{}.Name() }

func (mmapPolicy) Open(_ context.Context, src Source) (Session, error) {
	return openMapped("mmap", src, "")
}

func openMapped(policy string, src Source, note string) (Session, error) {
	if src.Open != nil {
		return nil, fmt.Errorf("memory policy %s: the snapshot's memory is not in a file of this host, which the VMM could map", policy)
	}
	// The VMM would die of SIGBUS in the middle of the guest's run.
	st, err := os.Stat(src.Path)
	if err == nil && st.Size() != src.Size {
		err = fmt.Errorf("%s has %d bytes, the snapshot's memory %d: it was cut short or replaced; the snapshot is no longer usable", src.Path, st.Size(), src.Size)
	}
	if err != nil {
		return nil, fmt.Errorf("memory policy %s: %w", policy, err)
	}
	return mapped{api.MemoryStats{Policy: policy, Missed: -1, Wasted: -1, Note: note}}, nil
}

// mapped is a session that has nothing to do.
type mapped struct{ stats api.MemoryStats }

func (mapped) Mapped() bool { return true }
func (mapped) Attach(_ context.Context, g userfaultfd.Guest) error {
	g.FD.Close()
	return fmt.Errorf("memory policy mmap: the VMM maps the memory file itself")
}
func (mapped) Prefetch()                     {}
func (mapped) Install(context.Context) error { return nil }
func (mapped) Responded()                    {}
func (mapped) Abandoned()                    {}
func (mapped) Tried() error                  { return nil }
func (mapped) Failed() <-chan struct{}       { return nil }
func (mapped) Err() error                    { return nil }
func (m mapped) Stats() api.MemoryStats      { return m.stats }
func (mapped) Close() error                  { return nil }
