package firecracker

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/internal/memo"
)

// binary is the name that is looked for.
const binary = "firecracker"

// oldest is the first version with all that this package asks for: another tap for
// a restored machine (1.12), and a snapshot of only the memory in use without the
// tracking of dirty pages, which every write of the guest would pay for (1.13).
var oldest = version{1, 13, 0}

// Host is what Probe found.
type Host struct {
	Path      string // of the binary, without symbolic links
	Version   string // "1.16.1"
	Snapshots string // version of its device state, "v10.0.0"
	Jailer    string // path of the jailer; "" when there is none
	// Dynamic says that the binary needs shared libraries. An official one does
	// not; one that does cannot be confined, for a jail has no libraries.
	Dynamic bool

	version version
}

// Probe looks for a usable Firecracker. Its error says what is wrong and how to
// get one. Whether the hardware can run it is another question: see
// vmm.HardwareKVM.
func Probe(ctx context.Context, opts Options) (Host, error) { return probe(ctx, opts) }

func probe(ctx context.Context, opts Options) (Host, error) {
	if opts.Binary == "" {
		opts.Binary = binary
	}
	path, err := exec.LookPath(opts.Binary)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return Host{}, fmt.Errorf("looking for Firecracker (`skep setup firecracker` fetches it): %w", err)
	}
	h := Host{Path: path}
	if h.version, err = askVersion(ctx, opts.Memo, path); err != nil {
		return Host{}, err
	}
	h.Version = h.version.String()
	if h.version.before(oldest) {
		return Host{}, fmt.Errorf("%s is Firecracker %s: at least %s is needed, which writes only the memory in use into a snapshot (Diff without track_dirty_pages); `skep setup firecracker` fetches %s", path, h.version, oldest, Release)
	}
	h.Dynamic = isDynamic(path)
	out, err := memo.Output(ctx, opts.Memo, path, "--snapshot-version")
	if err != nil {
		return Host{}, fmt.Errorf("asking %s for the version of its snapshots: %w", path, err)
	}
	if h.Snapshots = snapshotVersion(string(out)); h.Snapshots == "" {
		return Host{}, fmt.Errorf("asking %s for the version of its snapshots: unknown answer %.100q", path, out)
	}
	h.Jailer, err = findJailer(ctx, opts, h)
	return h, err
}

func isDynamic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false // a script, say; its start will tell
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// findJailer returns "" when there is none and none was named. One of another
// version than the binary's is not used.
func findJailer(ctx context.Context, opts Options, h Host) (string, error) {
	want := opts.Jailer
	if want == "none" {
		return "", nil
	}
	candidates := []string{want}
	if want == "" {
		candidates = []string{filepath.Join(filepath.Dir(h.Path), "jailer"), "jailer"}
	}
	for _, c := range candidates {
		path, err := exec.LookPath(c)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			if want != "" {
				return "", fmt.Errorf("looking for the jailer: %w", err)
			}
			continue
		}
		if err != nil {
			return "", fmt.Errorf("looking for the jailer: %w", err)
		}
		v, err := askVersion(ctx, opts.Memo, path)
		if err != nil {
			return "", err
		}
		if v != h.version {
			if want != "" {
				return "", fmt.Errorf("the jailer %s has version %s, and Firecracker %s: want the jailer of the same release", path, v, h.version)
			}
			continue
		}
		return path, nil
	}
	return "", nil
}

func askVersion(ctx context.Context, d memo.Dir, path string) (version, error) {
	out, err := memo.Output(ctx, d, path, "--version")
	if err != nil {
		return version{}, fmt.Errorf("asking %s for its version: %w", path, err)
	}
	v, err := parseVersion(string(out))
	if err != nil {
		return version{}, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

type version struct{ major, minor, patch int }

// versionLine is the first line of both programs: "Firecracker v1.16.1", or
// "Jailer v1.17.0-dev".
var versionLine = regexp.MustCompile(`^(?:Firecracker|Jailer) v(\d+)\.(\d+)\.(\d+)(?:-[0-9A-Za-z.-]+)?\s`)

func parseVersion(out string) (version, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		line, _, _ := strings.Cut(out, "\n")
		return version{}, fmt.Errorf("unknown version text %.100q", line)
	}
	var v version
	for i, dst := range []*int{&v.major, &v.minor, &v.patch} {
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return version{}, fmt.Errorf("version number %q: %w", m[i+1], err)
		}
		*dst = n
	}
	return v, nil
}

var snapshotLine = regexp.MustCompile(`^v\d+\.\d+\.\d+(\s|$)`)

func snapshotVersion(out string) string { return strings.TrimSpace(snapshotLine.FindString(out)) }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch) }

// line is the versions that read each other's snapshots.
func (v version) line() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v version) before(w version) bool {
	if v.major != w.major {
		return v.major < w.major
	}
	if v.minor != w.minor {
		return v.minor < w.minor
	}
	return v.patch < w.patch
}
