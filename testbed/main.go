package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func main() {
	// QEMU ends with the thread that started it: see start.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var code exitCode
	switch {
	case err == nil:
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1)
	}
}

// exitCode is what a command in the host ended with.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// cacheDir holds all that is kept, below the module's root, in which the driver works.
const cacheDir = ".cache/testbed"

// options are the flags that all verbs share.
type options struct {
	cpus        int
	memoryMiB   int
	timeout     time.Duration
	firecracker string
}

func command() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:           "testbed",
		Short:         "run tests and commands in a host with KVM of its own",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return enterModule() },
	}
	flags := root.PersistentFlags()
	flags.IntVar(&o.cpus, "cpus", 0, "processors of the host; 0 is up to 4 on KVM and 1 without, since QEMU's emulation of more may hang")
	flags.IntVar(&o.memoryMiB, "memory", 6144, "memory of the host in MiB; it is taken as it is used")
	flags.DurationVar(&o.timeout, "timeout", 2*time.Hour, "end everything after this time; 0 is never")
	flags.StringVar(&o.firecracker, "firecracker", os.Getenv("SKEP_FIRECRACKER"), "path of firecracker; jailer is taken from beside it (default: from the PATH)")
	root.AddCommand(testCommand(&o), paperCommand(&o), runCommand(&o), shellCommand(&o), upCommand(&o))
	return root
}

// enterModule changes to the module's root.
func enterModule() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return os.Chdir(dir)
		}
	}
	return errors.New("run it in skep's source tree")
}

func (o *options) context(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done within --timeout %v", o.timeout))
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "testbed: "+format+"\n", args...) }
