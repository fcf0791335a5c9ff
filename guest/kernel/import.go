package kernel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// ImportOptions say where a kernel is taken from: from Packages, or else from
// Image and Modules.
type ImportOptions struct {
	Packages []string // paths of Debian packages, which together have one kernel
	Image    string   // path of a bzImage or vmlinux
	Modules  string   // directory lib/modules/RELEASE of it; "" for none
}

// Import puts a kernel into the store dir and returns it. One that is there
// already is left as it is.
func Import(ctx context.Context, dir string, opts ImportOptions) (Kernel, error) {
	k, err := importInto(ctx, dir, opts)
	if err != nil {
		return Kernel{}, fmt.Errorf("importing a guest kernel: %w", err)
	}
	return k, nil
}

func importInto(ctx context.Context, dir string, opts ImportOptions) (k Kernel, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Kernel{}, err
	}
	if err := atomicfile.Clean(dir); err != nil {
		return Kernel{}, err
	}
	staged, err := atomicfile.Stage(dir, "kernel")
	if err != nil {
		return Kernel{}, err
	}
	defer func() { err = errors.Join(err, staged.Close()) }()
	tmp := staged.Dir
	m := manifest{Format: 1, Imported: time.Now().UTC()}
	image, err := gather(ctx, tmp, opts, &m)
	if err != nil {
		return Kernel{}, err
	}
	m.Image, image = bootable(image)
	sum := sha256.Sum256(image)
	m.Digest = "sha256:" + hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(tmp, m.Image), image, 0o644); err != nil {
		return Kernel{}, err
	}
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return Kernel{}, err
	}
	if err := os.WriteFile(filepath.Join(tmp, manifestName), append(b, '\n'), 0o644); err != nil {
		return Kernel{}, err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return Kernel{}, err
	}
	final := filepath.Join(dir, strings.TrimPrefix(m.Release+"-"+hex.EncodeToString(sum[:6]), "-"))
	if err := staged.Publish(final); err != nil && !errors.Is(err, fs.ErrExist) {
		return Kernel{}, err
	}
	return Open(final)
}

// gather puts modules into tmp/modules and returns the image.
func gather(ctx context.Context, tmp string, opts ImportOptions, m *manifest) ([]byte, error) {
	if len(opts.Packages) > 0 {
		return gatherPackages(ctx, tmp, opts.Packages, m)
	}
	m.From = []string{filepath.Base(opts.Image)}
	image, err := readImage(opts.Image)
	if err != nil {
		return nil, err
	}
	if !isBzImage(image) && !isELF(image) {
		return nil, fmt.Errorf("%s is %w", opts.Image, errNotKernel)
	}
	if opts.Modules == "" {
		return image, nil
	}
	m.Release = filepath.Base(filepath.Clean(opts.Modules))
	return image, copyModules(ctx, opts.Modules, filepath.Join(tmp, "modules", m.Release))
}

func gatherPackages(ctx context.Context, tmp string, debs []string, m *manifest) ([]byte, error) {
	for _, deb := range debs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m.From = append(m.From, filepath.Base(deb))
		if err := unpackDeb(deb, tmp); err != nil {
			return nil, err
		}
	}
	boot := filepath.Join(tmp, "boot")
	found, err := filepath.Glob(filepath.Join(boot, "vmlinu*"))
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("the packages %s have %d kernels: want one", strings.Join(m.From, ", "), len(found))
	}
	_, m.Release, _ = strings.Cut(filepath.Base(found[0]), "-")
	image, err := readImage(found[0])
	if err != nil {
		return nil, err
	}
	if !isBzImage(image) && !isELF(image) {
		return nil, fmt.Errorf("%s is %w", filepath.Base(found[0]), errNotKernel)
	}
	return image, os.RemoveAll(boot)
}

func readImage(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, vmlinuxLimit+1))
	if err == nil && len(b) > vmlinuxLimit {
		err = fmt.Errorf("%s has more than %d bytes", path, vmlinuxLimit)
	}
	return b, err
}

// bootable prefers the kernel within a bzImage, if it can be entered directly.
func bootable(image []byte) (name string, _ []byte) {
	if isELF(image) {
		return "vmlinux", image
	}
	if inner, err := extract(image); err == nil && hasPVH(inner) {
		return "vmlinux", inner
	}
	return "vmlinuz", image
}

// hasPVH reports whether an ELF kernel has the note by which QEMU enters it
// (XEN_ELFNOTE_PHYS32_ENTRY). Firecracker can do without.
func hasPVH(image []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil || f.Class != elf.ELFCLASS64 || f.ByteOrder != binary.LittleEndian {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err == nil && findNote(notes, "Xen\x00", 18) {
			return true
		}
	}
	return false
}

// findNote looks for a note: sizes of name and content and the type, 4 bytes
// each, then name and content, each padded to 4 bytes.
func findNote(b []byte, name string, kind uint32) bool {
	for len(b) >= 12 {
		n, d := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:]))
		k := binary.LittleEndian.Uint32(b[8:])
		b = b[12:]
		next := (n+3)&^3 + (d+3)&^3
		if n > uint64(len(b)) || next > uint64(len(b)) {
			return false
		}
		if k == kind && string(b[:n]) == name {
			return true
		}
		b = b[next:]
	}
	return false
}

// copyModules copies what a package would have been taken from.
func copyModules(ctx context.Context, from, to string) error {
	if _, err := os.Stat(filepath.Join(from, "kernel")); err != nil {
		return fmt.Errorf("modules: %w; want the directory lib/modules/RELEASE", err)
	}
	var sum tally
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || !d.Type().IsRegular() || !wantedModule("r/"+filepath.ToSlash(rel)) {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err == nil {
			err = sum.add(path, info.Size(), moduleLimit)
		}
		if err != nil {
			return err
		}
		return writeFile(filepath.Join(to, rel), io.LimitReader(f, info.Size()))
	})
}
