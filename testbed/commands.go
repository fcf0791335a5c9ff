package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/testbed/remote"
)

func runCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run COMMAND [ARGUMENT...]",
		Short: "run a command in the host, with this one's input and output",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.command(cmd.Context(), remote.Command{Args: args})
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows is the command's
	return cmd
}

func shellCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "shell",
		Short: "open a shell in the host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
			if err != nil {
				return errors.New("a shell needs a terminal; `testbed run sh` reads commands from anything")
			}
			c := remote.Command{Args: []string{"bash", "-l"}, Terminal: true, Rows: size.Row, Columns: size.Col}
			return o.command(cmd.Context(), c)
		},
	}
}

// command runs one command in the host and brings out what it left.
func (o *options) command(ctx context.Context, c remote.Command) (err error) {
	ctx, cancel := o.context(ctx)
	defer cancel()
	p, err := gather(ctx, nil, o.findFirecracker())
	if err != nil {
		return err
	}
	runDir, err := newRun()
	if err != nil {
		return err
	}
	h, err := o.host(ctx, p, runDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.done()) }()
	if c.Terminal {
		restore, err := rawTerminal()
		if err != nil {
			return err
		}
		defer restore()
	}
	c.Env = append(environment(o.findFirecracker() != ""), c.Env...)
	code, err := h.run(ctx, c, os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	if err := h.fetchOut(ctx, filepath.Join(runDir, "out")); err != nil {
		return err
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

func upCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "up",
		Short: "keep a host up for the other commands, until it is interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			p, err := gather(ctx, nil, o.findFirecracker())
			if err != nil {
				return err
			}
			runDir, err := newRun()
			if err != nil {
				return err
			}
			m, err := o.start(ctx, p, nil, runDir)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, m.close()) }()
			say("commands in this tree use it until it is interrupted; its console: %s", m.console())
			return m.serve(ctx)
		},
	}
}

// findFirecracker is the path of the binary that is used; "" if there is none.
func (o *options) findFirecracker() string {
	name := o.firecracker
	if name == "" {
		name = "firecracker"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

// noFirecracker says how to get it.
const noFirecracker = "no firecracker on the PATH or in SKEP_FIRECRACKER; an official release is at https://github.com/firecracker-microvm/firecracker/releases"

// environment is what tests and programs find in the host.
func environment(firecracker bool) []string {
	require := "root,uffd,tap,netns,nft,qemu,kernel,mkfs,kvm,cgroup,runc,containerd,systemd"
	// Generous also where the host is not emulated: limits only end what hangs.
	env := []string{"SKEP_TEST_KERNELS=" + kernelsIn, "SKEP_TEST_BINARIES=" + programsIn, "SKEP_TEST_SCALE=4", "SKEP_CONTAINERS=3"}
	if firecracker {
		require += ",firecracker"
		env = append(env, "SKEP_FIRECRACKER="+binIn+"/firecracker")
	}
	if os.Getenv(testenv.ContainerdEnv) != "" {
		env = append(env, testenv.ContainerdEnv+"="+ctrdIn)
	}
	return append(env, "SKEP_REQUIRE="+require)
}

// rawTerminal hands each key on as it is; restore undoes that.
func rawTerminal() (restore func(), err error) {
	old, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("setting up the terminal: %w", err)
	}
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	if err := unix.IoctlSetTermios(0, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("setting up the terminal: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(0, unix.TCSETS, old) }, nil
}

// packagePaths makes paths within the module of package patterns.
func packagePaths(ctx context.Context, patterns []string) ([]string, error) {
	list := exec.CommandContext(ctx, "go", append([]string{"list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}"}, patterns...)...)
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", strings.Join(patterns, " "), err)
	}
	var paths []string
	for line := range strings.Lines(string(out)) {
		paths = append(paths, strings.TrimPrefix(strings.TrimSpace(line), "github.com/skep-dev/skep/"))
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%s: no package with tests", strings.Join(patterns, " "))
	}
	return paths, nil
}
