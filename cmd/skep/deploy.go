package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/image"
)

// deployFlags are what the deploy verb's flags were set to.
type deployFlags struct {
	file       string
	f          api.Function
	env        []string
	noSnapshot bool
	timeouts   [3]time.Duration // ready, invocation, keep-alive
}

func (c *cli) deployCmd() *cobra.Command {
	var d deployFlags
	cmd := &cobra.Command{
		Use:   "deploy [IMAGE] [-- ARG...]",
		Short: "make a function from an image, or change one",
		Long: `Make a function from an image, or change one that exists: what is deployed
replaces all of its settings. The image is fetched, made into a root disk,
booted once to see that it works, and snapshotted.

IMAGE is one of
  functions/hello               a function that comes with skep
  localhost:5000/hello:latest   an image in a registry (credentials as docker has them)
  oci:DIR[:TAG]                 an OCI layout
  oci-archive:FILE[:TAG]        the same in a tarball
  docker-archive:FILE[:TAG]     what ` + "`docker save`" + ` writes
  dir:DIR                       a root directory with skep-image.json in it
It must hold a server that speaks HTTP on $PORT. Files are read by the daemon.
Functions that come with skep: ` + strings.Join(functions.Names(), ", ") + `.`,
		Example: `  skep deploy functions/hello
  skep deploy localhost:5000/resize:v3 --name resize --memory-mib 512 --env LEVEL=2
  skep deploy docker-archive:hello.tar --name hello --snapshot-after 10
  skep deploy functions/hello-python --json | jq .image_digest
  skep deploy -f function.toml`,
		Args: nArgs(0, 4096),
		RunE: func(cmd *cobra.Command, args []string) error { return c.deploy(cmd, &d, args) },
	}
	d.register(cmd.Flags())
	return cmd
}

func (d *deployFlags) register(fs *pflag.FlagSet) {
	fs.SortFlags = false
	f := &d.f
	fs.StringVarP(&d.file, "file", "f", "", "read the function from a TOML `FILE`; flags go over it")
	fs.StringVar(&f.Name, "name", "", "the function's `NAME` (default: the last part of the image's)")
	fs.IntVar(&f.MemoryMiB, "memory-mib", 0, "guest memory (default 256)")
	fs.IntVar(&f.VCPUs, "vcpus", 0, "virtual CPUs (default 1)")
	fs.StringArrayVarP(&d.env, "env", "e", nil, "`NAME=VALUE` of the environment; may be repeated")
	fs.IntVar(&f.Port, "port", 0, "port that its server listens on (default 8080)")
	fs.StringVar(&f.ReadyPath, "ready-path", "", "HTTP `PATH` that answers 2xx when ready (default: the port accepts)")
	fs.DurationVar(&d.timeouts[0], "ready-timeout", 0, "from boot until ready (default 60s)")
	fs.DurationVar(&d.timeouts[1], "timeout", 0, "of one invocation, its wait included (default 60s)")
	fs.IntVar(&f.Concurrency, "concurrency", 0, "requests at once in one instance (default 1)")
	fs.IntVar(&f.MaxInstances, "max-instances", 0, "instances at once (default 8)")
	fs.IntVar(&f.QueueLimit, "queue-limit", 0, "requests that may wait (default 100)")
	fs.DurationVar(&d.timeouts[2], "keep-alive", 0, "idle time before an instance ends (default 60s)")
	fs.BoolVar(&d.noSnapshot, "no-snapshot", false, "make no snapshot by itself")
	fs.IntVar(&f.Snapshot.AfterInvocations, "snapshot-after", 0, "snapshot after `N` invocations instead of when ready")
	fs.StringVar(&f.MemoryPolicy, "policy", "", "how restored memory is filled (default: the daemon's)")
	fs.StringVar(&f.Egress, "egress", "", "none, host or nat (default none)")
	fs.IntVar(&f.DiskMiB, "disk-mib", 0, "what it may write to its root (default half the memory)")
	fs.StringVar(&f.CloneHook, "clone-hook", "", "HTTP `PATH` POSTed after each restore, before the first request")
}

// function makes the function that file, flags and arguments describe.
func (d *deployFlags) function(cmd *cobra.Command, args []string) (api.Function, error) {
	rest, own := args, []string(nil)
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		rest, own = args[:dash], args[dash:]
	}
	if len(rest) > 1 {
		return api.Function{}, usagef(cmd, "argument %q is one too many: the function's own arguments go after --", rest[1])
	}
	base, err := d.base(rest)
	if err != nil {
		return base, &usageError{msg: err.Error()}
	}
	flags := d.f
	if err := overlay(cmd.Flags(), &base, &flags, d); err != nil {
		return base, err
	}
	if own != nil {
		base.Args = own
	}
	if base.Image == "" {
		return base, usagef(cmd, "no image: name one, or a file with -f")
	}
	if base.Name == "" {
		base.Name = nameOf(base.Image)
	}
	return base, nil
}

// base is the function without flags: that of the file, else the settings that
// a function has which comes with skep.
func (d *deployFlags) base(image []string) (f api.Function, err error) {
	if d.file != "" {
		f, err = readFunction(d.file)
	} else if len(image) > 0 {
		if name, ok := strings.CutPrefix(image[0], "functions/"); ok {
			f, err = functions.Settings(name)
		}
	}
	if len(image) > 0 {
		f.Image = image[0]
	}
	return f, err
}

