package cluster

import (
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

func place(t *testing.T) *Cluster {
	t.Helper()
	c, err := New(Options{Dir: filepath.Join(t.TempDir(), "cluster")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Every certificate is good for what it is for, in the eyes of the authority that is
// to see it and of no other; a second time none is made anew.
func TestPKI(t *testing.T) {
	c := place(t)
	if err := c.writePKI(); err != nil {
		t.Fatal(err)
	}
	authorities := map[string]*x509.CertPool{}
	for _, cert := range certificates {
		if cert.ca == "" {
			parsed, _, err := readCA(c.path("pki"), cert.name)
			if err != nil {
				t.Fatal(err)
			}
			authorities[cert.name] = x509.NewCertPool()
			authorities[cert.name].AddCert(parsed)
		}
	}
	for _, cert := range certificates {
		if cert.ca == "" {
			continue
		}
		parsed, _, err := readCA(c.path("pki"), cert.name)
		if err != nil {
			t.Fatal(err)
		}
		for name, pool := range authorities {
			_, err := parsed.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			if (err == nil) != (name == cert.ca) {
				t.Errorf("%s in the eyes of %s: %v", cert.name, name, err)
			}
		}
		_, err = parsed.Verify(x509.VerifyOptions{Roots: authorities[cert.ca], DNSName: nodeIP})
		if (err == nil) != cert.server {
			t.Errorf("%s as a server at the node's address: %v", cert.name, err)
		}
	}
	before := read(t, c.path("pki/admin.crt"))
	if err := c.writePKI(); err != nil || read(t, c.path("pki/admin.crt")) != before {
		t.Errorf("a second time it is another certificate, %v", err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A directory that holds something else is neither written to nor removed.
func TestOthersDirectory(t *testing.T) {
	c := place(t)
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	precious := c.path("precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Down(t.Context()); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("ending a cluster there: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

// A cluster that was never up is nothing to end; one that was interrupted before it ran
// is removed.
func TestDownOfNone(t *testing.T) {
	c := place(t)
	if err := c.Down(t.Context()); err != nil {
		t.Error(err)
	}
	l, err := c.lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Down(t.Context()); err == nil {
		t.Error("it was ended while somebody was starting it")
	}
	l.Release()
	// As one that was killed and whose number another process has got meanwhile.
	if err := write(c.path(pidFile), []byte("1\n")); err != nil {
		t.Fatal(err)
	}
	if pid, err := c.PID(); err != nil || pid != 0 {
		t.Errorf("process 1 is taken for the cluster's: %d, %v", pid, err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
}

// What a program lacks is said with its cure before anything is built.
func TestProgramsLacking(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv(ContainerdEnv, t.TempDir())
	_, err := Programs(t.Context(), func(step string) { t.Errorf("it begins with %s", step) })
	if err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends containerd") {
		t.Errorf("without containerd: %v", err)
	}
}

// A program of Kubernetes' comes from the directory that is named, never from the PATH.
func TestProgramsFound(t *testing.T) {
	onPath, named := t.TempDir(), t.TempDir()
	for _, dir := range []string{onPath, named} {
		if err := os.WriteFile(filepath.Join(dir, "kubectl"), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", onPath)
	t.Setenv(KubernetesEnv, "")
	kubectl := program{name: "kubectl", module: "kubernetes", env: KubernetesEnv}
	if path := kubectl.find(""); path != "" {
		t.Errorf("it is found at %s", path)
	}
	t.Setenv(KubernetesEnv, named)
	if path := kubectl.find(""); path != filepath.Join(named, "kubectl") {
		t.Errorf("it is found at %q", path)
	}
}

// All configuration can be written, and nothing in it is left out.
func TestFiles(t *testing.T) {
	if _, err := cniDir(); err != nil {
		t.Skip(err)
	}
	c := place(t)
	c.port = 12345
	if err := errors.Join(c.writePKI(), c.writeFiles()); err != nil {
		t.Fatal(err)
	}
	if text := read(t, c.Kubeconfig()); !strings.Contains(text, "https://127.0.0.1:12345") {
		t.Errorf("the administrator's configuration:\n%s", text)
	}
	if text := read(t, c.path("etc/kubelet.yaml")); !strings.Contains(text, "cgroupRoot: "+c.Cgroup()+"\n") {
		t.Errorf("the kubelet's configuration:\n%s", text)
	}
}

// Both directions are passed on, and each end of one on its own.
func TestPassage(t *testing.T) {
	testenv.NoLeaks(t)
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() { // answers when it has heard all
		conn, err := server.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		_, _ = conn.Write(append([]byte("heard "), b...))
	}()
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer door.Close()
	go (&passage{to: server.Addr().String()}).serve(door)
	conn, err := net.Dial("tcp", door.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = conn.Write([]byte("hello"))
	if err := errors.Join(err, conn.(*net.TCPConn).CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "heard hello" {
		t.Errorf("it answers %q, %v", b, err)
	}
}
