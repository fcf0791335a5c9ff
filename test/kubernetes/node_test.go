package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/shimtest"
)

// image is what pods of tests run.
const image = shimtest.ProbeImage

// allEnv asks for all tests: `make test-kubernetes` sets it.
const allEnv = "SKEP_TEST_KUBERNETES"

// runtimeEnv names the runtime class of pods in place of skep; "runc" is none. What
// fails with that too is not skep's doing.
const runtimeEnv = "SKEP_TEST_RUNTIME"

// manifest has objects in a runtime class.
func manifest(objects string) string {
	switch class := os.Getenv(runtimeEnv); class {
	case "":
		return objects
	case "runc":
		return strings.ReplaceAll(objects, "runtimeClassName: skep\n", "\n")
	default:
		return strings.ReplaceAll(objects, "runtimeClassName: skep\n", "runtimeClassName: "+class+"\n")
	}
}

// node is the cluster that all tests of a run share.
type node struct {
	*testing.T
	c      *cluster.Cluster
	before []string // what was there without pods of tests
	slower int      // how many times longer than usual things may take; 0 is once
}

// shared is started by the first test.
var shared struct {
	once    sync.Once
	cluster *cluster.Cluster
	before  []string
	err     error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if c := shared.cluster; c != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if err := down(ctx, c); err != nil {
			fmt.Fprintln(os.Stderr, "ending the cluster:", err)
			code = max(code, 1)
		}
		cancel()
	}
	shimtest.Exit(code)
}

// down ends the cluster and says what is left of it.
func down(ctx context.Context, c *cluster.Cluster) error {
	if keep := os.Getenv("SKEP_TEST_KEEP"); keep != "" {
		return nil
	}
	if err := c.Down(ctx); err != nil {
		return err
	}
	if _, err := os.Stat(c.Dir()); err == nil {
		return fmt.Errorf("%s is left", c.Dir())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), c.Dir()) {
		return fmt.Errorf("mounts below %s are left", c.Dir())
	}
	for _, pattern := range []string{"/sys/fs/cgroup/skep-cluster-*", "/sys/fs/cgroup/*/skep-cluster-*"} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			if strings.HasSuffix(dir, strings.ReplaceAll(c.Dir(), "/", "-")) {
				return fmt.Errorf("cgroup %s is left", dir)
			}
		}
	}
	return nil
}

// onNode is for a test of the few that every run of tests has, where a cluster's
// programs are.
func onNode(t *testing.T) *node {
	t.Helper()
	needs(t)
	shared.once.Do(func() { shared.err = start(t) })
	if shared.err != nil {
		t.Fatalf("starting the cluster: %v", shared.err)
	}
	n := &node{T: t, c: shared.cluster, before: shared.before}
	t.Cleanup(func() {
		if t.Failed() {
			n.explain()
		}
	})
	t.Cleanup(n.clean)
	return n
}

// needs skips a test where a cluster cannot be.
func needs(t *testing.T) {
	t.Helper()
	testenv.Need(t, "root", "netns", "uffd", "tap", "kernel", "mkfs", "nft", "runc", "containerd")
	if !testenv.Has("kvm") || !testenv.Has("firecracker") {
		testenv.Need(t, "qemu")
	}
	if os.Getenv(allEnv) == "" {
		testenv.NeedThat(t, "kubernetes", cluster.Missing(), "`make cluster` builds what is missing, in a quarter of an hour, and installs the rest; "+cluster.KubernetesEnv+" names a directory with programs that are there")
	}
}

// needsVMs skips a test of what only microVMs are.
func needsVMs(t *testing.T) {
	t.Helper()
	if os.Getenv(runtimeEnv) != "" {
		t.Skipf("it is about microVMs: unset %s", runtimeEnv)
	}
}

// onNodeOfAll is for the others.
func onNodeOfAll(t *testing.T) *node {
	t.Helper()
	whenAll(t)
	return onNode(t)
}

func whenAll(t *testing.T) {
	t.Helper()
	if os.Getenv(allEnv) == "" {
		t.Skipf("takes a minute: `make test-kubernetes`, or %s=all, has it run", allEnv)
	}
}

