package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skep-dev/skep/guest"
)

// Exit codes of skep exec where the command did not run, as shells and docker
// have them.
const (
	exitNotExecutable = 126
	exitNoCommand     = 127
)

// commandError is a command's exit status that is not 0.
type commandError struct {
	code int
	text string
}

func (e *commandError) Error() string { return e.text }

// execFlags are what the flags of exec were set to.
type execFlags struct {
	stdin, tty bool
	user, dir  string
	env        []string
}

func (c *cli) execCmd() *cobra.Command {
	var o execFlags
	cmd := &cobra.Command{
		Use:   "exec FUNCTION|INSTANCE -- COMMAND [ARG...]",
		Short: "run a command in a running instance",
		Long: `Run a command in a running instance: of a function the one that was used last,
else the one of that id (skep ls --instances). It runs as the function does: its
files, user, directory and environment. None running is an error: a request
starts one.

While the command runs, the instance is not ended for want of requests, and goes
on serving them. It makes no snapshot from then on: what you did in it would be
in every clone. When this program ends, so does the command, with all that it
has started: SIGHUP, and after 2 s SIGKILL.

The exit code is the command's, 128 and the signal's number if one ended it; 126
if it cannot be run, 127 if there is none; else skep's own.`,
		Example: `  skep exec hello -- /hello --version
  skep exec -it shop -- sh
  skep exec -i shop -- sh -c 'cat > /tmp/in' <file
  skep exec -u 1000 -w /srv -e LEVEL=2 i-0123456789abcdef -- env`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef(cmd, "want a function or an instance, and a command")
			}
			return nil
		},
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.tty && o.stdin && !term.IsTerminal(fdOf(c.in)) {
				return usagef(cmd, "-t with -i needs a terminal for stdin: leave -t away")
			}
			return c.exec(cmd.Context(), args[0], o.process(args[1:]))
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows is the command's
	f.BoolVarP(&o.stdin, "interactive", "i", false, "pass stdin on")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&o.user, "user", "u", "", "run as this `USER` (name, uid, name:group or uid:gid)")
	f.StringVarP(&o.dir, "workdir", "w", "", "run in this `DIR`ectory")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set `NAME=VALUE`; NAME alone: as it is here")
	return cmd
}

func (o execFlags) process(argv []string) guest.Process {
	if argv[0] == "--" {
		argv = argv[1:]
	}
	p := guest.Process{ID: "exec-" + randomHex(), Argv: argv, User: o.user, Dir: o.dir, TTY: o.tty, Stdin: o.stdin}
	if o.tty {
		p.Env = append(p.Env, "TERM="+cmp.Or(os.Getenv("TERM"), "xterm"))
	}
	for _, e := range o.env {
		if !strings.Contains(e, "=") {
			v, ok := os.LookupEnv(e)
			if !ok {
				continue
			}
			e += "=" + v
		}
		p.Env = append(p.Env, e)
	}
	return p
}

func randomHex() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// fdOf returns the descriptor of a file, -1 of anything else.
func fdOf(f any) int {
	if file, ok := f.(*os.File); ok {
		return int(file.Fd())
	}
	return -1
}

func (c *cli) exec(ctx context.Context, target string, p guest.Process) (err error) {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	conn, err := client.Exec(ctx, target)
	if err != nil {
		return err
	}
	if p.TTY {
		p.Rows, p.Cols = sizeOf(c.out)
	}
	r, err := guest.Exec(ctx, conn, p, c.out, c.err)
	if err != nil {
		return notRun(err)
	}
	defer r.Close()
	if p.TTY && p.Stdin {
		restore, err := rawTerminal(c.in)
		if err != nil {
			return err
		}
		defer restore()
	}
	defer c.passSignals(r, p.TTY)()
	if p.Stdin {
		go func() { // ends with its reads; nobody waits for a terminal's
			_, _ = io.Copy(r, c.in) // the command may end before it has read all
			_ = r.CloseStdin()
		}()
	}
	// Not with ctx: what ends that is a signal, which the command gets.
	exit, err := r.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	return ended(exit)
}

func ended(e guest.ProcessExit) error {
	if e.Code == 0 {
		return nil
	}
	text := "" // it has said itself what there was to say
	if e.OOM {
		text = "the command was killed: the guest had no memory left"
	}
	return &commandError{e.Code, text}
}

// notRun gives an error of the start its exit code.
func notRun(err error) error {
	var refused *guest.RefusedError
	if errors.As(err, &refused) {
		switch refused.Why {
		case guest.RefusedNotFound:
			return &commandError{exitNoCommand, refused.Text}
		case guest.RefusedNotExecutable, guest.RefusedDirectory, guest.RefusedUser:
			return &commandError{exitNotExecutable, refused.Text}
		}
	}
	return err
}

// rawTerminal hands every key on as it is, signals' keys as well.
func rawTerminal(f any) (restore func(), err error) {
	fd := fdOf(f)
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("setting the terminal up: %w", err)
	}
	return func() { _ = term.Restore(fd, old) }, nil
}

func sizeOf(f any) (rows, cols uint16) {
	w, h, err := term.GetSize(fdOf(f))
	if err != nil {
		return 0, 0
	}
	return uint16(min(h, 1<<16-1)), uint16(min(w, 1<<16-1))
}

// passedOn are signals that are the command's.
var passedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// passSignals sends this process's signals to the command, and the terminal's new
// sizes, until the function that it returns is called.
func (c *cli) passSignals(r *guest.Running, tty bool) (stop func()) {
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, passedOn...)
	if tty {
		signal.Notify(sigs, syscall.SIGWINCH)
	}
	over := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case s := <-sigs:
				c.passOne(r, s)
			case <-over:
				return
			}
		}
	}()
	return func() {
		signal.Stop(sigs)
		close(over)
		<-done
	}
}

func (c *cli) passOne(r *guest.Running, s os.Signal) {
	switch n, ok := s.(syscall.Signal); {
	case s == syscall.SIGWINCH:
		_ = r.Resize(sizeOf(c.out)) // it may have ended
	case ok && slices.Contains(passedOn, s):
		_ = r.Signal(int(n), guest.ToProcess)
	}
}
