package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// FormatVersion of manifests that this skep writes, and the only one it reads.
const FormatVersion = 1

// Names of a snapshot's files. The parts are named in the manifest with their
// digests; the trace directory is not: it grows after publication, and what is
// in it verifies itself.
const (
	manifestName = "manifest.json"
	stampName    = "verified.json"
	traceName    = "trace"
	PartState    = "state"
	PartMemory   = "memory"
)

const maxManifest = 1 << 20 // bytes

// ErrManifest is wrapped by every error about a manifest's content.
var ErrManifest = errors.New("bad snapshot manifest")

// The length apart: an expression that counts takes each program that has it a
// millisecond to begin.
var idRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

const maxID = 100 // bytes

// ValidID reports whether id can be a snapshot's: it is a plain file name.
func ValidID(id string) bool { return len(id) <= maxID && idRE.MatchString(id) }

// manifestFile is the content of manifest.json: the manifest, and the SHA-256 of
// its compact JSON without that sum.
type manifestFile struct {
	Manifest
	Sum string `json:"sum"`
}

func (m Manifest) sum() (string, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// Encode writes the manifest as it stands in its file.
func (m Manifest) Encode() ([]byte, error) {
	sum, err := m.sum()
	if err != nil {
		return nil, fmt.Errorf("encoding manifest of snapshot %s: %w", m.ID, err)
	}
	b, err := json.MarshalIndent(manifestFile{m, sum}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding manifest of snapshot %s: %w", m.ID, err)
	}
	if b = append(b, '\n'); len(b) > maxManifest {
		return nil, fmt.Errorf("encoding manifest of snapshot %s: it has %d bytes: at most %d can be read", m.ID, len(b), maxManifest)
	}
	return b, nil
}

// Decode reads a manifest and refuses whatever it does not know.
func Decode(b []byte) (Manifest, error) {
	bad := func(format string, a ...any) (Manifest, error) {
		return Manifest{}, fmt.Errorf("%w: %s", ErrManifest, fmt.Sprintf(format, a...))
	}
	if len(b) > maxManifest {
		return bad("%d bytes: want at most %d", len(b), maxManifest)
	}
	var v struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return bad("%v", err)
	}
	if v.Format != FormatVersion {
		return bad("format %d: this skep reads format %d", v.Format, FormatVersion)
	}
	var f manifestFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return bad("%v", err)
	}
	m := f.Manifest
	if _, err := d.Token(); err != io.EOF {
		return bad("something follows the manifest")
	}
	switch sum, err := m.sum(); {
	case err != nil:
		return bad("%v", err)
	case sum != f.Sum:
		return bad("its content has sum %s, it was written with %.70q: it was changed or damaged", sum, f.Sum)
	}
	if err := m.validate(); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m, nil
}

func (m *Manifest) validate() error {
	if m.Format != FormatVersion {
		return fmt.Errorf("format %d: want %d", m.Format, FormatVersion)
	}
	if !ValidID(m.ID) {
		return fmt.Errorf("id %q: want 1 to 100 of a-z, 0-9 and -", m.ID)
	}
	if m.Function == "" {
		return errors.New("no function named")
	}
	if m.VCPUs < 1 || m.VCPUs > 1024 {
		return fmt.Errorf("vcpus is %d: want 1 to 1024", m.VCPUs)
	}
	if m.MemoryMiB < 1 || m.MemoryMiB > 16<<20 {
		return fmt.Errorf("memory_mib is %d: want 1 to %d", m.MemoryMiB, 16<<20)
	}
	for name, p := range m.Parts {
		if name != PartState && name != PartMemory {
			return fmt.Errorf("part %q is not known", name)
		}
		if p.Size < 0 {
			return fmt.Errorf("part %q: size is %d", name, p.Size)
		}
		if raw, err := hex.DecodeString(p.Digest); err != nil || len(raw) != 32 {
			return fmt.Errorf("part %q: digest %.70q: want 64 hex digits", name, p.Digest)
		}
	}
	for _, name := range []string{PartState, PartMemory} {
		if _, ok := m.Parts[name]; !ok {
			return fmt.Errorf("part %q is missing", name)
		}
	}
	if got, want := m.Parts[PartMemory].Size, int64(m.MemoryMiB)<<20; got != want {
		return fmt.Errorf("part %q has %d bytes, the machine %d", PartMemory, got, want)
	}
	return nil
}

func readManifest(path string) (Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return Manifest{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return Manifest{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return Decode(b)
}

// Difference is one thing in which a snapshot is not what is wanted.
type Difference struct{ Field, Have, Want string }

// MismatchError says why an intact snapshot cannot be used here.
type MismatchError struct {
	Snapshot    string
	Differences []Difference
}

func (e *MismatchError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "snapshot %s does not match", e.Snapshot)
	for i, d := range e.Differences {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s is %s, want %s", sep, d.Field, d.Have, d.Want)
	}
	return b.String()
}

// Match returns nil when a machine wanted as w may start from the snapshot, and
// otherwise a *MismatchError with every field that differs.
func (m *Manifest) Match(w Want) error {
	var diffs []Difference
	cmp := func(field string, have, want any) {
		if have != want {
			diffs = append(diffs, Difference{field, show(have), show(want)})
		}
	}
	cmp("function", m.Function, w.Function)
	cmp("image digest", m.ImageDigest, w.ImageDigest)
	cmp("disk digest", m.DiskDigest, w.DiskDigest)
	cmp("guest kernel", m.GuestKernel, w.GuestKernel)
	cmp("initramfs", m.Initramfs, w.Initramfs)
	cmp("settings digest", m.Spec, w.Spec)
	cmp("vcpus", m.VCPUs, w.VCPUs)
	cmp("memory_mib", m.MemoryMiB, w.MemoryMiB)
	cmp("vmm", m.VMM.Name, w.VMM.Name)
	if m.VMM.Line != "" && w.VMM.Line != "" {
		cmp("vmm version line", m.VMM.Line, w.VMM.Line)
	} else {
		cmp("vmm version", m.VMM.Version, w.VMM.Version)
	}
	cmp("vmm acceleration", m.VMM.Accel, w.VMM.Accel)
	cmp("vmm machine", m.VMM.Machine, w.VMM.Machine)
	if m.VMM.Accel != accelTCG {
		// What KVM saves of a processor is the kernel's own affair.
		cmp("host kernel", m.HostKernel, w.HostKernel)
		cmp("cpu vendor", m.CPU.Vendor, w.CPU.Vendor)
		cmp("cpu model", m.CPU.Model, w.CPU.Model)
		if missing := missingFeatures(m.CPU.Features, w.CPU.Features); len(missing) > 0 {
			diffs = append(diffs, Difference{"cpu features",
				"a set with " + strings.Join(missing, " "), "only what this host has"})
		}
	}
	if len(diffs) == 0 {
		return nil
	}
	return &MismatchError{m.ID, diffs}
}

// accelTCG is vmm.Info.Accel of software emulation: its guest's processor is
// the VMM's own and the same on every host.
const accelTCG = "tcg"

func missingFeatures(need, have []string) []string {
	if slices.Equal(need, have) { // as on the host that made it
		return nil
	}
	has := make(map[string]bool, len(have))
	for _, f := range have {
		has[f] = true
	}
	return slices.DeleteFunc(slices.Clone(need), func(f string) bool { return has[f] })
}

func show(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprint(v)
}