// say tells how far the cluster is, also when the last test has ended.
func say(step string) {
	if testing.Verbose() {
		fmt.Fprintln(os.Stderr, "cluster:", step)
	}
}

// start starts the cluster that tests share.
func start(t *testing.T) (err error) {
	if shared.cluster, err = launch(t, false); err != nil {
		return err
	}
	if err := shared.cluster.Import(t.Context(), shimtest.ProbeImage, shimtest.Probe(t)); err != nil {
		return err
	}
	n := &node{T: t, c: shared.cluster}
	shared.before = n.there()
	return nil
}

// nodeImage is where, in its directory, a bare cluster has the image for nodes.
const nodeImage = "node.tar"

// launch starts a cluster: with skep, or bare. It is there, to be ended, also with an
// error.
func launch(t *testing.T, bare bool) (*cluster.Cluster, error) {
	bin, err := os.MkdirTemp("", "skep-cluster-bin-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(bin) // what the cluster needs of it is copied
	for name, pkg := range map[string]string{
		"skep": "cmd/skep", "containerd-shim-skep-v2": "cmd/containerd-shim-skep-v2", "skep-agent": "cmd/skep-agent", "skep-store": "cmd/skep-store",
		"skep-hello": "functions/hello", "skep-cluster": "cmd/skep-cluster", "skep-pause": "cluster/pause",
	} {
		if err := testenv.Build(filepath.Join(bin, name), pkg); err != nil {
			return nil, err
		}
	}
	// On a disk, since guest memory is read with O_DIRECT; short, for sockets.
	dir, err := os.MkdirTemp("/var/tmp", "skep-k8s-")
	if err != nil {
		return nil, err
	}
	c, err := cluster.New(cluster.Options{
		Dir: dir, Skep: bin, Self: filepath.Join(bin, "skep-cluster"), Pause: filepath.Join(bin, "skep-pause"),
		Kernels: testenv.KernelStore(t), Step: say, Bare: bare, Traces: !bare && os.Getenv(allEnv) != "",
	})
	if err == nil {
		err = c.Up(t.Context())
	}
	if err == nil && bare {
		err = cluster.WriteNodeImage(t.Context(), filepath.Join(dir, nodeImage), bin, testenv.KernelStore(t))
	}
	return c, err
}

// limit is for how long something may take, on a node that also restores and boots
// guests under emulation.
func (n *node) limit() time.Duration {
	return testenv.Limit(n.T, time.Duration(max(1, n.slower))*2*time.Minute)
}

// try runs kubectl.
func (n *node) try(stdin string, args ...string) (string, error) {
	n.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), n.limit())
	defer cancel()
	cmd := exec.CommandContext(ctx, n.c.Kubectl(), append([]string{"--kubeconfig=" + n.c.Kubeconfig()}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// kubectl runs it, which has to succeed.
func (n *node) kubectl(args ...string) string {
	n.Helper()
	out, err := n.try("", args...)
	if err != nil {
		n.Fatal(err)
	}
	return out
}

// apply makes objects, which the test's end deletes and waits for.
func (n *node) apply(objects string) {
	n.Helper()
	n.Cleanup(func() {
		if _, err := n.try(objects, "delete", "--ignore-not-found", "--wait", "-f", "-"); err != nil {
			n.Error(err)
		}
	})
	n.change(objects)
}

// change applies objects that apply has made, as they are to be now.
func (n *node) change(objects string) {
	n.Helper()
	if _, err := n.try(manifest(objects), "apply", "-f", "-"); err != nil {
		n.Fatal(err)
	}
}

// ready waits for a pod.
func (n *node) ready(pod string) {
	n.Helper()
	n.kubectl("wait", "--for=condition=Ready", "pod/"+pod, "--timeout="+n.limit().String())
}

// get is what a JSON path says of an object: get("pod/app", ".status.podIP").
func (n *node) get(object, path string) string {
	n.Helper()
	return n.kubectl("get", object, "-o", "jsonpath={"+path+"}")
}

// becomes waits until a JSON path of an object says what is wanted.
func (n *node) becomes(object, path, want string) {
	n.Helper()
	n.eventually(object+" "+path, want, func() (string, error) { return n.try("", "get", object, "-o", "jsonpath={"+path+"}") })
}

// eventually waits until something says what is wanted.
func (n *node) eventually(what, want string, ask func() (string, error)) {
	n.Helper()
	var got string
	var err error
	for end := time.Now().Add(n.limit()); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if got, err = ask(); err == nil && got == want {
			return
		}
	}
	n.Fatalf("%s is %q, %v: want %q", what, got, err, want)
}

// says waits until the events of an object have a text.
func (n *node) says(object, text string) {
	n.Helper()
	var events string
	for end := time.Now().Add(n.limit()); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if events, _ = n.try("", "get", "events", "--field-selector", "involvedObject.name="+object, "-o", `jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`); strings.Contains(events, text) {
			return
		}
	}
	n.Errorf("no event of %s has %q; they are\n%s", object, text, events)
}

