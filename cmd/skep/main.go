// Command skep runs serverless functions in microVMs and starts them from
// snapshots. `skep up` is the daemon; the other verbs speak to it through
// api.Client, or, like demo and bench, start what they need themselves. A verb
// is a file of this package.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr, environ: os.Environ()}
	code := c.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