// overlay copies to f what was given as a flag.
func overlay(fs *pflag.FlagSet, f, flags *api.Function, d *deployFlags) error {
	set := map[string]func(){
		"name":           func() { f.Name = flags.Name },
		"memory-mib":     func() { f.MemoryMiB = flags.MemoryMiB },
		"vcpus":          func() { f.VCPUs = flags.VCPUs },
		"port":           func() { f.Port = flags.Port },
		"ready-path":     func() { f.ReadyPath = flags.ReadyPath },
		"ready-timeout":  func() { f.ReadyTimeout = api.Duration(d.timeouts[0]) },
		"timeout":        func() { f.Timeout = api.Duration(d.timeouts[1]) },
		"concurrency":    func() { f.Concurrency = flags.Concurrency },
		"max-instances":  func() { f.MaxInstances = flags.MaxInstances },
		"queue-limit":    func() { f.QueueLimit = flags.QueueLimit },
		"keep-alive":     func() { f.KeepAlive = api.Duration(d.timeouts[2]) },
		"no-snapshot":    func() { f.Snapshot.Off = d.noSnapshot },
		"snapshot-after": func() { f.Snapshot.AfterInvocations = flags.Snapshot.AfterInvocations },
		"policy":         func() { f.MemoryPolicy = flags.MemoryPolicy },
		"egress":         func() { f.Egress = flags.Egress },
		"disk-mib":       func() { f.DiskMiB = flags.DiskMiB },
		"clone-hook":     func() { f.CloneHook = flags.CloneHook },
	}
	fs.Visit(func(g *pflag.Flag) {
		if apply := set[g.Name]; apply != nil {
			apply()
		}
	})
	for _, e := range d.env {
		k, v, ok := strings.Cut(e, "=")
		if !ok {
			return &usageError{msg: fmt.Sprintf("--env %q: want NAME=VALUE", e)}
		}
		if f.Env == nil {
			f.Env = map[string]string{}
		}
		f.Env[k] = v
	}
	return nil
}

var notName = regexp.MustCompile(`[^a-z0-9-]+`)

// nameOf makes a function's name of its image's.
func nameOf(image string) string {
	base, _, _ := strings.Cut(image, "@")
	for _, scheme := range []string{"oci:", "oci-archive:", "docker-archive:", "dir:"} {
		base = strings.TrimPrefix(base, scheme)
	}
	base = filepath.Base(base)
	base, _, _ = strings.Cut(base, ":")
	base = strings.TrimSuffix(strings.TrimSuffix(base, ".gz"), ".tar")
	base = strings.Trim(notName.ReplaceAllString(strings.ToLower(base), "-"), "-")
	return strings.TrimRight(base[:min(63, len(base))], "-")
}

// absolute makes the path of a file reference absolute, since the daemon's
// working directory is another, and says what is not there before it is asked.
func absolute(ref string) (string, error) {
	abs, err := image.Absolute(ref)
	if err != nil {
		return "", &usageError{msg: err.Error()}
	}
	if path := image.Path(abs); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("image %s: %w", ref, err)
		}
	}
	return abs, nil
}

// localImage turns what only this side can resolve into what the daemon can:
// the image of a function that comes with skep is made here, in the cache, and
// paths become absolute.
func (c *cli) localImage(ctx context.Context, ref string) (string, error) {
	name, ok := strings.CutPrefix(ref, "functions/")
	if !ok {
		return absolute(ref)
	}
	r, err := c.settings()
	if err != nil {
		return "", err
	}
	return functions.Build(ctx, filepath.Join(r.CacheDir, "functions"), name, func(step string) { c.say("%s …", step) })
}

func (c *cli) deploy(cmd *cobra.Command, d *deployFlags, args []string) error {
	f, err := d.function(cmd, args)
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	if f.Image, err = c.localImage(cmd.Context(), f.Image); err != nil {
		return err
	}
	if err := f.WithDefaults().Validate(); err != nil {
		return &usageError{msg: err.Error()}
	}
	bars := c.newProgress()
	defer bars.close()
	start := time.Now()
	f, err = client.Deploy(cmd.Context(), f, bars.event)
	bars.close()
	if err != nil {
		return err
	}
	if c.json {
		return c.writeJSON(f)
	}
	return c.deployed(cmd.Context(), client, f, time.Since(start))
}

// deployed says what was deployed and what can be done with it.
func (c *cli) deployed(ctx context.Context, client *api.Client, f api.Function, took time.Duration) error {
	fmt.Fprintf(c.out, "deployed %s\n", f.Name)
	if !terminal(c.err) {
		return nil
	}
	d, err := client.Function(ctx, f.Name)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.err, "  in %.1f s, image %s, %d snapshot(s)\n", took.Seconds(), short(f.ImageDigest), d.Snapshots)
	fmt.Fprintf(c.err, "  call it: skep invoke %s -v", f.Name)
	if d.URL != "" {
		fmt.Fprintf(c.err, ", or %s", d.URL)
	}
	fmt.Fprintln(c.err)
	return nil
}
