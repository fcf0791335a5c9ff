package shimtest

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

// Case is one of critest's, as it went.
type Case struct {
	Name  string
	State string // passed, failed, skipped, …: ginkgo's words
	Why   string // what it says beside it
}

// Critest runs critest, the CRI's validation suite, with a runtime handler. focus
// selects cases by a regular expression; "" is all. What is not selected is not
// in the result.
func (p *Pods) Critest(handler, focus string) []Case {
	p.t.Helper()
	report := filepath.Join(p.Dir, "critest-"+handler+".json")
	args := []string{"--runtime-handler", handler, "--runtime-endpoint", "unix://" + p.Address, "--image-endpoint", "unix://" + p.Address,
		"--config", os.DevNull, "--ginkgo.json-report", report, "--ginkgo.seed", "1"}
	if focus != "" {
		args = append(args, "--ginkgo.focus", focus)
	}
	// Of what a case mounts it leaves something when it fails.
	files := filepath.Join(p.Dir, "critest-"+handler)
	if err := os.Mkdir(files, 0o755); err != nil {
		p.t.Fatal(err)
	}
	defer p.unmount(files + "/")
	cmd := p.Command(critest(p.t), args...)
	cmd.Env = append(cmd.Env, "TMPDIR="+files)
	out, err := os.Create(filepath.Join(p.Dir, "critest-"+handler+".log"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if r := run(p.t.Context(), cmd); r.Err != nil {
		p.t.Fatalf("critest: %v", r.Err)
	}
	p.Call("rmp", "--all", "--force") // some cases leave their pod when they fail
	b, err := os.ReadFile(report)
	if err != nil {
		said, _ := os.ReadFile(out.Name())
		p.t.Fatalf("critest has written no report: %v\n%s", err, said)
	}
	cases, err := readReport(b)
	if err != nil {
		p.t.Fatal(err)
	}
	return cases
}

// readReport reads ginkgo's report.
func readReport(b []byte) (cases []Case, err error) {
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal(b, &suites); err != nil {
		return nil, fmt.Errorf("reading critest's report: %w", err)
	}
	for _, s := range suites {
		for _, r := range s.SpecReports {
			if r.LeafNodeType != "It" || r.State == "skipped" && r.Failure.Message == "" { // not selected
				continue
			}
			words := append(r.ContainerHierarchyTexts, r.LeafNodeText)
			cases = append(cases, Case{strings.TrimPrefix(strings.Join(words, " "), "[k8s.io] "), r.State, r.Failure.Message})
		}
	}
	return cases, nil
}

// critest finds the program, as CRI finds crictl.
func critest(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("critest")
	if err != nil {
		path = filepath.Join(os.Getenv(testenv.ContainerdEnv), "critest")
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs critest: put it on the PATH or into the directory that %s names (go install sigs.k8s.io/cri-tools/cmd/critest@v1.34.0)", testenv.ContainerdEnv)
	}
	return path
}

// Names of critest's images.
const (
	e2eImages = "e2e-test-images/"
	criImages = "k8s-staging-cri-tools/"
)

// Registries has the daemon pull all images from a registry of the test's, which
// has stand-ins for critest's images.
func (p *Pods) Registries() {
	t := p.t
	t.Helper()
	l, err := p.Listen()
	if err != nil {
		t.Fatalf("listening in the pods' network: %v", err)
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	// Filled from here, by another listener.
	here := httptest.NewServer(server.Handler)
	t.Cleanup(here.Close)
	for ref, img := range critestImages(t) {
		tag, err := name.NewTag(strings.TrimPrefix(here.URL, "http://")+"/"+ref, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(tag, img, remote.WithContext(t.Context())); err != nil {
			t.Fatalf("pushing %s: %v", ref, err)
		}
	}
	dir := filepath.Join(p.Dir, registriesDir, "_default")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", "http://"+l.Addr().String(), "http://"+l.Addr().String())
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
}

// registriesDir has the daemon's configuration of registries, below its Dir.
const registriesDir = "certs.d"

// Listen listens at a port of 127.0.0.1 in the daemon's network namespace.
func (c *Containerd) Listen() (l net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var ns *os.File
		if ns, err = os.Open(strings.TrimSuffix(c.mounts, "mnt") + "net"); err != nil {
			return
		}
		defer ns.Close()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			l, err = net.Listen("tcp", "127.0.0.1:0")
		}
	}()
	<-done
	return l, err
}

// critestImages are stand-ins for critest's images, by repository and tag. They
// are made of a static busybox and the probe.
func critestImages(t testing.TB) map[string]v1.Image {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a static busybox for images: apt-get install --no-install-recommends busybox-static")
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	probe, err := os.ReadFile(filepath.Join(mustProgram(t), "probe"))
	if err != nil {
		t.Fatal(err)
	}
	base := []File{
		{Name: "bin/busybox", Mode: 0o755, Content: string(program)},
		{Name: "etc/passwd", Content: "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"},
		{Name: "etc/group", Content: "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\nnobody:x:65534:\n"},
		{Name: "tmp/", Mode: 0o1777}, {Name: "root/", Mode: 0o700}, {Name: "home/default-user/", UID: 1000, GID: 1000}, {Name: "var/run/"}, {Name: "var/www/"},
		{Name: "proc/"}, {Name: "sys/"}, {Name: "dev/"},
	}
	for a := range strings.FieldsSeq(string(applets)) {
		if a != "busybox" { // hard links: a case masks one of them and not the others
			base = append(base, File{Name: "bin/" + a, Link: "bin/busybox", Hard: true, Mode: 0o755})
		}
	}
	for _, s := range scripts {
		if i := slices.IndexFunc(base, func(f File) bool { return f.Name == s.Name }); i < 0 {
			base = append(base, s)
		}
	}
	image := func(config v1.Config, more ...File) v1.Image {
		config.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		return Image(t, config, base, more)
	}
	shell := []string{"sh"}
	marked := func(name string) v1.Image {
		return image(v1.Config{Cmd: shell}, File{Name: name, Content: name})
	}
	user := func(u string) v1.Image { return image(v1.Config{Cmd: shell, User: u}) }
	// "master process" is what a case looks for among the arguments of the first
	// process.
	web := func(name, port string) v1.Image {
		return image(v1.Config{Entrypoint: []string{name, port, "/var/run/nginx.pid", "master process"}},
			File{Name: "usr/sbin/" + name, Mode: 0o755, Content: string(probe)})
	}
	all := map[string]v1.Image{
		e2eImages + "busybox:1.29-2":                              image(v1.Config{Cmd: shell}),
		e2eImages + "nginx:1.14-2":                                web("nginx", "80"), // by whose name a case looks for it
		e2eImages + "httpd:2.4.39-4":                              web("httpd", "80"),
		e2eImages + "nonewprivs:1.3":                              image(v1.Config{Entrypoint: []string{"euid"}}, File{Name: "bin/euid", Mode: 0o4755, Content: string(probe)}),
		criImages + "hostnet-nginx-" + runtime.GOARCH + ":latest": web("nginx", "12003"),
		criImages + "test-image-user-uid:latest":                  user("1002"),
		criImages + "test-image-user-username:latest":             user("www-data"),
		criImages + "test-image-user-uid-group:latest":            user("1003:1004"),
		criImages + "test-image-user-username-group:latest":       user("www-data:1004"),
		criImages + "test-image-predefined-group:latest":          user("1000"),
		criImages + "test-image-latest:latest":                    marked("test-image-latest"),
		criImages + "test-image-tag:test":                         marked("test-image-tag"),
		criImages + "test-image-tag:all":                          marked("test-image-tag-all"),
	}
	tags := marked("test-image-tags")
	for _, n := range []string{"1", "2", "3"} {
		all[criImages+"test-image-"+n+":latest"] = marked("test-image-" + n)
		all[criImages+"test-image-tags:"+n] = tags
	}
	return all
}

// scripts stand in for applets that Debian's busybox has not.
var scripts = []File{
	{Name: "bin/pgrep", Mode: 0o755, Content: `#!/bin/sh
for d in /proc/[0-9]*; do read -r n <$d/comm && [ "$n" = "$1" ] && echo ${d##*/}; done 2>/dev/null`},
	{Name: "bin/ipcs", Mode: 0o755, Content: `#!/bin/sh
awk 'NR > 1 { print $1, $2 }' /proc/sysvipc/shm`},
}

func mustProgram(t testing.TB) string {
	t.Helper()
	dir, err := program()
	builtOnce = true
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
