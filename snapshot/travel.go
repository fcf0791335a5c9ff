package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/vmm"
)

// Fit is a digest of all that must be equal for a snapshot to match (see Match): who looks for
// one among many knows by it which manifests to read. That a host's processor has what
// another's has is no equality, and not in it.
func (w Want) Fit() string {
	v := []any{w.Function, w.ImageDigest, w.DiskDigest, w.GuestKernel, w.Initramfs, w.Spec, w.VCPUs, w.MemoryMiB, w.VMM.Name, line(w.VMM), w.VMM.Accel, w.VMM.Machine}
	if w.VMM.Accel != accelTCG {
		v = append(v, w.HostKernel, w.CPU.Vendor, w.CPU.Model)
	}
	b, _ := json.Marshal(v) // strings and numbers only
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func line(i vmm.Info) string {
	if i.Line != "" {
		return i.Line
	}
	return i.Version
}

// Fit is the digest that a Want has which the snapshot matches.
func (m *Manifest) Fit() string {
	return Want{Function: m.Function, ImageDigest: m.ImageDigest, DiskDigest: m.DiskDigest, GuestKernel: m.GuestKernel, Initramfs: m.Initramfs, Spec: m.Spec,
		HostKernel: m.HostKernel, VCPUs: m.VCPUs, MemoryMiB: m.MemoryMiB, VMM: m.VMM, CPU: m.CPU}.Fit()
}

// Take returns a snapshot, checked like Newest does, whatever it may be used for.
func (s *Store) Take(ctx context.Context, id string) (*Snapshot, error) {
	e, err := s.get(id)
	if err != nil {
		return nil, err
	}
	return s.use(ctx, e, nil)
}

// Receive makes a place for a snapshot that was made elsewhere. The caller puts its parts there
// and what belongs into its trace directory, then calls Adopt, or else Abort.
func (s *Store) Receive(m Manifest) (*Staging, error) {
	staged, err := atomicfile.Stage(s.dir, m.ID)
	if err != nil {
		return nil, fmt.Errorf("receiving snapshot %s: %w", m.ID, explainFull(err))
	}
	g := &Staging{ID: m.ID, Function: m.Function, Dir: staged.Dir, store: s, staged: staged}
	if err := os.Mkdir(g.Trace(), 0o700); err != nil {
		g.Abort()
		return nil, fmt.Errorf("receiving snapshot %s: %w", m.ID, err)
	}
	return g, nil
}

// Trace is the path of the directory that a received snapshot brings its trace in.
func (g *Staging) Trace() string { return filepath.Join(g.Dir, traceName) }

// Adopt publishes a received snapshot, if its parts are what its manifest says. One of
// its id that is here already is as good, and no error. When it fails nothing is left.
func (g *Staging) Adopt(ctx context.Context, m Manifest) (api.Snapshot, error) {
	var out api.Snapshot
	err := fmt.Errorf("publishing snapshot %s: it is published or aborted already", g.ID)
	g.once.Do(func() {
		out, err = g.adopt(ctx, m)
		_ = g.staged.Close()
		if err != nil {
			err = fmt.Errorf("publishing snapshot %s: %w", g.ID, explainFull(err))
		}
	})
	return out, err
}

func (g *Staging) adopt(ctx context.Context, m Manifest) (api.Snapshot, error) {
	if err := m.validate(); err != nil {
		return api.Snapshot{}, err
	}
	for _, name := range []string{PartState, PartMemory} {
		if err := sealAs(ctx, g.Dir, name, m); err != nil {
			return api.Snapshot{}, err
		}
	}
	e, err := g.put(ctx, m)
	if errors.Is(err, fs.ErrExist) {
		there, err := g.store.get(m.ID)
		if err != nil {
			return api.Snapshot{}, errors.New("it was removed here, and is still in use: it can come again when that is over")
		}
		return there.describe(nil), nil
	}
	if err != nil {
		return api.Snapshot{}, err
	}
	return e.describe(nil), nil
}
