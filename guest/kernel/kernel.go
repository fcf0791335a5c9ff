// Package kernel finds and fetches the kernel that guests boot: by default the
// distribution's own small kernel for virtual machines, taken from its package
// and never installed on the host; by option any bzImage or vmlinux with its
// modules.
//
// A kernel that is imported lies below the store's directory like this, whole
// or not at all:
//
//	RELEASE-DIGEST/            DIGEST: the first 12 digits of the image's
//	├── kernel.json            what it is; see manifest
//	├── vmlinux (or vmlinuz)   what is booted
//	└── modules/RELEASE/…      as below lib/modules
//
// What is booted is the uncompressed vmlinux wherever a VMM can enter it
// directly (its PVH note), not the bzImage that distributions ship. Measured
// with Debian's 6.1 cloud kernel on QEMU 7.2 in software emulation, 256 MiB,
// without KASLR, medians of four boots on a busy machine: until the agent
// answered 2.9 s against 3.5 s, since the guest need not decompress itself, and
// 86 MiB of the host's memory against 100 MiB. Starting the VMM takes 0.2 s
// longer, since it reads the larger file; that is in the 2.9 s. Firecracker up
// to 1.16 boots nothing else.
package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// ErrNone says that no kernel has been fetched.
var ErrNone = errors.New("no guest kernel is there")

// Kernel is a guest kernel on disk.
type Kernel struct {
	Path    string // vmlinux or bzImage
	Modules string // directory with its modules, lib/modules/RELEASE; "" for none
	Digest  string // "sha256:…" of the file at Path
	Release string // "6.1.0-56-cloud-amd64"; "" where it is not known
}

// manifestName is the file that makes a directory a kernel of a store.
const manifestName = "kernel.json"

// manifest is the content of kernel.json.
type manifest struct {
	Format   int       `json:"format"` // 1
	Image    string    `json:"image"`  // name of the file that is booted
	Digest   string    `json:"digest"` // of it
	Release  string    `json:"release,omitempty"`
	Imported time.Time `json:"imported"`
	From     []string  `json:"from"` // names of packages or files
}

// Load describes the kernel at path with the modules in a directory.
func Load(path, modules string) (Kernel, error) {
	f, err := os.Open(path)
	if err != nil {
		return Kernel{}, fmt.Errorf("reading the guest kernel: %w", err)
	}
	defer f.Close()
	head := make([]byte, setupEnd)
	if _, err := io.ReadFull(f, head); err != nil {
		return Kernel{}, fmt.Errorf("%s is too short for a kernel: %w", path, err)
	}
	if !isBzImage(head) && !isELF(head) {
		return Kernel{}, fmt.Errorf("%s is %w", path, errNotKernel)
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

// Open reads the imported kernel in dir, and checks that its image is what was
// imported.
func Open(dir string) (Kernel, error) {
	m, err := readManifest(dir)
	if err != nil {
		return Kernel{}, err
	}
	modules := ""
	if m.Release != "" {
		modules = filepath.Join(dir, "modules", m.Release)
		if _, err := os.Stat(modules); errors.Is(err, os.ErrNotExist) {
			modules = "" // all is built in
		}
	}
	k, err := Load(filepath.Join(dir, m.Image), modules)
	if err != nil {
		return Kernel{}, err
	}
	if k.Digest != m.Digest {
		return Kernel{}, fmt.Errorf("guest kernel %s is damaged: its digest is %s, was %s when imported; remove %s and run `skep setup`", k.Path, k.Digest, m.Digest, dir)
	}
	k.Release = m.Release
	return k, nil
}

func readManifest(dir string) (m manifest, err error) {
	path := filepath.Join(dir, manifestName)
	b, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	switch err := d.Decode(&m); {
	case err != nil:
		return m, fmt.Errorf("reading %s: %w", path, err)
	case m.Format != 1:
		return m, fmt.Errorf("%s has format %d: 1 is known", path, m.Format)
	case m.Image == "" || filepath.Base(m.Image) != m.Image || m.Release != "" && filepath.Base(m.Release) != m.Release:
		return m, fmt.Errorf("%s names a file outside its directory", path)
	}
	return m, nil
}

// Default returns the kernel that was imported last into the store dir, ErrNone
// if there is none.
func Default(dir string) (Kernel, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Kernel{}, err
	}
	var best string
	var at time.Time
	for _, e := range entries {
		sub := filepath.Join(dir, e.Name())
		if e.Name()[0] == '.' || !e.IsDir() {
			continue
		}
		m, err := readManifest(sub)
		if errors.Is(err, os.ErrNotExist) {
			continue // not ours
		}
		if err != nil {
			return Kernel{}, err
		}
		if best == "" || m.Imported.After(at) {
			best, at = sub, m.Imported
		}
	}
	if best == "" {
		return Kernel{}, fmt.Errorf("%w below %s: `skep setup` fetches one", ErrNone, dir)
	}
	return Open(best)
}
