package containerd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

var update = flag.Bool("update", false, "write the golden files")

// Configurations as people have them.
const (
	users = `# Ours, by hand.
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "mine/pause:1" # mirrored
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
    runtime_type = "io.containerd.kata.v2"
`
	users3   = "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'mine/pause:1' # mirrored"
	importer = "imports = ['/srv/more.toml']\nversion = 3\n"
	imports  = "imports = ['/etc/containerd/conf.d/*.toml']\nversion = 3\n" // as `containerd config default` prints it
	byHand   = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.mine]\nruntime_type = \"io.containerd.skep.v2\"\n"
)

// place makes a host below a directory.
func place(t *testing.T, version, config string) (Host, string) {
	t.Helper()
	h := Host{Root: t.TempDir(), Version: version, Containerd: "/nonexistent/containerd"}
	if config != "" {
		path := filepath.Join(h.Root, "/etc/containerd/config.toml")
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(config), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	h.Kernel = func(_ context.Context, dir string) (string, error) {
		if exists(filepath.Join(dir, "vmlinuz")) {
			return "", nil
		}
		return "fetched it", os.WriteFile(filepath.Join(dir, "vmlinuz"), []byte("kernel"), 0o644)
	}
	from := t.TempDir()
	for _, name := range Programs {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name+" 1"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h, from
}

// files are all of a host's, with their content.
func files(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		info, serr := d.Info()
		b.WriteString("--- " + strings.TrimPrefix(path, root) + " " + info.Mode().String() + "\n" + string(text) + "\n")
		return errors.Join(err, serr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What each version's configuration looks like afterwards; that a second time
// does nothing; and that all is as before when it is undone.
func TestInstall(t *testing.T) {
	for _, tt := range []struct{ name, version, config string }{
		{"1.6-none", "1.6.20~ds1", ""},
		{"1.7-user", "v1.7.28", users},
		{"2.0-user", "2.0.5", users},
		{"2.1-user3", "2.1.0", users3},
		{"2.4-none", "v2.4.2", ""},
		{"2.4-user3", "2.4.2", users3},
		{"2.4-importer", "2.4.2", importer},
		{"2.4-imports", "2.4.2", imports},
		{"1.7-by-hand", "1.7.28", byHand},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, from := place(t, tt.version, tt.config)
			before := files(t, h.Root)
			steps, err := h.Install(t.Context(), from)
			if err != nil {
				t.Fatal(err)
			}
			after := files(t, h.Root)
			golden := filepath.Join("testdata", tt.name)
			if *update {
				if err := os.WriteFile(golden, []byte(after), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, _ := os.ReadFile(golden); after != string(want) {
				t.Errorf("after %v; `go test ./containerd -run TestInstall -update` takes this:\n%s", steps, after)
			}
			for _, p := range h.Status(t.Context(), from) {
				if !p.OK {
					t.Errorf("status of %s: %s", p.Name, p.Detail)
				}
			}
			if steps, err := h.Install(t.Context(), from); err != nil || len(steps) > 0 || files(t, h.Root) != after {
				t.Errorf("a second time it does %v, %v", steps, err)
			}
			if _, err := h.Uninstall(); err != nil {
				t.Fatal(err)
			}
			if now := files(t, h.Root); now != before {
				t.Errorf("uninstalled, what is left is\n%s\nwas\n%s", now, before)
			}
			for _, p := range h.Status(t.Context(), from) {
				if p.OK != (p.Name == "configuration" && tt.config == byHand) {
					t.Errorf("uninstalled, the status of %s is %t: %s", p.Name, p.OK, p.Detail)
				}
			}
		})
	}
}

// Only what was installed is replaced and removed.
func TestOthersFiles(t *testing.T) {
	h, from := place(t, "1.7.0", users)
	if _, err := h.Install(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	write := func(dir, name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(h.Root, "/usr/local/bin")
	write(from, Programs[0], "shim 2")
	if p := h.Status(t.Context(), from)[0]; !strings.Contains(p.Detail, "another one") {
		t.Errorf("status of an old shim: %s", p.Detail)
	}
	if steps, err := h.Install(t.Context(), from); err != nil || len(steps) != 1 {
		t.Errorf("a newer shim: %v, %v", steps, err)
	}
	write(bin, Programs[1], "somebody's")
	if _, err := h.Install(t.Context(), from); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("over somebody's program: %v", err)
	}
	// What somebody adds to the configuration, before and behind, stays.
	config := filepath.Join(h.Root, "/etc/containerd/config.toml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Dir(config), "config.toml", "# first\n"+string(text)+"[debug]\n")
	steps, err := h.Uninstall()
	if err != nil || !slices.ContainsFunc(steps, func(s string) bool { return strings.HasPrefix(s, "left ") }) {
		t.Errorf("%v, %v", steps, err)
	}
	if text, _ := os.ReadFile(config); string(text) != "# first\n"+users+"[debug]\n" {
		t.Errorf("the configuration is now\n%s", text)
	}
	if _, err := os.Stat(filepath.Join(bin, Programs[1])); err != nil {
		t.Errorf("somebody's program: %v", err)
	}
}

// Settings come from a directory, follow what is there, and go with the rest; somebody's own stay.
func TestSettingsFrom(t *testing.T) {
	h, from := place(t, "1.7.0", users)
	h.SettingsFrom = t.TempDir()
	write := func(dir, name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	etc := h.path(filepath.Dir(SettingsFile))
	write(h.SettingsFrom, "containerd.toml", "store_bucket = \"snapshots\"\n")
	write(h.SettingsFrom, "credentials", "[default]\n")
	write(h.SettingsFrom, "unknown", "no matter")
	for _, bucket := range []string{"snapshots", "others"} {
		write(h.SettingsFrom, "containerd.toml", fmt.Sprintf("store_bucket = %q\n", bucket))
		if _, err := h.Install(t.Context(), from); err != nil {
			t.Fatal(err)
		}
		if cfg, err := h.Settings(nil); err != nil || cfg.StoreBucket != bucket {
			t.Errorf("the bucket is %q, want %q: %v", cfg.StoreBucket, bucket, err)
		}
	}
	if steps, err := h.Install(t.Context(), from); err != nil || len(steps) != 0 {
		t.Errorf("again: %v, %v", steps, err)
	}
	if st, err := os.Stat(filepath.Join(etc, CredentialsFile)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("credentials: %v, %v", st, err)
	}
	if exists(filepath.Join(etc, "unknown")) {
		t.Error("what is no setting was installed")
	}
	write(etc, "store.key", "somebody's")
	write(h.SettingsFrom, "store.key", "another")
	if _, err := h.Install(t.Context(), from); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("over somebody's key: %v", err)
	}
	if _, err := h.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(etc); len(left) != 1 || left[0].Name() != "store.key" {
		t.Errorf("left are %v", left)
	}
}

// While a container runs its shim's program stays, or a containerd that is started
// again would end the container.
func TestUninstallSparesWhatRuns(t *testing.T) {
	h, from := place(t, "1.7.24", users)
	if _, err := h.Install(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	dir := h.path(SocketDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		steps, err := h.Uninstall()
		if err != nil || !strings.Contains(strings.Join(steps, "\n"), "1 pods or containers run") {
			t.Errorf("%q, %v", steps, err)
		}
		for _, name := range Programs {
			if !exists(h.path(filepath.Join("/usr/local/bin", name))) {
				t.Errorf("%s is gone", name)
			}
		}
		if there, err := h.Configured(t.Context()); err != nil || there {
			t.Errorf("it is configured: %v, %v", there, err)
		}
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as of one that was killed
	l.Close()
	if _, err := h.Uninstall(); err != nil {
		t.Error(err)
	}
	for _, name := range Programs {
		if exists(h.path(filepath.Join("/usr/local/bin", name))) {
			t.Errorf("%s is left", name)
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, tt := range []struct{ name, version, config, says string }{
		{"old", "1.5.9", "", "1.6 or later"},
		{"no version", "head", "", "such as"},
		{"an old configuration", "1.7.0", "[plugins.cri]\n", "version 2"},
		{"not TOML", "1.7.0", "version = \n", "config.toml"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, from := place(t, tt.version, tt.config)
			before := files(t, h.Root)
			if _, err := h.Install(t.Context(), from); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want an error with %q", err, tt.says)
			}
			if after := files(t, h.Root); after != before {
				t.Errorf("it has done something:\n%s", after)
			}
		})
	}
	h := Host{Root: t.TempDir(), Containerd: "/nonexistent/containerd"}
	if _, err := h.Install(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "install containerd") {
		t.Errorf("without containerd: %v", err)
	}
}

// The containerds that there are see the runtime, and what was there before.
func TestRealContainerds(t *testing.T) {
	testenv.Need(t, "containerd")
	var programs []string
	if path, err := exec.LookPath("containerd"); err == nil {
		programs = append(programs, path)
	}
	if dir := os.Getenv(testenv.ContainerdEnv); dir != "" {
		programs = append(programs, filepath.Join(dir, "containerd"))
	}
	for _, program := range programs {
		dir, from := t.TempDir(), t.TempDir()
		for _, name := range Programs {
			if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		h := Host{BinDir: filepath.Join(dir, "bin"), DataDir: filepath.Join(dir, "data"), Config: filepath.Join(dir, "config.toml"), Containerd: program}
		// Once by a file of its own, where this containerd has that, and last by the
		// configuration itself.
		for _, text := range []string{"imports = ['" + dir + "/conf.d/*.toml']\n" + users, users} {
			if err := os.WriteFile(h.Config, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Install(t.Context(), from); err != nil {
				t.Fatalf("%s: %v", program, err)
			}
		}
		out, err := exec.Command(program, "--config", h.Config, "config", "dump").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"mine/pause:1", "io.containerd.kata.v2", Runtime, "runtimes." + Handler} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s does not see %s in\n%s", program, want, out)
			}
		}
		// A configuration that it does not take is left as it was.
		broken := users + "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.skep]\nruntime_type = 7\n"
		if err := os.WriteFile(h.Config, []byte(broken), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Install(t.Context(), from); err == nil || !strings.Contains(err.Error(), "left as it was") {
			t.Errorf("%s: a table that is there twice: %v", program, err)
		}
		if text, _ := os.ReadFile(h.Config); string(text) != broken {
			t.Errorf("%s: the configuration is now\n%s", program, text)
		}
	}
}
