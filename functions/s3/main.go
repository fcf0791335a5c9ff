// Command skep-s3 is the S3 server that the functions of FunctionBench fetch
// their inputs from, as in the paper: versitygw over a directory of plain files.
// It is a process of its own, since the server keeps globals and changes its
// working directory.
//
//	skep-s3 [-listen 127.0.0.1:7090] [-dir DIR] [-bucket NAME]
//
// It makes the inputs when they are not there. Functions reach it through the
// daemon's setting host_services. With -bucket it serves a bucket of that name instead,
// empty at first: a store of snapshots to try out (docs/store.md).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3api/middlewares"

	"github.com/skep-dev/skep/functions/inputs"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:7090", "`ADDRESS` to serve at")
	dir := flag.String("dir", "", "`DIR` of the buckets (default skep/s3 in the user's cache)")
	bucket := flag.String("bucket", "", "`NAME` of a bucket to make and serve instead of the inputs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *listen, *dir, *bucket); err != nil {
		fmt.Fprintln(os.Stderr, "skep-s3:", err)
		os.Exit(1)
	}
}

// key is both halves of the one account; the functions have the same default.
// The data is no secret, and the server listens on loopback.
const (
	key    = "functionbench"
	region = "us-east-1"
)

func run(ctx context.Context, listen, dir, bucket string) error {
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		dir = filepath.Join(cache, "skep", "s3")
	}
	// A directory is a bucket.
	if err := os.MkdirAll(filepath.Join(dir, bucket), 0o755); err != nil {
		return err
	}
	if bucket == "" {
		if err := inputs.Write(dir); err != nil {
			return err
		}
	}
	files, err := posix.New(dir, meta.NoMeta{}, posix.PosixOpts{})
	if err != nil {
		return fmt.Errorf("opening %s: %w", dir, err)
	}
	defer files.Shutdown()
	ready := func() { fmt.Printf("skep-s3: serving %s at http://%s\n", dir, listen) }
	server, err := s3api.New(files, middlewares.RootUserConfig{Access: key, Secret: key}, region,
		auth.NewIAMServiceSingle(auth.Account{Access: key, Secret: key, Role: auth.RoleAdmin}), nil, nil, nil, nil,
		s3api.WithQuiet(), s3api.WithKeepAlive(), s3api.WithConcurrencyLimiter(1024, 1024), s3api.WithOnListen(ready))
	if err != nil {
		return fmt.Errorf("making the server: %w", err)
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeMultiPort([]string{listen}) }()
	select {
	case err = <-served:
		return fmt.Errorf("serving at %s: %w", listen, err)
	case <-ctx.Done():
		err = server.ShutDown()
		<-served // it says that its listener was closed
		return err
	}
}