// client is one on the node: it reaches pods and services by their addresses.
func (n *node) client() *http.Client {
	return &http.Client{Timeout: n.limit(), Transport: &http.Transport{DialContext: n.c.Dial, DisableKeepAlives: true}}
}

// answers waits until a URL, asked for on the node, is answered with a text.
func (n *node) answers(url, want string) {
	n.Helper()
	client := n.client()
	n.eventually(url, want, func() (string, error) { return fetch(client, url) })
}

// there is what pods have of the node: sandboxes, VMMs and shims, network namespaces,
// interfaces, cgroups.
func (n *node) there() (list []string) {
	n.Helper()
	out, err := n.c.Command(context.Background(), "sh", "-c", `
		for p in /proc/[0-9]*; do case $(readlink $p/exe) in *qemu*|*firecracker*|*shim*) echo "process $(tr '\0' ' ' <$p/cmdline)";; esac; done
		ls /run/netns | sed 's/^/netns /'
		ip -o link | awk '{ sub(/@.*/, "", $2); print "interface", $2 }'
		ls /run/skep /run/containerd/s 2>/dev/null | sed 's/^/file /'
		awk '{ print "mount", $2 }' /proc/mounts | grep -v /run/netns/
		find /sys/fs/cgroup -type d -path "*$1/kubepods/*" | grep -E '/(pod[^/]*|[0-9a-f]{64})$' | sed 's/^/cgroup /'
	`, "sh", n.c.Cgroup()).Output()
	if err != nil {
		n.Fatalf("looking at the node: %v", err)
	}
	return slices.Sorted(slices.Values(strings.Split(strings.TrimSpace(string(out)), "\n")))
}

// clean fails the test unless what its pods had of the node goes.
func (n *node) clean() {
	n.Helper()
	var left []string
	for end := time.Now().Add(n.limit()); ; time.Sleep(500 * time.Millisecond) {
		left = slices.DeleteFunc(n.there(), func(s string) bool { return slices.Contains(n.before, s) })
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	n.Errorf("left on the node:\n  %s", strings.Join(left, "\n  "))
}

// explain tells of a failed test what the cluster says.
func (n *node) explain() {
	out, _ := n.try("", "get", "pods,events", "-o", "wide")
	n.Log(out)
	for _, name := range []string{"kubelet", "containerd"} {
		b, _ := os.ReadFile(n.c.Log(name))
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		n.Logf("%s says:\n%s", name, strings.Join(lines[max(0, len(lines)-30):], "\n"))
	}
}

// pod is the manifest of a pod in a microVM that runs the probe with these arguments; more
// is further YAML of its container.
func pod(name string, annotations map[string]string, more string, args ...string) string {
	command, _ := json.Marshal(args)
	notes, _ := json.Marshal(annotations)
	if annotations == nil {
		notes = []byte("{}")
	}
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}, annotations: %[2]s}
spec:
  runtimeClassName: skep
  terminationGracePeriodSeconds: 5
  containers:
  - name: app
    image: %[3]s
    args: %[4]s
%[5]s
`, name, notes, shimtest.ProbeImage, command, indent(more, 4))
}

func indent(text string, by int) string {
	var b strings.Builder
	for line := range strings.Lines(strings.Trim(text, "\n")) {
		b.WriteString(strings.Repeat(" ", by) + line)
	}
	return b.String()
}

// with adds YAML to a pod's specification.
func with(pod, more string) string {
	return strings.Replace(pod, "\nspec:\n", "\nspec:\n"+indent(more, 2)+"\n", 1)
}
