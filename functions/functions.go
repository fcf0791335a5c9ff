// Package functions holds skep's built-in functions and makes images of them
// without a registry: a Go program becomes a directory image, a Python program
// a layer over a base that is made once from the distribution's packages, so
// that many functions share it. `skep deploy functions/<name>` calls it.
package functions

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/suggest"
)

//go:embed */*.py */function.toml base/*.txt
var sources embed.FS

// bench are the functions that Bench lists.
var bench = []pythonFunction{
	{name: "helloworld", base: "small"},
	{name: "chameleon", base: "small"},
	{name: "pyaes", base: "small"},
	{name: "image_rotate", base: "small"},
	{name: "json_serdes", base: "small"},
	{name: "lr_serving", base: "sklearn"},
	{name: "cnn_serving", base: "torch"},
	{name: "rnn_serving", base: "torch"},
	{name: "lr_training", base: "sklearn"},
	{name: "video_processing", base: "opencv"},
}

// builder makes the image of one function.
type builder func(ctx context.Context, cacheDir string, step func(string)) (ref string, err error)

// builders has every built-in function by its name.
func builders() map[string]builder {
	all := map[string]builder{"hello": buildHello}
	for _, f := range append([]pythonFunction{{name: "hello-python", base: "python", alone: true}}, bench...) {
		all[f.name] = func(ctx context.Context, dir string, step func(string)) (string, error) {
			return buildPython(ctx, dir, f, step)
		}
	}
	return all
}

// Names lists the built-in functions, sorted.
func Names() []string { return slices.Sorted(maps.Keys(builders())) }

// Bench lists the functions of FunctionBench that the paper measures, in the
// order of its table.
func Bench() []string {
	var names []string
	for _, f := range bench {
		names = append(names, f.name)
	}
	return names
}

// Build makes the image of a built-in function in cacheDir, unless it is there,
// and returns the reference to deploy. step is told what is being done; nil is
// allowed.
//
// hello needs its program skep-hello beside skep, where `make build` puts it, or
// Go and the sources. The others need mmdebstrap and a Debian or Ubuntu host,
// whose release and package sources it uses; what was made of them stays as it
// is until cacheDir is removed. Nothing else needs cacheDir once the function
// is deployed.
func Build(ctx context.Context, cacheDir, name string, step func(string)) (ref string, err error) {
	if step == nil {
		step = func(string) {}
	}
	build := builders()[name]
	if build == nil {
		return "", unknown(name)
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	if err := atomicfile.Clean(cacheDir); err != nil {
		return "", err
	}
	if ref, err = build(ctx, cacheDir, step); err != nil {
		return "", fmt.Errorf("building function %s: %w", name, err)
	}
	return ref, nil
}

func unknown(name string) error {
	return fmt.Errorf("there is no built-in function %q%s (there are %s)", name, suggest.Text(name, Names()), strings.Join(Names(), ", "))
}

// HelloEnv names the environment variable with the path of the hello program.
const HelloEnv = "SKEP_HELLO"

// buildHello lays a directory image around the hello program.
func buildHello(ctx context.Context, cacheDir string, step func(string)) (string, error) {
	binary, cleanup, err := helloBinary(ctx, cacheDir, step)
	if err != nil {
		return "", err
	}
	defer cleanup()
	b, err := os.ReadFile(binary)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	final := filepath.Join(cacheDir, "hello-"+hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(final); err == nil {
		return "dir:" + final, nil
	}
	staged, err := atomicfile.Stage(cacheDir, "hello")
	if err != nil {
		return "", err
	}
	defer staged.Close()
	for _, f := range []struct {
		name string
		mode os.FileMode
		data []byte
	}{
		{"hello", 0o755, b},
		{"etc/passwd", 0o644, []byte("root:x:0:0:root:/:/hello\nbee:x:1000:1000:bee:/:/hello\n")},
		{"skep-image.json", 0o644, []byte(`{"entrypoint": ["/hello"]}` + "\n")},
	} {
		path := filepath.Join(staged.Dir, f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(staged.Dir, 0o755); err != nil {
		return "", err
	}
	if err := settle(staged.Dir); err != nil {
		return "", err
	}
	return "dir:" + final, publish(staged, final)
}

// settle gives all files one time, so that the image's digest is that of what is
// in it and snapshots outlive a lost cache.
func settle(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0))
	})
}

// publish publishes a directory where another process may have been first.
func publish(staged *atomicfile.Staged, final string) error {
	err := staged.Publish(final)
	if _, there := os.Stat(final); there == nil {
		return nil
	}
	return err
}

// helloBinary finds the program that `make build` and packages put beside skep, or
// builds it where the sources are at hand.
func helloBinary(ctx context.Context, cacheDir string, step func(string)) (path string, cleanup func(), err error) {
	none := func() {}
	if p := os.Getenv(HelloEnv); p != "" {
		return p, none, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", none, err
	}
	if p, err := filepath.EvalSymlinks(self); err == nil {
		self = p
	}
	beside := filepath.Join(filepath.Dir(self), "skep-hello")
	if _, err := os.Stat(beside); err == nil {
		return beside, none, nil
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", none, fmt.Errorf("its program is not beside %s, and there is no Go to build it: run `make build`, or set %s", self, HelloEnv)
	}
	step("compiling hello")
	dir, err := os.MkdirTemp(cacheDir, ".hello-")
	if err != nil {
		return "", none, err
	}
	out := filepath.Join(dir, "hello")
	const pkg = "github.com/skep-dev/skep/functions/hello"
	err = compile(ctx, dir, "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	if info, ok := debug.ReadBuildInfo(); err != nil && ok && strings.HasPrefix(info.Main.Version, "v") {
		// Not in the tree: skep was installed as a module, in which hello is, too.
		err = compile(ctx, dir, "install", "-trimpath", "-ldflags=-s -w", pkg+"@"+info.Main.Version)
	}
	if err != nil {
		err = fmt.Errorf("its program is not beside %s, and building it failed: %w; run this in skep's source tree, or `make build`", self, err)
		return "", none, errors.Join(err, os.RemoveAll(dir))
	}
	return out, func() { os.RemoveAll(dir) }, nil
}

// compile runs go, which installs into dir.
func compile(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
