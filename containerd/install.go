package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// record is what an installation leaves in DataDir: what it did, to undo just
// that.
type record struct {
	// Files are the programs and settings that were put there, with their digests: two,
	// where the one is to replace the other.
	Files map[string][]string `json:"files"`
	// Kernel says that the guest kernel was fetched.
	Kernel bool `json:"kernel,omitempty"`
}

const recordFile = "install.json"

// Install puts the programs from a directory to where containerd finds them and
// writes the runtime into its configuration. What is done already is not done
// again. Steps are what it did, for people; a restart of containerd is theirs.
func (h Host) Install(ctx context.Context, from string) (steps []string, err error) {
	h = h.withDefaults()
	c, err := h.configured(ctx) // says what is wrong before anything is done
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(h.path(h.DataDir), 0o711); err != nil {
		return nil, err
	}
	r, err := h.record()
	if err != nil {
		return nil, err
	}
	for _, name := range Programs {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return steps, fmt.Errorf("%w; `make build` makes it", err)
		}
		if steps, err = h.put(data, filepath.Join(h.BinDir, name), 0o755, &r, steps); err != nil {
			return steps, err
		}
	}
	if steps, err = h.putSettings(&r, steps); err != nil {
		return steps, err
	}
	if h.Kernel != nil {
		step, err := h.kernel(ctx, &r)
		if err != nil {
			return steps, err
		}
		if step != "" {
			steps = append(steps, step)
		}
	}
	if c.none() {
		return steps, nil
	}
	if err := h.try(ctx, c); err != nil {
		return steps, err
	}
	return append(steps, "wrote "+c.path), nil
}

