// Package kernel finds and fetches the kernel that guests boot: by default the
// distribution's own small kernel for virtual machines, taken from its package
// and never installed on the host; by option any bzImage or vmlinux with its
// modules.
package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// ErrNone says that no kernel has been fetched.
var ErrNone = errors.New("no guest kernel is there")

// Kernel is a guest kernel on disk.
type Kernel struct {
	Path    string // bzImage or vmlinux
	Modules string // directory with its modules, lib/modules/RELEASE; "" for none
	Digest  string // "sha256:…" of the file at Path
	Release string // "6.1.0-56-cloud-amd64"; "" where it is not known
}

// Load describes the kernel at path with the modules in a directory.
func Load(path, modules string) (Kernel, error) {
	f, err := os.Open(path)
	if err != nil {
		return Kernel{}, fmt.Errorf("reading the guest kernel: %w", err)
	}
	defer f.Close()
	var head [0x206]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return Kernel{}, fmt.Errorf("%s is too short for a kernel: %w", path, err)
	}
	if string(head[0x202:0x206]) != "HdrS" && string(head[:4]) != "\x7fELF" {
		return Kernel{}, fmt.Errorf("%s is neither a bzImage nor a vmlinux", path)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Kernel{}, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return Kernel{}, fmt.Errorf("reading the guest kernel %s: %w", path, err)
	}
	k := Kernel{Path: path, Modules: modules, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil))}
	if modules != "" {
		if _, err := os.Stat(filepath.Join(modules, "kernel")); err != nil {
			return Kernel{}, fmt.Errorf("modules of the guest kernel: %w; want the directory lib/modules/RELEASE", err)
		}
		k.Release = filepath.Base(modules)
	}
	return k, nil
}

// Default returns the newest kernel that Fetch has put below dir, ErrNone if
// there is none.
func Default(dir string) (Kernel, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*", "boot", "vmlinuz-*"))
	if err != nil {
		return Kernel{}, err
	}
	var all []string
	for _, p := range found {
		if !strings.HasPrefix(filepath.Base(filepath.Dir(filepath.Dir(p))), ".") {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return Kernel{}, fmt.Errorf("%w below %s: `skep setup` fetches one", ErrNone, dir)
	}
	sort.Slice(all, func(i, j int) bool { return modified(all[i]).After(modified(all[j])) })
	release := strings.TrimPrefix(filepath.Base(all[0]), "vmlinuz-")
	top := filepath.Dir(filepath.Dir(all[0]))
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		modules := filepath.Join(top, lib, release)
		if _, err := os.Stat(modules); err == nil {
			return Load(all[0], modules)
		}
	}
	return Load(all[0], "")
}

// modified is when the package of the kernel at path was put there.
func modified(path string) (t time.Time) {
	if st, err := os.Stat(filepath.Dir(filepath.Dir(path))); err == nil {
		t = st.ModTime()
	}
	return t
}

// Fetch makes sure that a kernel is below dir: it downloads the distribution's
// package for virtual machines with apt-get, and unpacks it. step is told what
// is being done; nil is allowed. When a kernel is there, nothing is done.
func Fetch(ctx context.Context, dir string, step func(string)) (Kernel, error) {
	if k, err := Default(dir); !errors.Is(err, ErrNone) {
		return k, err
	}
	if step == nil {
		step = func(string) {}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Kernel{}, err
	}
	tmp, err := os.MkdirTemp(dir, ".fetch-")
	if err != nil {
		return Kernel{}, err
	}
	defer os.RemoveAll(tmp)
	step("looking for the distribution's kernel package for virtual machines")
	names, err := packages(ctx)
	if err != nil {
		return Kernel{}, err
	}
	step("downloading " + strings.Join(names, " "))
	if err := unpack(ctx, tmp, names); err != nil {
		return Kernel{}, err
	}
	final := filepath.Join(dir, names[0])
	if err := os.Rename(filepath.Join(tmp, "root"), final); err != nil && !errors.Is(err, os.ErrExist) && !isNotEmpty(err) {
		return Kernel{}, fmt.Errorf("publishing the guest kernel: %w", err)
	}
	return Default(dir)
}

// Cmdline is what a guest kernel should be told beyond what the VMM's machine
// needs: be silent (a serial port is slow), trust the host's entropy and clock,
// and leave out what a clone would have to page in for nothing.
func Cmdline() string {
	return "quiet loglevel=3 random.trust_cpu=on random.trust_bootloader=on mitigations=off ipv6.disable=1 " +
		"no_timer_check tsc=reliable cryptomgr.notests audit=0 rdinit=/init"
}
