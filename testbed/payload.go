package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skep-dev/skep/internal/testenv"
)

// Where the host has what the driver brings.
const (
	programsIn = "/testbed/programs" // what tests start: testenv.BinariesEnv
	binIn      = "/testbed/bin"      // on the PATH
	ctrdIn     = "/testbed/containerd"
	sourcesIn  = "/testbed/src" // the module's files that are no Go, and each package's test binary
	manifestIn = "/testbed/payload.json"
	outIn      = "/out"
)

// programs are built for tests and people.
var programs = []string{"cmd/skep", "cmd/skep-agent", "cmd/containerd-shim-skep-v2", "cmd/skep-store", "functions/hello", "vmm/vmmtest/init", "guest/agent/testdata/probe", "shim/shimtest/probe"}

// file is one of the payload.
type file struct {
	from string // on this machine
	sum  string
}

// payload is what a run brings: files by their path in the host.
type payload map[string]file

// add reads a file's digest.
func (p payload) add(to, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	p[to] = file{from: from, sum: hex.EncodeToString(h.Sum(nil))}
	return nil
}

// gather builds the tests of packages (paths within the module) and the programs.
func gather(ctx context.Context, packages []string, firecracker string) (payload, error) {
	p := payload{}
	for _, pkg := range programs {
		if err := p.addProgram(ctx, pkg); err != nil {
			return nil, err
		}
	}
	for pkg, name := range map[string]string{"cmd/skep": "skep", "cmd/skep-agent": "skep-agent", "functions/hello": "skep-hello"} {
		p[path.Join(binIn, name)] = p[path.Join(programsIn, pkg)]
	}
	for _, pkg := range packages {
		out := filepath.Join(cacheDir, "built", "tests", pkg, "test")
		if err := goTool(ctx, "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", out, "./"+pkg); err != nil {
			return nil, err
		}
		if err := p.add(testBinary(pkg), out); err != nil {
			return nil, err
		}
	}
	if err := p.addFirecracker(firecracker); err != nil {
		return nil, err
	}
	if err := p.addContainerd(os.Getenv(testenv.ContainerdEnv)); err != nil {
		return nil, err
	}
	return p, p.addSources()
}

// builtProgram is where the driver builds a program, for the host and for itself.
func builtProgram(pkg string) string { return filepath.Join(cacheDir, "built", "programs", pkg) }

// addProgram builds a program and adds it.
func (p payload) addProgram(ctx context.Context, pkg string) error {
	out := builtProgram(pkg)
	if err := goTool(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./"+pkg); err != nil {
		return err
	}
	return p.add(path.Join(programsIn, pkg), out)
}

// addContainerd adds the programs of a containerd that tests meet beside the
// host's, where a directory of such is named.
func (p payload) addContainerd(dir string) error {
	if dir == "" {
		return nil
	}
	for _, name := range []string{"containerd", "ctr", "crictl", "critest"} {
		err := p.add(path.Join(ctrdIn, name), filepath.Join(dir, name))
		if err != nil && (name == "containerd" || !errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("%s is %s: %w", testenv.ContainerdEnv, dir, err)
		}
	}
	return nil
}

// addFirecracker adds Firecracker, where there is one, and the jailer beside it;
// an official release has the version in both names.
func (p payload) addFirecracker(firecracker string) error {
	if firecracker == "" {
		return nil
	}
	dir, name := filepath.Split(firecracker)
	err := p.add(path.Join(binIn, "jailer"), filepath.Join(dir, strings.Replace(name, "firecracker", "jailer", 1)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.add(path.Join(binIn, "firecracker"), firecracker)
}

// testBinary is where the host has a package's tests: beside its files, in a
// directory of the package's path, as go test would run it.
func testBinary(pkg string) string { return path.Join(sourcesIn, pkg, "package.test") }

// addSources adds the module's files that tests may read.
func (p payload) addSources() error {
	return filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (name == "bin" || name == ".cache" || name == ".git") {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() || filepath.Ext(name) == ".test" {
			return nil
		}
		return p.add(path.Join(sourcesIn, filepath.ToSlash(name)), name)
	})
}

// manifest is what is kept beside a payload: digests by path.
func (p payload) manifest() map[string]string {
	m := map[string]string{}
	for to, f := range p {
		m[to] = f.sum
	}
	return m
}

// differing is the part of p that a host with this manifest lacks.
func (p payload) differing(has map[string]string) payload {
	d := payload{}
	for to, f := range p {
		if has[to] != f.sum {
			d[to] = f
		}
	}
	return d
}

// archive writes the files as a tar archive, and all's manifest with them.
func (p payload) archive(w io.Writer, all payload) error {
	t := tar.NewWriter(w)
	dirs := map[string]bool{".": true}
	for _, to := range slices.Sorted(maps.Keys(p)) {
		if err := addDirs(t, dirs, path.Dir(to[1:])); err != nil {
			return err
		}
		if err := addFile(t, to[1:], p[to].from); err != nil {
			return err
		}
	}
	m, err := json.Marshal(all.manifest())
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: manifestIn[1:], Mode: 0o644, Size: int64(len(m))}); err != nil {
		return err
	}
	if _, err := t.Write(m); err != nil {
		return err
	}
	return t.Close()
}

func addDirs(t *tar.Writer, have map[string]bool, dir string) error {
	if have[dir] {
		return nil
	}
	if err := addDirs(t, have, path.Dir(dir)); err != nil {
		return err
	}
	have[dir] = true
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755})
}

func addFile(t *tar.Writer, to, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: to, Mode: int64(st.Mode().Perm() | 0o444), Size: st.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// disk opens the disk of a payload.
func (p payload) disk() (*os.File, error) {
	m, err := json.Marshal(p.manifest())
	if err != nil {
		return nil, err
	}
	return cachedDisk("payload", string(m), func(w io.Writer) error { return p.archive(w, p) })
}

func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// with is p and one file more.
func (p payload) with(to string, f file) payload {
	q := maps.Clone(p)
	q[to] = f
	return q
}
