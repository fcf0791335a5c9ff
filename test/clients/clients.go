// Package clients runs, for tests, clients that others wrote for functions like ours:
// vSwarm's invoker and STeLLAR's client. They are built from their repositories
// elsewhere, unmodified, and are in directories that environment variables name.
package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// Environment variables that name directories with the programs of others.
const (
	VSwarmEnv  = "SKEP_VSWARM"  // invoker, relay, aes-go, auth-go
	StellarEnv = "SKEP_STELLAR" // stellar, producer-consumer (that of vhive)
)

// Built is the directory that an environment variable names, with all of these programs;
// else the test is skipped, and says what to build.
func Built(t testing.TB, need, env string, programs ...string) string {
	t.Helper()
	dir := os.Getenv(env)
	var missing error
	if dir == "" {
		missing = fmt.Errorf("%s is not set", env)
	}
	for _, p := range programs {
		if _, err := exec.LookPath(filepath.Join(dir, p)); err != nil && dir != "" {
			missing = errors.Join(missing, err)
		}
	}
	testenv.NeedThat(t, need, missing, fmt.Sprintf("build %s from its repository with CGO_ENABLED=0, and have %s name the directory", strings.Join(programs, ", "), env))
	return dir
}

// Place is where a client runs.
type Place struct {
	// Dir is where it reads and writes; Command's programs find it there, too.
	Dir string
	// Hosts are the addresses of names that it is to know.
	Hosts map[string]string
	// Command is a program with its arguments.
	Command func(ctx context.Context, args ...string) *exec.Cmd
}

// command is that of a client, with an /etc/hosts of its own.
func (p Place) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	var hosts strings.Builder
	for name, address := range p.Hosts {
		fmt.Fprintln(&hosts, address, name)
	}
	if err := os.WriteFile(filepath.Join(p.Dir, "hosts"), []byte(hosts.String()), 0o644); err != nil {
		return nil, err
	}
	const script = `mount --bind "$1/hosts" /etc/hosts; cd "$1"; shift; exec "$@"`
	return p.Command(ctx, append([]string{"unshare", "--mount", "--", "sh", "-ec", script, "sh", p.Dir}, args...)...), nil
}

// run is what a client writes until it ends.
func (p Place) run(ctx context.Context, args ...string) (string, error) {
	cmd, err := p.command(ctx, args...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", filepath.Base(args[0]), err, out)
	}
	return string(out), err
}

// Start has one run in the background, until the test ends.
func (p Place) Start(t testing.TB, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd, err := p.command(ctx, args...)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	out := &testenv.Output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("%s says:\n%s", filepath.Base(args[0]), out.Tail(4000))
		}
	})
}

// write puts a value as JSON into a file of the place.
func (p Place) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := filepath.Join(p.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
