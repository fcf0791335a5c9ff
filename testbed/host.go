package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/skep-dev/skep/testbed/remote"
)

// socket is where a host that is up takes connections. The driver works in the
// module's root, so the path is short enough for a socket wherever that is.
const socket = cacheDir + "/host.sock"

// host is where commands are run.
type host struct {
	dial func() (net.Conn, error)
	done func() error
}

// host returns the one that is up, brought up to date, or starts one for this run.
func (o *options) host(ctx context.Context, p payload, runDir string) (*host, error) {
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
		h := &host{dial: func() (net.Conn, error) { return net.Dial("unix", socket) }, done: func() error { return nil }}
		return h, h.update(ctx, p)
	}
	m, err := o.start(ctx, p, nil, runDir)
	if err != nil {
		return nil, err
	}
	return &host{dial: m.dial, done: m.close}, nil
}

// patience is how long a command that is to end may take for it.
const patience = 10 * time.Second

// run runs a command in the host. When ctx ends, so does the command.
func (h *host) run(ctx context.Context, c remote.Command, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	conn, err := h.dial()
	if err != nil {
		return 0, fmt.Errorf("reaching the host: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
	})
	defer stop()
	code, err := remote.Run(conn, c, stdin, stdout, stderr)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return code, err
}

// update sends what of p the host lacks.
func (h *host) update(ctx context.Context, p payload) error {
	var out, errs bytes.Buffer
	code, err := h.run(ctx, remote.Command{Args: []string{"cat", manifestIn}}, nil, &out, &errs)
	if err != nil {
		return err
	}
	var has map[string]string
	if code == 0 {
		if err := json.Unmarshal(out.Bytes(), &has); err != nil {
			return fmt.Errorf("reading what the host has: %w", err)
		}
	}
	// What it has and p does not stays, and stays known.
	all, missing := p, p.differing(has)
	for to, sum := range has {
		if _, ok := p[to]; !ok {
			all = all.with(to, file{sum: sum})
		}
	}
	if len(missing) == 0 {
		return nil
	}
	say("sending %d files to the host that is up", len(missing))
	r, w := io.Pipe()
	go func() { w.CloseWithError(missing.archive(w, all)) }()
	defer r.Close()
	code, err = h.run(ctx, remote.Command{Args: []string{"tar", "-x", "-C", "/"}}, r, io.Discard, &errs)
	if err == nil && code != 0 {
		err = fmt.Errorf("sending files to the host: tar: exit code %d: %s", code, errs.String())
	}
	return err
}

// fetchOut brings what is in the host's /out to dir, which is made if there is anything.
func (h *host) fetchOut(ctx context.Context, dir string) error {
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		code, err := h.run(ctx, remote.Command{Args: []string{"tar", "-c", "-C", outIn, "."}}, nil, w, io.Discard)
		if err == nil && code != 0 {
			err = fmt.Errorf("tar: exit code %d", code)
		}
		w.CloseWithError(err)
		ended <- err
	}()
	err := extract(r, dir)
	r.CloseWithError(io.ErrClosedPipe)
	if err := errors.Join(err, <-ended); err != nil {
		return fmt.Errorf("bringing out %s: %w", outIn, err)
	}
	return nil
}

// extract unpacks regular files below dir and nowhere else.
func extract(r io.Reader, dir string) error {
	var root *os.Root
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err == io.EOF {
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if root == nil {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if root, err = os.OpenRoot(dir); err != nil {
				return err
			}
			defer root.Close()
		}
		if err := extractFile(root, filepath.Clean(h.Name), t); err != nil {
			return err
		}
	}
}

func extractFile(root *os.Root, name string, r io.Reader) (err error) {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, r)
	return err
}

// newRun makes the directory that keeps a run's output, and removes old ones.
func newRun() (string, error) {
	const keep = 10
	runs := filepath.Join(cacheDir, "runs")
	if err := os.MkdirAll(runs, 0o755); err != nil {
		return "", err
	}
	old, err := os.ReadDir(runs) // sorted by name, which is by time
	if err != nil {
		return "", err
	}
	for len(old) >= keep {
		if err := os.RemoveAll(filepath.Join(runs, old[0].Name())); err != nil {
			return "", err
		}
		old = slices.Delete(old, 0, 1)
	}
	return os.MkdirTemp(runs, time.Now().Format("20060102-150405-"))
}

// serve gives other drivers the host until ctx ends or the host does.
func (m *machine) serve(ctx context.Context) error {
	unlock, err := lock(filepath.Join(cacheDir, "lock"))
	if err != nil {
		return err
	}
	_ = os.Remove(socket) // of a driver that was killed
	l, err := net.Listen("unix", socket)
	unlock()
	if err != nil {
		return err
	}
	var pipes sync.WaitGroup
	defer pipes.Wait()
	defer m.session.Close() // ends the pipes
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	go func() {
		<-m.ended
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil {
				return errors.New("the host ended")
			}
			return nil
		}
		pipes.Go(func() { m.pipe(c) })
	}
}

// pipe connects c to the host's init until either ends.
func (m *machine) pipe(c net.Conn) {
	defer c.Close()
	s, err := m.dial()
	if err != nil {
		return
	}
	var one sync.WaitGroup
	one.Go(func() {
		_, _ = io.Copy(s, c)
		s.Close()
	})
	_, _ = io.Copy(c, s)
	c.Close()
	one.Wait()
}
