package install

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// `go install` takes the programs from a module proxy, and they say which version they
// are; the function hello is built from there, too.
func TestGoInstall(t *testing.T) {
	needPackages(t)
	const path, version = "github.com/skep-dev/skep", "v0.9.8"
	from, proxy, home := tree(t), t.TempDir(), t.TempDir()

	// A proxy as go help goproxy has it, with this tree as the module's only version.
	dir := filepath.Join(proxy, path, "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := zip.CreateFromDir(&archive, module.Version{Path: path, Version: version}, from); err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile(filepath.Join(from, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"list":            []byte(version + "\n"),
		version + ".info": []byte(`{"Version": "` + version + `", "Time": "2026-01-02T03:04:05Z"}`),
		version + ".mod":  mod,
		version + ".zip":  archive.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	// A user who has nothing of it, with the modules that this machine has, which
	// are a proxy as well.
	out, err := exec.Command("go", "env", "GOMODCACHE", "GOPROXY", "GOCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Fields(string(out))
	environ := append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME=", "GOCACHE="+env[2], "GOMODCACHE="+filepath.Join(home, "modules"), "GOBIN="+filepath.Join(home, "bin"),
		"GOPROXY=file://"+proxy+",file://"+filepath.Join(env[0], "cache", "download")+","+env[1], "GONOSUMDB="+path, "GOFLAGS=-modcacherw -trimpath", "CGO_ENABLED=0")
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = home, environ
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("go", "install", path+"/cmd/...@latest")
	for _, name := range []string{"skep", "skep-agent", "containerd-shim-skep-v2", "skep-store"} {
		if _, err := os.Stat(filepath.Join(home, "bin", name)); err != nil {
			t.Error(err)
		}
	}
	if got := run(filepath.Join(home, "bin", "skep"), "version"); !strings.HasPrefix(got, "skep "+version+" ") {
		t.Errorf("it says %s", got)
	}

	// The function is built before the daemon is asked, which is not there.
	cmd := exec.CommandContext(t.Context(), filepath.Join(home, "bin", "skep"), "deploy", "functions/hello", "--socket", filepath.Join(home, "none"))
	cmd.Dir, cmd.Env = home, environ
	out, _ = cmd.CombinedOutput()
	if found, err := filepath.Glob(filepath.Join(home, ".cache", "skep", "functions", "hello-*", "hello")); err != nil || len(found) != 1 {
		t.Errorf("hello was not built: %v, %v\n%s", found, err, out)
	}
}