// kernel fetches the guest kernel.
func (h Host) kernel(ctx context.Context, r *record) (step string, err error) {
	dir := h.path(filepath.Join(h.DataDir, KernelDir))
	if !exists(dir) {
		r.Kernel = true
		if err := h.write(*r); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return h.Kernel(ctx, dir)
}

// try applies a change to the configuration, and takes it back where containerd
// would not have it.
func (h Host) try(ctx context.Context, c change) error {
	if err := c.apply(); err != nil {
		return fmt.Errorf("writing containerd's configuration: %w", err)
	}
	main := h.path(h.Config)
	if c.path != main && (h.Root != "" || !exists(main)) {
		return nil // read from elsewhere than where it would be
	}
	if h.inRoot() != "" {
		main = h.Config
	}
	err := h.check(ctx, main)
	if err == nil {
		return nil
	}
	back := change{path: c.path, was: c.now, now: c.was, delete: c.was == nil}
	if undo := back.apply(); undo != nil {
		return fmt.Errorf("%w; and taking it back: %w", err, undo)
	}
	return fmt.Errorf("%w; it was left as it was", err)
}

// putSettings copies what there is of settings.
func (h Host) putSettings(r *record, steps []string) ([]string, error) {
	if h.SettingsFrom == "" {
		return steps, nil
	}
	if _, err := os.Stat(h.SettingsFrom); err != nil {
		return steps, fmt.Errorf("looking for settings: %w", err)
	}
	for _, name := range settingsFiles {
		data, err := readIfThere(filepath.Join(h.SettingsFrom, name))
		if err == nil && data != nil {
			steps, err = h.put(data, filepath.Join(filepath.Dir(SettingsFile), name), 0o600, r, steps)
		}
		if err != nil {
			return steps, err
		}
	}
	return steps, nil
}

// put writes a file, unless it is there, and adds that to the steps.
func (h Host) put(data []byte, to string, mode os.FileMode, r *record, steps []string) ([]string, error) {
	now, err := readIfThere(h.path(to))
	if err != nil {
		return steps, err
	}
	if now != nil && bytes.Equal(now, data) {
		return steps, nil
	}
	if now != nil && !slices.Contains(r.Files[to], digest(now)) {
		return steps, fmt.Errorf("%s is there, and was not put there by `skep containerd install`: move it away", h.path(to))
	}
	// First the record: what is written and not recorded would stay.
	r.Files[to] = []string{digest(data)}
	if now != nil {
		r.Files[to] = append(r.Files[to], digest(now))
	}
	if err := h.write(*r); err != nil {
		return steps, err
	}
	if err := os.MkdirAll(h.path(filepath.Dir(to)), 0o755); err != nil {
		return steps, err
	}
	// A program that runs stays what it is: the new one is another file.
	if err := atomicfile.Write(h.path(to), mode, func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
		return steps, err
	}
	return append(steps, "wrote "+h.path(to)), nil
}

// Uninstall undoes what Install did; what shims have made in DataDir stays. Containers
// that run go on: while there are any only the configuration is undone, since a
// containerd that is started again ends those whose shim's program it does not find.
func (h Host) Uninstall() (steps []string, err error) {
	h = h.withDefaults()
	changes, err := h.unconfigured()
	if err != nil {
		return nil, err
	}
	for _, c := range changes {
		if err := c.apply(); err != nil {
			return steps, err
		}
		if c.delete {
			steps = append(steps, "removed "+c.path)
		} else {
			steps = append(steps, "took the runtime out of "+c.path)
		}
	}
	r, err := h.record()
	if err != nil {
		return steps, err
	}
	if n, err := h.shims(); err != nil || n > 0 && len(r.Files) > 0 {
		return append(steps, fmt.Sprintf("left the programs, by which %d pods or containers run: uninstall again when they have ended", n)), err
	}
	for _, to := range slices.Sorted(maps.Keys(r.Files)) {
		want := r.Files[to]
		now, err := readIfThere(h.path(to))
		switch {
		case err != nil:
			return steps, err
		case now == nil:
		case !slices.Contains(want, digest(now)):
			steps = append(steps, "left "+h.path(to)+", which somebody has replaced")
		default:
			if err := os.Remove(h.path(to)); err != nil {
				return steps, err
			}
			steps = append(steps, "removed "+h.path(to))
		}
	}
	if r.Kernel {
		dir := h.path(filepath.Join(h.DataDir, KernelDir))
		if err := os.RemoveAll(dir); err != nil {
			return steps, err
		}
		steps = append(steps, "removed "+dir)
	}
	if err := os.Remove(h.path(filepath.Join(h.DataDir, recordFile))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return steps, err
	}
	_ = os.Remove(h.path(h.DataDir)) // if nothing else is in it
	return steps, nil
}

// shims counts those that run: each serves a socket.
func (h Host) shims() (n int, err error) {
	entries, err := os.ReadDir(h.path(SocketDir))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	for _, e := range entries {
		if conn, err := net.Dial("unix", filepath.Join(h.path(SocketDir), e.Name())); err == nil {
			n++
			conn.Close()
		}
	}
	return n, err
}

// Part is one thing that an installation consists of.
type Part struct {
	Name   string `json:"name"`
	Detail string `json:"detail"`
	OK     bool   `json:"ok"`
}

// Status says what of an installation is there. Where the programs at from are
// other ones than those installed, it says so; from may be "".
func (h Host) Status(ctx context.Context, from string) []Part {
	h = h.withDefaults()
	var parts []Part
	for _, name := range Programs {
		to := h.path(filepath.Join(h.BinDir, name))
		p := Part{Name: name, Detail: to, OK: true}
		now, err := readIfThere(to)
		switch {
		case err != nil:
			p.OK, p.Detail = false, err.Error()
		case now == nil:
			p.OK, p.Detail = false, to+" is not there"
		case from != "":
			if new, err := os.ReadFile(filepath.Join(from, name)); err == nil && !bytes.Equal(new, now) {
				p.Detail += ", another one than in " + from
			}
		}
		parts = append(parts, p)
	}
	p := Part{Name: "configuration"}
	c, err := h.configured(ctx)
	switch {
	case err != nil:
		p.Detail = err.Error()
	case c.none():
		p.OK, p.Detail = true, c.path+" has the runtime "+Handler
	default:
		p.Detail = c.path + " does not have the runtime " + Handler + ", or has it otherwise than this skep writes it"
	}
	return append(parts, p)
}

func (h Host) record() (record, error) {
	r := record{Files: map[string][]string{}}
	b, err := readIfThere(h.path(filepath.Join(h.DataDir, recordFile)))
	if err != nil || b == nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil || r.Files == nil {
		return r, fmt.Errorf("reading %s: %w", h.path(filepath.Join(h.DataDir, recordFile)), errors.Join(err, errors.New("it is not what an installation writes")))
	}
	return r, nil
}

func (h Host) write(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(h.path(filepath.Join(h.DataDir, recordFile)), append(b, '\n'), 0o644)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
