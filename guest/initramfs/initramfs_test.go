package initramfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/testenv"
)

func fakeAgent(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "skep-agent")
	if err := os.WriteFile(path, []byte("agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// unpack returns an archive's files and the order they are in.
func unpack(t *testing.T, b []byte) (files map[string]string, order []string) {
	t.Helper()
	files = map[string]string{}
	r := cpio.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, order
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.IsZero() && h.ModTime.Unix() != 0 {
			t.Errorf("%s has the time %v", h.Name, h.ModTime)
		}
		files[h.Name] = string(data)
		order = append(order, h.Name)
	}
}

func TestPack(t *testing.T) {
	testenv.Need(t, "kernel")
	k := testenv.Kernel(t)
	agent := fakeAgent(t)
	b, err := Pack(agent, k)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Pack(agent, k)
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("the same parts give other bytes (%v)", err)
	}
	files, names := unpack(t, b)
	if files["init"] != "agent" {
		t.Errorf("init is %q", files["init"])
	}
	if !slices.Contains(names, "proc") {
		t.Errorf("no directory for mounts in %q", names)
	}
	list := strings.Fields(files["modules.order"])
	for i, path := range list {
		data, ok := files[strings.TrimPrefix(path, "/")]
		if !ok {
			t.Fatalf("%s is not there", path)
		}
		deps, err := dependencies([]byte(data))
		if err != nil {
			t.Error(err)
		}
		for _, d := range deps {
			if at := slices.Index(list, "/modules/"+strings.ReplaceAll(d, "-", "_")+".ko"); at >= i {
				t.Errorf("%s comes before %s, which it needs", path, d)
			}
		}
	}
}

func TestBuildOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	agent := fakeAgent(t)
	a, err := Build(dir, agent, kernel.Kernel{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Build(dir, agent, kernel.Kernel{})
	if err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("%+v and %+v, %v", a, b, err)
	}
	if after, err := os.Stat(a.Path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was written again (%v)", err)
	}
	if err := os.WriteFile(a.Path, []byte("damaged"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(dir, agent, kernel.Kernel{}); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(a.Path); err != nil || after.Size() != before.Size() {
		t.Errorf("a damaged one was left (%v)", err)
	}
}

// modules makes a directory of modules, compressed in all ways, from a real one.
func modules(t *testing.T) (dir string, plain []byte) {
	t.Helper()
	k := testenv.Kernel(t)
	r := resolver{dir: k.Modules, builtin: map[string]bool{}, paths: map[string]string{}}
	if err := r.index(); err != nil {
		t.Fatal(err)
	}
	plain, err := readModule(r.paths["failover"]) // needs nothing
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "6.0.0")
	if err := os.MkdirAll(filepath.Join(dir, "kernel/a"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, pack func(w io.Writer) (io.WriteCloser, error)) {
		var b bytes.Buffer
		w, err := pack(&b)
		if err == nil {
			_, err = w.Write(plain)
		}
		if err == nil {
			err = w.Close()
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "kernel/a", name), b.Bytes(), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("with-dash.ko.xz", func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) })
	write("packed.ko.zst", func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })
	if err := os.WriteFile(filepath.Join(dir, "kernel/a/damaged.ko.xz"), []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/fs/ext4/ext4.ko\nkernel/a/built-in.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, plain
}

func TestResolve(t *testing.T) {
	testenv.Need(t, "kernel")
	dir, plain := modules(t)
	got, err := resolve(dir, []string{"ext4", "with-dash", "with_dash", "packed", "built_in"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].name != "with_dash" || got[1].name != "packed" || !bytes.Equal(got[0].data, plain) || !bytes.Equal(got[1].data, plain) {
		t.Errorf("%d modules", len(got))
	}
	for _, name := range []string{"missing", "damaged"} {
		if _, err := resolve(dir, []string{name}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// Whether there is a driver is known of modules and of what is built in.
func TestHas(t *testing.T) {
	testenv.Need(t, "kernel")
	dir, _ := modules(t)
	for name, want := range map[string]bool{"with_dash": true, "built_in": true, "missing": false} {
		if got, err := Has(kernel.Kernel{Modules: dir}, name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if got, err := Has(kernel.Kernel{}, "ext4"); err != nil || got {
		t.Errorf("a kernel without modules: %v, %v", got, err)
	}
}

func TestFindAgent(t *testing.T) {
	agent := fakeAgent(t)
	t.Setenv(AgentEnv, agent)
	if got, err := FindAgent(); err != nil || got != agent {
		t.Errorf("%q, %v", got, err)
	}
	t.Setenv(AgentEnv, agent+"-not")
	if _, err := FindAgent(); err == nil || !strings.Contains(err.Error(), AgentEnv) {
		t.Errorf("error %v", err)
	}
	t.Setenv(AgentEnv, "")
	if _, err := FindAgent(); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("error without a cure: %v", err)
	}
}

// TestCrowdBuilds has processes make the initramfs at the same time, some of which
// are killed at it: in the end it is there, whole, and nothing else.
func TestCrowdBuilds(t *testing.T) {
	const dirEnv, agentEnv = "SKEP_TEST_INITRAMFS_DIR", "SKEP_TEST_INITRAMFS_AGENT"
	build := func(dir, agent string) []byte {
		i, err := Build(dir, agent, kernel.Kernel{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(i.Path)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b); i.Digest != "sha256:"+hex.EncodeToString(sum[:]) {
			t.Errorf("%s has not the digest %s", i.Path, i.Digest)
		}
		return b
	}
	if m, ok := testenv.CrowdMember(); ok {
		for range 20 {
			// One of two agents, so that there is something to make for more than the first.
			build(os.Getenv(dirEnv), os.Getenv(agentEnv)+strings.Repeat("2", m.IntN(2)))
		}
		return
	}
	dir, agent := t.TempDir(), fakeAgent(t)
	for i, path := range []string{agent, agent + "2"} {
		if err := os.WriteFile(path, bytes.Repeat([]byte{byte(i)}, 4<<20), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Crowd{Size: 6, Kills: 18, Within: 30 * time.Millisecond, Env: []string{dirEnv + "=" + dir, agentEnv + "=" + agent}}.Run(t)
	build(dir, agent)
	build(dir, agent+"2")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v", left, err)
	}
}
