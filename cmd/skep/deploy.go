package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
	env        envFlags
	reset      bool
	noSnapshot bool
	timeouts   [7]time.Duration // ready, invocation, keep-alive, queue, response, idle, stream
	data       string           // of the rehearsal
	headers    []string         // of the rehearsal
}

func (c *cli) deployCmd() *cobra.Command {
	var d deployFlags
	cmd := &cobra.Command{
		Use:   "deploy [IMAGE] [-- ARG...]",
		Short: "make a function from an image, or give one a new image",
		Long: `Make a function from an image, or give a new image to one that exists, which
keeps the settings that are not named here; with --reset, or with a file, which
says all of them, it keeps none. The image is fetched, made into a root disk,
booted once to see that it works, and snapshotted; an instance is restored from
the snapshot and asked whether it answers; what serves is replaced only then.
With --rehearse it is asked for more: a request such as clients will make, which must be
answered with a status below 400. What that needs of memory is what the
first cold start finds prefetched. Each deploy makes a revision: ` + "`skep rollback`" + ` goes back.

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
  skep deploy localhost:5000/resize:v4 --env-file secrets.env
  skep deploy localhost:5000/resize:v4 --rehearse /resize --rehearse-data '{"size": 3}'
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
	d.env.register(fs)
	fs.IntVar(&f.Port, "port", 0, "port that its server listens on (default 8080)")
	fs.StringVar(&f.ReadyPath, "ready-path", "", "HTTP `PATH` that answers 2xx when ready (default: the port accepts)")
	fs.DurationVar(&d.timeouts[0], "ready-timeout", 0, "from boot until ready (default 60s)")
	fs.DurationVar(&d.timeouts[1], "timeout", 0, "of one invocation, its wait included, unless it is a stream (default 60s)")
	fs.DurationVar(&d.timeouts[3], "queue-timeout", 0, "of its wait for an instance (default as --timeout)")
	fs.DurationVar(&d.timeouts[4], "response-timeout", 0, "from the request sent until the response begins (default as --timeout)")
	fs.DurationVar(&d.timeouts[5], "idle-timeout", 0, "without a byte of the bodies moving, in streams too (default as --timeout)")
	fs.DurationVar(&d.timeouts[6], "stream-timeout", 0, "of a WebSocket, an event stream or a gRPC call (default none)")
	fs.IntVar(&f.Concurrency, "concurrency", 0, "requests at once in one instance (default 1)")
	fs.Float64Var(&f.TargetUtilization, "target-utilization", 0, "share of --concurrency beyond which others are started (default 1)")
	fs.IntVar(&f.MaxInstances, "max-instances", 0, "instances at once (default 8)")
	fs.IntVar(&f.MinInstances, "min-instances", 0, "instances that there are though nobody asks, as long as there is room (default 0)")
	fs.StringVar(&f.Scaling, "scaling", "", "scaling `POLICY`, as kpa or fixed:keep-alive=10m; skep simulate -h lists them (default: the daemon's)")
	fs.IntVar(&f.QueueLimit, "queue-limit", 0, "requests that may wait (default 100)")
	fs.DurationVar(&d.timeouts[2], "keep-alive", 0, "idle time before an instance ends (default 60s)")
	fs.BoolVar(&d.noSnapshot, "no-snapshot", false, "make no snapshot by itself")
	fs.IntVar(&f.Snapshot.AfterInvocations, "snapshot-after", 0, "snapshot after `N` invocations instead of when ready")
	fs.StringVar(&f.Rehearsal.Path, "rehearse", "", "`PATH` and query that an instance restored from a new snapshot must answer")
	fs.StringVar(&d.data, "rehearse-data", "", "body of that request: text or `@FILE`")
	fs.StringVar(&f.Rehearsal.Method, "rehearse-method", "", "its HTTP `METHOD` (default GET, with a body POST)")
	fs.StringArrayVar(&d.headers, "rehearse-header", nil, "`NAME: VALUE` of it; may be repeated")
	fs.StringVar(&f.MemoryPolicy, "policy", "", "how restored memory is filled (default: the daemon's)")
	fs.StringVar(&f.Egress, "egress", "", "none, host or nat (default none)")
	fs.IntVar(&f.DiskMiB, "disk-mib", 0, "what it may write to its root (default half the memory)")
	fs.BoolVar(&d.reset, "reset", false, "begin with the defaults, if the function exists, and keep no setting")
	fs.StringVar(&f.CloneHook, "clone-hook", "", "HTTP `PATH` POSTed after each restore, before the first request")
}

// function makes the function that file, flags and arguments describe.
func (d *deployFlags) function(cmd *cobra.Command, environ, args []string) (api.Function, error) {
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
	if flags.Rehearsal.Header, err = headerOf("--rehearse-header", d.headers); err != nil {
		return base, err
	}
	flags.Rehearsal.Body = d.data
	if file, ok := strings.CutPrefix(d.data, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return base, fmt.Errorf("reading the rehearsal's body: %w", err)
		}
		flags.Rehearsal.Body = string(b)
	}
	overlay(cmd.Flags(), &base, &flags, d)
	env, err := d.env.read(environ)
	if err != nil {
		return base, err
	}
	if len(env) > 0 {
		if base.Env == nil {
			base.Env = map[string]string{}
		}
		maps.Copy(base.Env, env)
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
func overlay(fs *pflag.FlagSet, f, flags *api.Function, d *deployFlags) {
	set := map[string]func(){
		"name":               func() { f.Name = flags.Name },
		"memory-mib":         func() { f.MemoryMiB = flags.MemoryMiB },
		"vcpus":              func() { f.VCPUs = flags.VCPUs },
		"port":               func() { f.Port = flags.Port },
		"ready-path":         func() { f.ReadyPath = flags.ReadyPath },
		"ready-timeout":      func() { f.ReadyTimeout = api.Duration(d.timeouts[0]) },
		"timeout":            func() { f.Timeout = api.Duration(d.timeouts[1]) },
		"queue-timeout":      func() { f.QueueTimeout = api.Duration(d.timeouts[3]) },
		"response-timeout":   func() { f.ResponseTimeout = api.Duration(d.timeouts[4]) },
		"idle-timeout":       func() { f.IdleTimeout = api.Duration(d.timeouts[5]) },
		"stream-timeout":     func() { f.StreamTimeout = api.Duration(d.timeouts[6]) },
		"concurrency":        func() { f.Concurrency = flags.Concurrency },
		"target-utilization": func() { f.TargetUtilization = flags.TargetUtilization },
		"max-instances":      func() { f.MaxInstances = flags.MaxInstances },
		"min-instances":      func() { f.MinInstances = flags.MinInstances },
		"scaling":            func() { f.Scaling = flags.Scaling },
		"queue-limit":        func() { f.QueueLimit = flags.QueueLimit },
		"keep-alive":         func() { f.KeepAlive = api.Duration(d.timeouts[2]) },
		"no-snapshot":        func() { f.Snapshot.Off = d.noSnapshot },
		"snapshot-after":     func() { f.Snapshot.AfterInvocations = flags.Snapshot.AfterInvocations },
		"policy":             func() { f.MemoryPolicy = flags.MemoryPolicy },
		"egress":             func() { f.Egress = flags.Egress },
		"disk-mib":           func() { f.DiskMiB = flags.DiskMiB },
		"clone-hook":         func() { f.CloneHook = flags.CloneHook },
		"rehearse":           func() { f.Rehearsal.Path = flags.Rehearsal.Path },
		"rehearse-method":    func() { f.Rehearsal.Method = flags.Rehearsal.Method },
		"rehearse-header":    func() { f.Rehearsal.Header = flags.Rehearsal.Header },
		"rehearse-data":      func() { f.Rehearsal.Body = flags.Rehearsal.Body },
	}
	fs.Visit(func(g *pflag.Flag) {
		if apply := set[g.Name]; apply != nil {
			apply()
		}
	})
}

// keyOfFlag has the settings whose flags are named otherwise.
var keyOfFlag = map[string]string{
	"policy": "memory_policy", "no-snapshot": "snapshot.off", "snapshot-after": "snapshot.after_invocations",
	"rehearse": "rehearsal.path", "rehearse-method": "rehearsal.method", "rehearse-header": "rehearsal.header", "rehearse-data": "rehearsal.body",
}

// headerOf reads lines of a header as a flag has them; the last of a name counts.
func headerOf(flag string, lines []string) (map[string]string, error) {
	if len(lines) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, h := range lines {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return nil, &usageError{msg: fmt.Sprintf("%s %q: want NAME: VALUE", flag, h)}
		}
		out[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return out, nil
}

// patch is what of f was named: the image, the arguments and what has a flag.
func (d *deployFlags) patch(cmd *cobra.Command, environ []string, f api.Function) (patch, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	var all map[string]any
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	p := patch{"image": f.Image}
	if cmd.ArgsLenAtDash() >= 0 {
		p["args"] = f.Args
	}
	cmd.Flags().Visit(func(g *pflag.Flag) {
		key := canonical(g.Name)
		if k, ok := keyOfFlag[g.Name]; ok {
			key = k
		} else if _, ok := functionSettings[key]; !ok {
			return
		}
		outer, inner, nested := strings.Cut(key, ".")
		v := all[outer] // absent, and so nil, means the default
		if m, ok := v.(map[string]any); ok && nested {
			v = m[inner]
		}
		p.put(key, v)
	})
	env, err := d.env.read(environ)
	if err != nil {
		return nil, err
	}
	if len(env) > 0 {
		p["env"] = env
	}
	return p, nil
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
	f, err := d.function(cmd, c.environ, args)
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	ref := f.Image
	if f.Image, err = c.localImage(cmd.Context(), f.Image); err != nil {
		return err
	}
	if err := f.WithDefaults().Validate(); err != nil {
		return &usageError{msg: err.Error()}
	}
	bars := c.newProgress()
	defer bars.close()
	start := time.Now()
	f, err = c.deployOrChange(cmd, client, d, f, bars.event)
	bars.close()
	if err != nil {
		return meantBuiltin(ref, err)
	}
	if c.json {
		return c.writeJSON(f)
	}
	return c.deployed(cmd.Context(), client, f, time.Since(start))
}

// meantBuiltin says of an image that is not to be had that a function of its name
// comes with skep.
func meantBuiltin(ref string, err error) error {
	name, _, _ := strings.Cut(ref, ":")
	var answer *api.Error
	if !errors.As(err, &answer) || !slices.Contains(functions.Names(), name) {
		return err
	}
	switch answer.Status {
	case http.StatusNotFound, http.StatusForbidden, http.StatusBadGateway:
		return &api.Error{Status: answer.Status, Message: answer.Message,
			Hint: fmt.Sprintf("did you mean functions/%s, which comes with skep? `skep deploy functions/%s`", name, name)}
	}
	return err
}

// deployOrChange makes the function, or changes what was named of one that is
// there already.
func (c *cli) deployOrChange(cmd *cobra.Command, client *api.Client, d *deployFlags, f api.Function, progress func(api.DeployEvent)) (api.Function, error) {
	ctx := cmd.Context()
	if d.file != "" || d.reset {
		return client.Deploy(ctx, f, progress)
	}
	var missing *api.Error
	_, err := client.Function(ctx, f.Name)
	if errors.As(err, &missing) && missing.Status == http.StatusNotFound {
		return client.Deploy(ctx, f, progress)
	}
	if err != nil {
		return f, err
	}
	p, err := d.patch(cmd, c.environ, f)
	if err != nil {
		return f, err
	}
	return client.Set(ctx, f.Name, p, progress)
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
