package remotetest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/remote/bucket"
)

// Server is a real S3 server, versitygw, with a bucket.
type Server struct {
	URL    string
	Bucket string
	Dir    string // of the bucket's objects, as plain files

	program, address, root string
	cmd                    *exec.Cmd
}

// serverKey is both halves of the server's one account.
const serverKey = "functionbench"

// Serve builds and starts a server that ends with the test. Its credentials are put in
// the test's environment, where AWS's clients look.
func Serve(t testing.TB) *Server {
	t.Helper()
	root := t.TempDir()
	s := &Server{Bucket: "snapshots", root: root, Dir: filepath.Join(root, "snapshots"), address: testenv.FreeAddress(t), program: testenv.Program(t, "functions/s3")}
	s.URL = "http://" + s.address
	for name, value := range s.Env() {
		t.Setenv(name, value)
	}
	s.Start(t)
	t.Cleanup(s.Kill)
	return s
}

// Env is what of the environment gives who asks the right to.
func (s *Server) Env() map[string]string {
	return map[string]string{"AWS_ACCESS_KEY_ID": serverKey, "AWS_SECRET_ACCESS_KEY": serverKey, "AWS_EC2_METADATA_DISABLED": "true"}
}

// Start starts the server, again after Kill, and waits until it answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command(s.program, "-listen", s.address, "-dir", s.root, "-bucket", s.Bucket)
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := s.Open(t)
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		var err error
		for _, err = range b.List(ctx, "none") {
			break
		}
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the S3 server does not answer: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Kill ends the server at once. It is idempotent.
func (s *Server) Kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Open opens its bucket, with little patience.
func (s *Server) Open(t testing.TB, endpoints ...string) *bucket.Bucket {
	t.Helper()
	b, err := bucket.Open(t.Context(), bucket.Options{Name: s.Bucket, Endpoints: append(endpoints, s.URL), Timeout: 2 * time.Second, Tries: 1})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
