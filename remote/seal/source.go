package seal

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/cause"
)

// Source gets a key from where it is kept. It may take as long as ctx lets it, and may be
// asked again after an error.
type Source func(ctx context.Context) (*Key, error)

// maxSecret bounds a secret, in bytes.
const maxSecret = 4096

// commandTime bounds how long a command may take to print a key.
const commandTime = 30 * time.Second

// FromFile gets the key from a file that nobody but its owner may read, and nobody but the
// daemon's user or root owns. Its bytes are the secret, but for the newlines at the end of text.
func FromFile(path string) Source {
	return func(context.Context) (*Key, error) {
		secret, err := readSecret(path)
		if err != nil {
			return nil, err
		}
		return fromBytes(secret, "key file "+path)
	}
}

// FromCommand gets the key from what a command prints, which /bin/sh runs: one that asks a service for
// keys, such as `aws kms decrypt`. What it says on its standard error is told when it fails, what
// it prints never. The newlines at the end of text are no part of it.
func FromCommand(command string) Source {
	return func(ctx context.Context) (*Key, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, commandTime, fmt.Errorf("it took longer than %v", commandTime))
		defer cancel()
		var out, said bounded
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
		cmd.Stdout, cmd.Stderr = &out, &said
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with all that the shell starts
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = time.Second // for those that its pipes were left to
		if err := cmd.Run(); err != nil {
			clear(out.b)
			return nil, fmt.Errorf("the command that prints the key: %w: %.500q", cause.Because(ctx, err), strings.TrimSpace(string(said.b)))
		}
		return fromBytes(out.b, "the command that prints the key")
	}
}

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	var owner uint32
	sys, known := st.Sys().(*syscall.Stat_t)
	if known {
		owner = sys.Uid
	}
	switch {
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("key file %s is no plain file", path)
	case st.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("key file %s can be read by others (mode %04o): chmod 600 it", path, st.Mode().Perm())
	case known && owner != 0 && owner != uint32(os.Geteuid()):
		return nil, fmt.Errorf("key file %s belongs to user %d, who can read it: chown it to %d", path, owner, os.Geteuid())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	return b, nil
}

func fromBytes(secret []byte, from string) (*Key, error) {
	defer clear(secret)
	if len(secret) > maxSecret {
		return nil, fmt.Errorf("%s: more than %d bytes", from, maxSecret)
	}
	k, err := New(trim(secret))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return k, nil
}

// trim takes the newlines away that end a text; bytes that are no text stay as they are.
func trim(b []byte) []byte {
	text := bytes.TrimRight(b, "\r\n")
	for _, c := range text {
		if c < ' ' || c > '~' {
			return b
		}
	}
	return text
}

// bounded keeps the beginning of what is written to it: a byte more than a secret may have.
type bounded struct{ b []byte }

func (w *bounded) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), maxSecret+1-len(w.b))]...)
	return len(p), nil
}
