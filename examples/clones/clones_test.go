// Package clones has functions in several languages whose random numbers differ
// between the clones of a snapshot. docs/clones.md explains them.
package clones

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// entropy is what two clones are sent, and another.
var (
	entropy = strings.Repeat("0a", 64)
	another = strings.Repeat("0b", 64)
)

// TestHookMakesClonesDiffer runs each example twice, with one seed for both as
// two clones have one memory: they say the same, unless the hook gave each its
// own entropy.
func TestHookMakesClonesDiffer(t *testing.T) {
	for _, c := range []struct {
		name, program, cure string
		args                []string
	}{
		{"python", "python3", "apt-get install --no-install-recommends python3", []string{"python/server.py"}},
		{"node", "node", "apt-get install --no-install-recommends nodejs", []string{"node/server.js"}},
		{"java", "java", "apt-get install --no-install-recommends openjdk-17-jdk-headless", []string{"java/Server.java"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			program := need(t, c.program, c.cure)
			one, two := serve(t, program, c.args...), serve(t, program, c.args...)
			if a, b := one.get(t), two.get(t); a["random"] == "" || a["random"] != b["random"] {
				t.Errorf("without the hook: %v and %v, want the same random: the example shows nothing", a["random"], b["random"])
			}
			one.hook(t, entropy)
			two.hook(t, another)
			a, b := one.get(t), two.get(t)
			for what := range a {
				if a[what] == b[what] && what != "math" && what != "hash" {
					t.Errorf("with the hook, %q is %q in both clones", what, a[what])
				}
			}
			one.hook(t, entropy)
			two.hook(t, entropy)
			if a, b := one.get(t), two.get(t); a["random"] != b["random"] {
				t.Errorf("with the same entropy: %v and %v: the hook does not take it", a["random"], b["random"])
			}
		})
	}
}

// TestOpenSSLInDuplicates lets two duplicates of one process, which OpenSSL
// cannot tell from it, ask for random bytes.
func TestOpenSSLInDuplicates(t *testing.T) {
	testenv.Need(t, "root") // for name spaces of process numbers
	const cure = "apt-get install --no-install-recommends gcc libc6-dev libssl-dev"
	cc := need(t, "cc", cure)
	if err := exec.Command(cc, "-E", "-include", "openssl/rand.h", "-x", "c", os.DevNull).Run(); err != nil {
		t.Skipf("needs OpenSSL's headers: %v; to run this test: %s", err, cure)
	}
	program := filepath.Join(t.TempDir(), "duplicate")
	if out, err := exec.Command(cc, "-Wall", "-Werror", "-o", program, "openssl/renew.c", "testdata/duplicate.c", "-lcrypto").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(entropy ...string) (first, second string) {
		cmd := exec.Command(program, entropy...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(out))
		if len(lines) != 2 {
			t.Fatalf("it says %q", out)
		}
		return lines[0], lines[1]
	}
	if a, b := run(); a != b {
		t.Errorf("without the hook: %s and %s, want the same: the example shows nothing", a, b)
	}
	if a, b := run(entropy, another); a == b {
		t.Errorf("with the hook both say %s", a)
	}
}

func need(t *testing.T, program, cure string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("needs %s: %v; to run this test: %s", program, err, cure)
	}
	return path
}

// server is one example that runs.
type server struct{ url string }

func serve(t *testing.T, program string, args ...string) server {
	t.Helper()
	address := testenv.FreeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "PORT="+port, "EXAMPLE_SEED=honey")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	deadline := time.Now().Add(testenv.Limit(t, time.Minute))
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return server{"http://" + address}
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v\n%s", program, err, log.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen", program)
		}
	}
}

var client = &http.Client{Timeout: time.Minute}

func (s server) get(t *testing.T) map[string]string {
	t.Helper()
	resp, err := client.Get(s.url + "/")
	return read(t, resp, err)
}

func (s server) hook(t *testing.T, entropy string) {
	t.Helper()
	resp, err := client.Post(s.url+"/clone", "application/json", strings.NewReader(fmt.Sprintf(`{"instance":"i-1","entropy":"%s"}`, entropy)))
	read(t, resp, err)
}

func read(t *testing.T, resp *http.Response, err error) map[string]string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("status %d, %v: %s", resp.StatusCode, err, b)
	}
	var values map[string]any
	if err := json.Unmarshal(b, &values); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	out := map[string]string{}
	for name, v := range values {
		out[name] = fmt.Sprint(v)
	}
	return out
}
