package remote

import (
	"bytes"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// ask runs a command through a pipe and a server of its own.
func ask(t *testing.T, c Command, stdin io.Reader) (code int, stdout, stderr string, err error) {
	t.Helper()
	client, server := net.Pipe()
	served := make(chan struct{})
	go func() {
		Serve(server)
		close(served)
	}()
	var out, errs bytes.Buffer
	code, err = Run(client, c, stdin, &out, &errs)
	<-served
	return code, out.String(), errs.String(), err
}

func TestRun(t *testing.T) {
	testenv.NoLeaks(t)
	large := strings.Repeat("0123456789abcdef", 64<<10)
	for _, test := range []struct {
		name           string
		command        Command
		stdin          string
		code           int
		stdout, stderr string
	}{
		{"outputs are kept apart", Command{Args: []string{"sh", "-c", "echo a; echo b >&2"}}, "", 0, "a\n", "b\n"},
		{"exit code", Command{Args: []string{"sh", "-c", "exit 7"}}, "", 7, "", ""},
		{"signal", Command{Args: []string{"sh", "-c", "kill -TERM $$"}}, "", 128 + 15, "", ""},
		{"input and its end", Command{Args: []string{"cat"}}, large, 0, large, ""},
		{"input that nobody reads", Command{Args: []string{"true"}}, large, 0, "", ""},
		{"environment and directory", Command{Args: []string{"sh", "-c", "echo $X $PWD"}, Env: []string{"X=y"}, Dir: "/"}, "", 0, "y /\n", ""},
		{"terminal", Command{Args: []string{"sh", "-c", "stty size"}, Terminal: true, Rows: 33, Columns: 77}, "", 0, "33 77\r\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			code, out, errs, err := ask(t, test.command, strings.NewReader(test.stdin))
			if err != nil || code != test.code || out != test.stdout || errs != test.stderr {
				t.Errorf("%d, %.200q, %.200q, %v; want %d, %.200q, %.200q", code, out, errs, err, test.code, test.stdout, test.stderr)
			}
		})
	}
}

func TestRunErrors(t *testing.T) {
	for _, args := range [][]string{nil, {"/nonexistent/program"}} {
		if _, _, _, err := ask(t, Command{Args: args}, nil); err == nil {
			t.Errorf("%q was run", args)
		}
	}
}

// When the asking end goes away, what it asked for is killed with its children.
func TestGoneClientEndsTheCommand(t *testing.T) {
	testenv.NoLeaks(t)
	client, server := net.Pipe()
	served := make(chan struct{})
	go func() {
		Serve(server)
		close(served)
	}()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ended := make(chan error, 1)
	go func() {
		defer w.Close()
		_, err := Run(client, Command{Args: []string{"sh", "-c", "sleep 1000 & echo up; wait"}}, nil, w, io.Discard)
		ended <- err
	}()
	if _, err := r.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	client.Close()
	if err := <-ended; err == nil {
		t.Error("Run was content with a broken connection")
	}
	select {
	case <-served:
	case <-time.After(time.Minute):
		t.Fatal("the command goes on")
	}
}
