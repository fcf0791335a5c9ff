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

	"github.com/skep-dev/skep/memory/replay"
)

func main() {
	replay.ChildMain() // returns unless this process is the guest of a replay
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr, environ: os.Environ()}
	code := c.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
