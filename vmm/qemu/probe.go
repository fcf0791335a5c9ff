package qemu

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/internal/memo"
	"github.com/skep-dev/skep/vmm"
)

// binary is the name that is looked for.
const binary = "qemu-system-x86_64"

// oldest is the first version that all of this package was tried with.
var oldest = version{7, 2, 0, ""}

// Host is what Probe found.
type Host struct {
	Path    string // of the binary
	Version string
	// Sandbox says whether the binary can install a seccomp filter.
	Sandbox bool
}

// Probe looks for a usable QEMU. Its error says what to install.
func Probe(ctx context.Context) (Host, error) {
	p, err := probe(ctx, Options{Accel: "tcg"})
	if err != nil {
		return Host{}, err
	}
	return Host{Path: p.path, Version: p.version.String(), Sandbox: p.sandbox}, nil
}

func probe(ctx context.Context, opts Options) (*probed, error) {
	if opts.Binary == "" {
		opts.Binary = binary
	}
	path, err := exec.LookPath(opts.Binary)
	if err != nil {
		return nil, fmt.Errorf("looking for QEMU (package qemu-system-x86 on Debian and Ubuntu): %w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	out, err := memo.Output(ctx, opts.Memo, path, "--version")
	if err != nil {
		return nil, fmt.Errorf("asking %s for its version: %w", path, err)
	}
	p := &probed{path: path}
	if p.version, err = parseVersion(string(out)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if p.version.before(oldest) {
		return nil, fmt.Errorf("%s is QEMU %s: at least %s is needed", path, p.version, oldest)
	}
	if p.accel, err = chooseAccel(ctx, opts.Accel); err != nil {
		return nil, err
	}
	p.sandbox, err = hasSandbox(ctx, opts.Memo, path)
	return p, err
}

func chooseAccel(ctx context.Context, want string) (string, error) {
	switch want {
	case "kvm", "tcg":
		return want, nil
	case "":
		if err := vmm.HardwareKVM(ctx); err != nil {
			return "tcg", nil // the ordinary case of a host without KVM
		}
		return "kvm", nil
	}
	return "", fmt.Errorf("accelerator %q: want kvm or tcg", want)
}

// hasSandbox reports whether the binary was built with seccomp: one that was
// not refuses the option before it looks at anything else.
func hasSandbox(ctx context.Context, d memo.Dir, path string) (bool, error) {
	_, err := memo.Output(ctx, d, path, "-sandbox", sandbox, "-version")
	if err == nil || errors.Is(err, memo.ErrExit) {
		return err == nil, context.Cause(ctx)
	}
	return false, fmt.Errorf("trying %s: %w", path, err)
}

// version of QEMU. Distribution is the packager's text, since distributions
// patch what snapshots depend on.
type version struct {
	major, minor, micro int
	distribution        string
}

var versionLine = regexp.MustCompile(`^QEMU emulator version (\d+)\.(\d+)\.(\d+)(?: \(([^()]*)\))?`)

func parseVersion(out string) (version, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		line, _, _ := strings.Cut(out, "\n")
		return version{}, fmt.Errorf("unknown version text %.100q", line)
	}
	v := version{distribution: m[4]}
	for i, dst := range []*int{&v.major, &v.minor, &v.micro} {
		n, err := strconv.Atoi(m[i+1])
		if err != nil {
			return version{}, fmt.Errorf("version number %q: %w", m[i+1], err)
		}
		*dst = n
	}
	return v, nil
}

func (v version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.micro)
	if v.distribution != "" {
		s += " (" + v.distribution + ")"
	}
	return s
}

func (v version) before(w version) bool {
	if v.major != w.major {
		return v.major < w.major
	}
	if v.minor != w.minor {
		return v.minor < w.minor
	}
	return v.micro < w.micro
}
