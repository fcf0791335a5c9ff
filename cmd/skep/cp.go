package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/tree"
)

func (c *cli) cpCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SRC DST",
		Short: "copy files into or out of a running instance",
		Long: `Copy a file or a directory into a running instance, or out of it. One of SRC and
DST is NAME:PATH, where NAME is a function (the instance that was used last) or
an instance's id; the other is a path here. If DST is a directory, SRC is put into
it under its own name, otherwise it becomes DST. In the guest directories that are
missing are made.

Modes, times and, into the guest, owners are kept; each file appears whole.
Links are copied as links. Sockets, pipes and devices are left out. What is
copied in is in guest memory, and in no snapshot: an instance makes none after
that.`,
		Example: `  skep cp settings.toml shop:/etc/shop/
  skep cp shop:/var/log/shop .
  skep cp i-0123456789abcdef:/tmp/core core`,
		Args: nArgs(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, inside, ok1 := remote(args[0])
			to, target, ok2 := remote(args[1])
			switch {
			case ok1 && !ok2:
				return c.copyOut(cmd.Context(), from, inside, args[1])
			case ok2 && !ok1:
				return c.copyIn(cmd.Context(), args[0], to, target)
			}
			return usagef(cmd, "one of %q and %q must be NAME:PATH, the other a path here (./ before a name with a colon)", args[0], args[1])
		},
	}
}

// remote splits NAME:PATH. What begins like a path is one here.
func remote(arg string) (name, inside string, ok bool) {
	name, inside, ok = strings.Cut(arg, ":")
	if !ok || name == "" || strings.ContainsAny(name, "/.") {
		return "", "", false
	}
	return name, "/" + strings.TrimLeft(inside, "/"), true
}

// copyIn copies what is at a path here.
func (c *cli) copyIn(ctx context.Context, from, name, to string) error {
	if _, err := os.Stat(from); err != nil {
		return err // before anything is asked for
	}
	as, dir := path.Base(to), path.Dir(to)
	isDir, err := c.isDirectory(ctx, name, to)
	if err != nil {
		return err
	}
	if isDir || strings.HasSuffix(to, "/") {
		abs, err := filepath.Abs(from)
		if err != nil {
			return err
		}
		as, dir = filepath.Base(abs), to
	}
	real, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(real))
	if err != nil {
		return err
	}
	defer root.Close()
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := tree.Pack(root, filepath.Base(real), as, w)
		w.CloseWithError(err)
		packed <- err
	}()
	err = c.withInstance(ctx, name, func(conn io.ReadWriteCloser) error { return guest.CopyIn(ctx, conn, dir, r) })
	r.CloseWithError(errors.New("the copy has ended"))
	<-packed // its error is the reader's
	return err
}

// isDirectory says whether the instance has a directory of that name.
func (c *cli) isDirectory(ctx context.Context, name, path string) (bool, error) {
	found := false
	stop := errors.New("seen")
	err := c.withInstance(ctx, name, func(conn io.ReadWriteCloser) error {
		first := &firstEntry{is: &found, stop: stop}
		return guest.CopyOut(ctx, conn, strings.TrimSuffix(path, "/")+"/.", first)
	})
	var refused *guest.RefusedError
	if errors.Is(err, stop) || errors.As(err, &refused) {
		err = nil
	}
	return found, err
}

// firstEntry looks at the beginning of a tar stream only.
type firstEntry struct {
	is   *bool
	stop error
}

func (f *firstEntry) Write(p []byte) (int, error) {
	*f.is = len(p) > 0 // only a directory answers to a name that ends with a slash and a dot
	return 0, f.stop
}

func (c *cli) copyOut(ctx context.Context, name, from, to string) error {
	own, base := path.Base(path.Clean(from)), filepath.Base(to)
	dir := filepath.Dir(to)
	if info, err := os.Stat(to); err == nil && info.IsDir() {
		dir, base = to, own
	} else if strings.HasSuffix(to, "/") {
		return fmt.Errorf("%s: no such directory", to)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := tree.Unpack(root, r, tree.Options{Rename: func(name string) string { return renamed(name, own, base) }})
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		r.CloseWithError(err)
		unpacked <- err
	}()
	err = c.withInstance(ctx, name, func(conn io.ReadWriteCloser) error { return guest.CopyOut(ctx, conn, from, w) })
	w.CloseWithError(err)
	if uerr := <-unpacked; err == nil {
		err = uerr
	}
	return err
}

// renamed puts base in the place of the name that a stream's entries are below.
// The guest could send others: they are left out.
func renamed(name, own, base string) string {
	if own == "/" {
		own = path.Base(own)
	}
	rest, ok := strings.CutPrefix(name, own)
	if !ok || rest != "" && !strings.HasPrefix(rest, "/") && own != "/" {
		return ""
	}
	return path.Join(base, rest)
}

func (c *cli) withInstance(ctx context.Context, name string, f func(io.ReadWriteCloser) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	conn, err := client.Exec(ctx, name)
	if err != nil {
		return err
	}
	return f(conn)
}
