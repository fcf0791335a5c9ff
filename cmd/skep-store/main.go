// Command skep-store takes ready snapshots of containers to the object store and fetches them from there,
// for shims, which start it:
//
//	skep-store pull     fetches the snapshot that fits what stands on its input, and says what became of it
//	skep-store push     pushes what was not yet pushed; its log is push.log in the data directory
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/dial"
	"github.com/skep-dev/skep/shim/base/ready"
	"github.com/skep-dev/skep/shim/carrier"
	"github.com/skep-dev/skep/snapshot"
)

// maxWant bounds what a shim writes, pushLimit how long all pushes of one process may take.
const (
	maxWant   = 1 << 20
	pushLimit = 2 * time.Hour
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	verb := ""
	if len(os.Args) == 2 {
		verb = os.Args[1]
	}
	var err error
	switch verb {
	case "pull":
		err = pull(ctx, os.Stdin, os.Stdout)
	case "push":
		err = push(ctx)
	default:
		err = errors.New("want pull or push; shims start it, there is nothing for people in it")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "skep-store:", err)
		os.Exit(1)
	}
}

// pull answers also when it has nothing.
func pull(ctx context.Context, in io.Reader, out io.Writer) error {
	var want snapshot.Want
	if err := json.NewDecoder(io.LimitReader(in, maxWant)).Decode(&want); err != nil {
		return fmt.Errorf("reading what is wanted: %w", err)
	}
	var a ready.Answer
	c, done, err := open(ctx, slog.New(slog.DiscardHandler))
	if err == nil {
		defer done()
		a.Snapshot, err = c.Pull(ctx, want)
	}
	if err != nil {
		a.Why = err.Error()
		a.Failed = errors.Is(err, remote.ErrUnavailable) || errors.Is(err, remote.ErrNoKey)
	}
	return json.NewEncoder(out).Encode(a)
}

func push(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pushLimit)
	defer cancel()
	// Containers that start are not to notice.
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 10)
	cfg, err := containerd.Host{}.Settings(os.Environ())
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(cfg.DataDir, "push.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	log := slog.New(slog.NewTextHandler(f, nil))
	c, done, err := open(ctx, log)
	if err == nil {
		defer done()
		if st, serr := f.Stat(); serr == nil && st.Size() > maxWant {
			err = f.Truncate(0)
		}
	}
	if err == nil {
		err = pushImages(ctx, c)
	}
	if errors.Is(err, filelock.ErrHeld) {
		return nil
	}
	if err != nil {
		log.Error("pushing snapshots to the object store", "error", err)
	}
	return err
}

// pushImages pushes, with the root disks of this host.
func pushImages(ctx context.Context, c *carrier.Carrier) error {
	images, err := image.Open(filepath.Join(c.DataDir, "images"), image.Options{Logger: c.Log})
	if err != nil {
		return err
	}
	c.Images = images
	return errors.Join(c.Push(ctx), images.Close())
}

// open opens what shims share, and the object store of their settings.
func open(ctx context.Context, log *slog.Logger) (_ *carrier.Carrier, done func(), err error) {
	cfg, err := containerd.Host{}.Settings(os.Environ())
	if err != nil {
		return nil, nil, err
	}
	// A service has no home directory that AWS's files could be in.
	const shared = "AWS_SHARED_CREDENTIALS_FILE"
	if path := filepath.Join(filepath.Dir(containerd.SettingsFile), containerd.CredentialsFile); os.Getenv(shared) == "" {
		if _, err := os.Stat(path); err == nil {
			if err := os.Setenv(shared, path); err != nil {
				return nil, nil, err
			}
		}
	}
	// Chunks that are kept are one process's, and this is one of many.
	store, bucket, err := dial.Store(ctx, cfg, nil, log)
	if err != nil {
		return nil, nil, err
	}
	if store == nil {
		return nil, nil, errors.New("no object store is configured (store_bucket)")
	}
	c := &carrier.Carrier{DataDir: cfg.DataDir, Store: store, Log: log}
	if c.Snapshots, err = snapshot.Open(filepath.Join(cfg.DataDir, "snapshots")); err != nil {
		bucket.Close()
		return nil, nil, err
	}
	return c, bucket.Close, nil
}
