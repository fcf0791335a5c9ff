package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/config"
)

// cli is one run of the command line: where it reads and writes, and what the
// flags that all verbs share were set to.
type cli struct {
	in       io.Reader
	out, err io.Writer
	environ  []string

	json       bool
	configFile string
	flags      map[string]string // config keys given as flags
}

// run runs one command line and returns the exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	c.flags = map[string]string{}
	root := c.root()
	root.SetArgs(append([]string{}, args...)) // nil would mean those of the process
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	c.printError(err)
	return exitCode(err)
}

const rootHelp = `skep runs serverless functions in microVMs and starts them from snapshots.

A tour, as root:
  skep doctor                              what this host can do, and how to mend what it can't
  skep setup                               fetch the guest kernel
  skep demo                                all of it once, in a minute, on a private daemon
  skep up                                  the daemon; leave it running, go on in another terminal
  skep deploy functions/hello              an image becomes a function, is booted and snapshotted
  skep invoke hello -v                     call it, and see where the time went
  skep invoke hello -v --start restore     again, from the snapshot
  curl http://hello.localhost:7080/        the same through the gateway, as users would
  skep ls; skep inspect hello; skep logs hello
  skep service install                     the daemon as a service; where a package brought skep: systemctl enable --now skep

Every verb takes -h, with examples, and most take --json.

Exit codes: 0 done, 1 it failed, 2 the command line is wrong, 3 no such function,
snapshot or invocation, 4 no daemon answers, 5 the function answered with something else than 2xx;
of skep exec the command's own.`

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "skep",
		Short:         "serverless functions in microVMs, started from snapshots",
		Long:          rootHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	onlyVerbs(root)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usagef(cmd, "%v", err) })
	p := root.PersistentFlags()
	p.SortFlags = false
	p.BoolVar(&c.json, "json", false, "write JSON, for scripts")
	p.StringVar(&c.configFile, "config", "", "configuration file (default "+config.DefaultFile+", if it exists)")
	c.keyFlags(p, "socket", "address", "control_token_file")
	root.AddGroup(
		&cobra.Group{ID: "start", Title: "Begin:"},
		&cobra.Group{ID: "functions", Title: "Functions:"},
		&cobra.Group{ID: "host", Title: "The daemon and its host:"},
		&cobra.Group{ID: "measure", Title: "Measure:"},
	)
	add := func(group string, verbs ...*cobra.Command) {
		for _, v := range verbs {
			v.GroupID = group
			root.AddCommand(v)
		}
	}
	add("start", c.doctorCmd(), c.setupCmd(), c.demoCmd(), c.upCmd(), c.dashboardCmd())
	add("functions", c.deployCmd(), c.invokeCmd(), c.lsCmd(), c.inspectCmd(), c.logsCmd(), c.eventsCmd(), c.execCmd(), c.cpCmd(), c.recordsCmd(), c.traceCmd(), c.setCmd(), c.revisionsCmd(), c.rollbackCmd(), c.rmCmd(), c.snapshotCmd(), c.imageCmd())
	add("measure", c.experimentCmd(), c.benchCmd(), c.replayCmd(), c.loadCmd(), c.simulateCmd(), c.workloadCmd(), c.dirigentCmd())
	add("host", c.configCmd(), c.storeCmd(), c.serviceCmd(), c.containerdCmd(), c.versionCmd(), c.packagingCmd())
	root.SetHelpCommandGroupID("host")
	root.SetCompletionCommandGroupID("host")
	return root
}

// onlyVerbs makes cmd a group: alone it shows its help, and a word that is no
// verb of it is a wrong command line.
func onlyVerbs(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		near := ""
		if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
			near = "; did you mean " + strings.Join(s, " or ") + "?"
		}
		return usagef(cmd, "unknown verb %q%s", args[0], near)
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// nArgs wants lo to hi arguments, named as in the verb's usage line.
func nArgs(lo, hi int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < lo:
			return usagef(cmd, "an argument is missing")
		case len(args) > hi:
			return usagef(cmd, "argument %q is one too many", args[hi])
		}
		return nil
	}
}

// keyFlag is a flag that sets a key of the configuration.
type keyFlag struct {
	c   *cli
	key config.Key
}

func (f keyFlag) String() string     { return "" }
func (f keyFlag) Type() string       { return "value" }
func (f keyFlag) Set(v string) error { f.c.flags[f.key.Name] = v; return nil }

// keyFlags adds flags for the named keys of the configuration.
func (c *cli) keyFlags(fs *pflag.FlagSet, names ...string) {
	for _, name := range names {
		k, ok := config.Find(name)
		if !ok || fs.Lookup(k.Flag()) != nil {
			continue
		}
		f := fs.VarPF(keyFlag{c, k}, k.Flag(), "", k.Help)
		if k.IsBool() {
			f.NoOptDefVal = "true"
		}
	}
}

// allKeyFlags adds a flag for every key that is not a flag of all verbs.
func (c *cli) allKeyFlags(cmd *cobra.Command) {
	for _, k := range config.Keys {
		if cmd.InheritedFlags().Lookup(k.Flag()) == nil && k.Name != "socket" && k.Name != "address" && k.Name != "control_token_file" {
			c.keyFlags(cmd.Flags(), k.Name)
		}
	}
}

// settings loads the configuration.
func (c *cli) settings() (config.Result, error) {
	r, err := config.Load(config.Input{File: c.configFile, Environ: c.environ, Flags: c.flags})
	if err != nil {
		return r, &usageError{msg: err.Error()}
	}
	return r, nil
}

// client returns a client of the daemon that the configuration names.
func (c *cli) client() (*api.Client, error) {
	r, err := c.settings()
	if err != nil {
		return nil, err
	}
	cfg := r.Config
	token, err := c.token(cfg)
	if err != nil {
		return nil, err
	}
	return api.NewClient(api.ClientOptions{Socket: cfg.Socket, Address: cfg.Address, Token: token}), nil
}

// token is that of the control API at the configuration's address; "" for its socket.
func (c *cli) token(cfg config.Config) (string, error) {
	if cfg.Address == "" {
		return "", nil
	}
	if cfg.ControlTokenFile == "" {
		return "", &usageError{msg: "address is set without control_token_file: the control API over TCP needs its token"}
	}
	token, err := os.ReadFile(cfg.ControlTokenFile)
	return strings.TrimSpace(string(token)), err
}

// terminal tells whether w is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isatty.IsTerminal(f.Fd())
}

var errSilent = errors.New("reported already")
