package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/skep-dev/skep/guest/kernel"
)

// moduleLimit bounds a module's size in bytes, decompressed.
const moduleLimit = 64 << 20

type module struct {
	name string
	path string
	data []byte
}

// resolve returns the wanted modules of a kernel and all that they depend on,
// each after what it needs. Those that are built in are left out. The order
// comes from the modules themselves: a package has no modules.dep, which depmod
// makes on installation.
func resolve(dir string, want []string) ([]module, error) {
	if dir == "" {
		return nil, nil
	}
	r := resolver{dir: dir, builtin: map[string]bool{}, paths: map[string]string{}, done: map[string]bool{}}
	if err := r.index(); err != nil {
		return nil, fmt.Errorf("reading modules in %s: %w", dir, err)
	}
	for _, name := range want {
		if err := r.add(name, nil); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// Has says whether the kernel has that driver, built in or as a module. Of a kernel
// without a directory of modules it is not known, and false.
func Has(k kernel.Kernel, name string) (bool, error) {
	if k.Modules == "" {
		return false, nil
	}
	r := resolver{dir: k.Modules, builtin: map[string]bool{}, paths: map[string]string{}}
	if err := r.index(); err != nil {
		return false, fmt.Errorf("reading modules in %s: %w", k.Modules, err)
	}
	return r.builtin[name] || r.paths[name] != "", nil
}

type resolver struct {
	dir     string
	builtin map[string]bool
	paths   map[string]string
	done    map[string]bool
	order   []module
}

// moduleName is how the kernel calls a file: "kernel/fs/ext4/ext4.ko.xz" is ext4.
func moduleName(path string) (string, bool) {
	base, _, ok := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(base, "-", "_"), ok
}

func (r *resolver) index() error {
	list, err := os.ReadFile(filepath.Join(r.dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for line := range strings.Lines(string(list)) {
		if name, ok := moduleName(strings.TrimSpace(line)); ok {
			r.builtin[name] = true
		}
	}
	return filepath.WalkDir(filepath.Join(r.dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(path); ok && d.Type().IsRegular() {
			r.paths[name] = path
		}
		return nil
	})
}

func (r *resolver) add(name string, chain []string) error {
	name = strings.ReplaceAll(name, "-", "_")
	if r.builtin[name] || r.done[name] {
		return nil
	}
	for _, c := range chain {
		if c == name {
			return fmt.Errorf("module %s depends on itself: %s", name, strings.Join(chain, " > "))
		}
	}
	path, ok := r.paths[name]
	if !ok {
		return fmt.Errorf("the guest kernel in %s has no module %s, and has not built it in", r.dir, name)
	}
	data, err := readModule(path)
	if err != nil {
		return fmt.Errorf("module %s: %w", path, err)
	}
	deps, err := dependencies(data)
	if err != nil {
		return fmt.Errorf("module %s: %w", path, err)
	}
	for _, d := range deps {
		if err := r.add(d, append(chain, name)); err != nil {
			return err
		}
	}
	r.done[name] = true
	r.order = append(r.order, module{name, path, data})
	return nil
}

// readModule reads a module, which may be compressed.
func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".xz":
		if r, err = xz.NewReader(f); err != nil {
			return nil, err
		}
	case ".zst":
		d, err := zstd.NewReader(f)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		r = d
	}
	b, err := io.ReadAll(io.LimitReader(r, moduleLimit+1))
	if err == nil && len(b) > moduleLimit {
		err = fmt.Errorf("is larger than %d bytes", moduleLimit)
	}
	return b, err
}

// dependencies reads a module's own list of what it needs, "depends=a,b" in its
// section .modinfo.
func dependencies(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("has no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var deps []string
	for _, field := range bytes.Split(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			deps = append(deps, strings.Split(list, ",")...)
		}
	}
	return deps, nil
}
