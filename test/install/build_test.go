// Package install has tests of what `make package` makes: the same bytes wherever it
// is built, and in fresh roots of Debian a skep that installs, runs, upgrades and goes.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// packagesEnv lets these tests run: they build packages, and fetch others. Where it is
// the path of a directory, packages and roots of Debian are kept there for the next time.
const packagesEnv = "SKEP_TEST_PACKAGES"

func needPackages(t *testing.T) {
	t.Helper()
	var err error
	if os.Getenv(packagesEnv) == "" {
		err = errors.New(packagesEnv + " is not set")
	}
	testenv.NeedThat(t, "packages", err, "make test-package: it builds packages, and fetches some 300 MB of Debian's")
}

// Two versions, the one later than the other.
const (
	older = "v1.2.3"
	newer = "v1.2.3-4-gabcdef123456"
)

// packages has the directories that were built, by version, for all tests.
var packages = struct {
	sync.Mutex
	dirs map[string]string
}{dirs: map[string]string{}}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range packages.dirs {
		os.RemoveAll(dir)
	}
	shimtest.Exit(code)
}

// built is a directory of packages of this tree.
func built(t *testing.T, version string) string {
	t.Helper()
	packages.Lock()
	defer packages.Unlock()
	if dir := packages.dirs[version]; dir != "" {
		return dir
	}
	dir := kept(version)
	if _, err := os.Stat(filepath.Join(dir, "SHA256SUMS")); dir != "" && err == nil {
		return dir
	}
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "skep-packages-"); err != nil {
			t.Fatal(err)
		}
		packages.dirs[version] = dir
	}
	build(t, tree(t), dir, version)
	return dir
}

// kept is the path of what is kept for the next time; "" is none.
func kept(name string) string {
	if dir := os.Getenv(packagesEnv); filepath.IsAbs(dir) {
		return filepath.Join(dir, name)
	}
	return ""
}

// tree is a copy of this tree, as it is now and without what git does not look at.
func tree(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	list, err := exec.Command("git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(fmt.Errorf("listing the tree's files: %w", err))
	}
	copied := t.TempDir()
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		st, err := os.Lstat(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, and not yet committed
		}
		var data []byte
		if err == nil && st.Mode().IsRegular() {
			data, err = os.ReadFile(filepath.Join(root, name))
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(copied, name)), 0o755)
		}
		if err == nil && st.Mode().IsRegular() {
			err = os.WriteFile(filepath.Join(copied, name), data, st.Mode().Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return copied
}

// build runs what `make package` does.
func build(t *testing.T, tree, out, version string, environ ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(tree, "packaging", "package.sh"), out)
	cmd.Env = append(append(os.Environ(), "VERSION="+version, "SOURCE_DATE_EPOCH=1750000000"), environ...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building packages: %v\n%s", err, text)
	}
}

// Two builds in two directories are the same bytes, whatever the time zone, the umask
// and the flags of who builds, and their checksums are right.
func TestReproducible(t *testing.T) {
	needPackages(t)
	first, second := built(t, older), t.TempDir()
	build(t, tree(t), second, older, "TZ=Asia/Tokyo", "LANG=de_DE.UTF-8", "GOFLAGS=-v", "CGO_ENABLED=1")
	names, err := filepath.Glob(filepath.Join(first, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 7 {
		t.Errorf("there are only %v", names)
	}
	for _, name := range names {
		a, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(second, filepath.Base(name)))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s is another one the second time (%v)", filepath.Base(name), err)
		}
	}
	cmd := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = second
	if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), ": OK") != len(names)-1 {
		t.Errorf("checksums: %v\n%s", err, out)
	}
}

// The tarball has one directory, with programs that are static and say their version.
func TestTarball(t *testing.T) {
	needPackages(t)
	dir := t.TempDir()
	file := filepath.Join(built(t, older), "skep-"+older+"-linux-amd64.tar.gz")
	if out, err := exec.Command("tar", "-xzf", file, "-C", dir, "--strip-components=1").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	programs, err := filepath.Glob(filepath.Join(dir, "bin", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range programs {
		names = append(names, filepath.Base(p))
	}
	if want := []string{"containerd-shim-skep-v2", "skep", "skep-agent", "skep-hello", "skep-s3", "skep-store"}; !slices.Equal(names, want) {
		t.Errorf("the programs are %v, want %v", names, want)
	}
	for _, p := range programs {
		if out, err := exec.Command("ldd", p).CombinedOutput(); err == nil {
			t.Errorf("%s is linked with %s", p, out)
		}
		if _, err := os.Stat(filepath.Join(dir, "share/doc/skep/sbom", filepath.Base(p)+".cdx.json")); err != nil {
			t.Error(err)
		}
	}
	out, err := exec.Command(filepath.Join(dir, "bin", "skep"), "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "skep "+older+" ") {
		t.Errorf("%v: %s", err, out)
	}
}
