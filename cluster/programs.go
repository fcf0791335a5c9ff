package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// KubernetesEnv names the environment variable with a directory of programs of
// Kubernetes, CoreDNS and etcd that are used as they are. What it lacks is built, in
// the versions that the modules beside this file name; the PATH is not asked, where a
// kubectl of any age may be.
const KubernetesEnv = "SKEP_KUBERNETES"

// ContainerdEnv names the environment variable with the directory of containerd's
// programs; without it they are the host's.
const ContainerdEnv = "SKEP_CONTAINERD"

// A program of the node's.
type program struct {
	name   string
	module string // directory, below the one of this package, of the module that builds it
	pkg    string // in there
	env    string // names a directory in which it is looked for first
	cure   string // of its absence where it is not built
	long   string // what there is to say of the time that its build takes
}

const kubernetes = "k8s.io/kubernetes/cmd/"

var programs = []program{
	{name: "kube-apiserver", module: "kubernetes", pkg: kubernetes + "kube-apiserver", env: KubernetesEnv, long: ", which takes some minutes, once"},
	{name: "kube-controller-manager", module: "kubernetes", pkg: kubernetes + "kube-controller-manager", env: KubernetesEnv},
	{name: "kube-scheduler", module: "kubernetes", pkg: kubernetes + "kube-scheduler", env: KubernetesEnv},
	{name: "kubelet", module: "kubernetes", pkg: kubernetes + "kubelet", env: KubernetesEnv},
	{name: "kube-proxy", module: "kubernetes", pkg: kubernetes + "kube-proxy", env: KubernetesEnv},
	{name: "kubectl", module: "kubernetes", pkg: kubernetes + "kubectl", env: KubernetesEnv},
	{name: "coredns", module: "coredns", pkg: "github.com/coredns/coredns", env: KubernetesEnv},
	{name: "etcd", module: "etcd", pkg: "go.etcd.io/etcd/server/v3", env: KubernetesEnv},
	{name: "containerd", env: ContainerdEnv, cure: "apt-get install --no-install-recommends containerd"},
	{name: "ctr", env: ContainerdEnv, cure: "apt-get install --no-install-recommends containerd"},
	{name: "containerd-shim-runc-v2", env: ContainerdEnv, cure: "apt-get install --no-install-recommends containerd"},
	{name: "runc", cure: "apt-get install --no-install-recommends runc"},
	{name: "nft", cure: "apt-get install --no-install-recommends nftables"},
}

// cniDirs are where distributions have CNI's plugins.
var cniDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}

func cniDir() (string, error) {
	for _, dir := range cniDirs {
		if _, err := os.Stat(filepath.Join(dir, "ptp")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("CNI's plugins are not here: apt-get install --no-install-recommends containernetworking-plugins")
}

// find looks for the program in its directory and, if it is one that is built, among
// those that were, else on the PATH; "" is nowhere.
func (p program) find(built string) string {
	dirs := []string{os.Getenv(p.env)}
	if p.module != "" {
		dirs = append(dirs, built)
	} else {
		dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
		dirs = append(dirs, "/usr/sbin", "/sbin") // not on everybody's PATH
	}
	for _, dir := range dirs {
		if path := filepath.Join(dir, p.name); dir != "" && executable(path) {
			return path
		}
	}
	return ""
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// Missing says what a cluster lacks here; nil: all of it is there, and nothing has to
// be built.
func Missing() error {
	var lacks []string
	for _, p := range programs {
		built, err := p.cache()
		if err != nil {
			built = ""
		}
		if p.find(built) == "" {
			lacks = append(lacks, p.name)
		}
	}
	if _, err := cniDir(); err != nil {
		lacks = append(lacks, "CNI's plugins")
	}
	if lacks != nil {
		return fmt.Errorf("not here: %s", strings.Join(lacks, ", "))
	}
	return nil
}

// Programs finds all programs of a node, and builds what is not there. Paths are by
// the program's name.
func Programs(ctx context.Context, step func(string)) (paths map[string]string, err error) {
	paths = map[string]string{}
	var errs []error
	for _, p := range programs { // first what needs no build: it is told at once
		if path := p.find(""); path != "" {
			paths[p.name] = path
		} else if p.module == "" {
			errs = append(errs, fmt.Errorf("%s is not here: %s", p.name, p.cure))
		}
	}
	if _, err := cniDir(); err != nil {
		errs = append(errs, err)
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	for _, p := range programs {
		if paths[p.name] != "" {
			continue
		}
		var err error
		if paths[p.name], err = p.get(ctx, step); err != nil {
			return nil, err
		}
	}
	return paths, nil
}

// get finds a program that can be built, or builds it.
func (p program) get(ctx context.Context, step func(string)) (string, error) {
	built, err := p.cache()
	if err != nil {
		return "", err
	}
	if path := p.find(built); path != "" {
		return path, nil
	}
	step("building " + p.name + p.long)
	return p.build(ctx, built)
}

// sources is the directory of a module that builds programs: in skep's source tree,
// in which the caller works.
func (p program) sources() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		at := filepath.Join(dir, "cluster", p.module)
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at, nil
		}
		if dir == "/" {
			return "", fmt.Errorf("%s is not in the directory that %s names: put it there, or work in skep's source tree, which builds it", p.name, p.env)
		}
	}
}

// cache is the directory of what was built of one module, by what it is built of.
func (p program) cache() (string, error) {
	if p.module == "" {
		return "", nil
	}
	dir, err := p.sources()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		sum.Write(b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory: set XDG_CACHE_HOME or HOME: %w", err)
	}
	return filepath.Join(cache, "skep", "cluster", p.module+"-"+runtime.GOARCH+"-"+hex.EncodeToString(sum.Sum(nil)[:6])), nil
}

// build builds the program into a directory.
func (p program) build(ctx context.Context, into string) (path string, err error) {
	dir, err := p.sources()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(into, 0o755); err != nil {
		return "", err
	}
	module, _, _ := strings.Cut(p.pkg, "/cmd/")
	if module == "." { // of skep's own tree
		module = ""
	}
	version := ""
	if module != "" {
		if version, err = goCommand(ctx, dir, "list", "-m", "-f", "{{.Version}}", module); err != nil {
			return "", err
		}
	}
	tmp, err := os.MkdirTemp(into, ".build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	path = filepath.Join(into, p.name)
	if _, err := goCommand(ctx, dir, "build", "-trimpath", "-ldflags", stamp(strings.TrimSpace(version)), "-o", filepath.Join(tmp, p.name), p.pkg); err != nil {
		return "", fmt.Errorf("building %s: %w", p.name, err)
	}
	return path, os.Rename(filepath.Join(tmp, p.name), path)
}

// stamp are the linker's flags that tell Kubernetes' programs their version. Others
// do not have these variables, and the linker ignores them.
func stamp(version string) string {
	flags := "-s -w"
	numbers := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(numbers) < 3 {
		return flags
	}
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags += fmt.Sprintf(" -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s -X %[1]s.gitTreeState=clean", pkg, version, numbers[0], numbers[1])
	}
	return flags
}

// goCommand runs Go's command in a module of its own, at a low priority.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "19", "go"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, said.String())
	}
	return string(out), nil
}

// put has a program at a path: linked where it is the same file system, which costs
// nothing, else copied. What is there is replaced; who runs it keeps it.
func put(from, to string, link bool) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	if same(from, to) {
		return nil
	}
	tmp := to + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !link || os.Link(from, tmp) != nil {
		if err := copyFile(from, tmp); err != nil {
			return err
		}
	}
	return os.Rename(tmp, to)
}

func same(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
