package main

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

// setting is how a function's setting is read from the command line.
type setting struct {
	key  string // as in a function file: memory_mib, snapshot.off
	kind reflect.Type
}

// functionSettings are those that can be set one by one, by key. Beside them are
// env.NAME of the environment, and the arguments.
var functionSettings = func() map[string]setting {
	out := map[string]setting{}
	var add func(prefix string, t reflect.Type)
	add = func(prefix string, t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case slices.Contains([]string{"name", "image_digest", "created", "revision", "env", "args"}, key):
			case f.Type.Kind() == reflect.Map: // value by value, or not at all
			case f.Type.Kind() == reflect.Struct:
				add(key+".", f.Type)
			default:
				out[prefix+key] = setting{prefix + key, f.Type}
			}
		}
	}
	add("", reflect.TypeFor[api.Function]())
	return out
}()

// parse reads a value as the setting's type has it on the wire.
func (s setting) parse(text string) (any, error) {
	switch {
	case s.kind == reflect.TypeFor[api.Duration]():
		var d api.Duration
		if err := d.UnmarshalText([]byte(text)); err != nil {
			return nil, fmt.Errorf("%s: %w", s.key, err)
		}
		return d, nil
	case s.kind.Kind() == reflect.String:
		return text, nil
	case s.kind.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fmt.Errorf("%s is %q: want true or false", s.key, text)
		}
		return b, nil
	default:
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%s is %q: want a whole number", s.key, text)
		}
		return n, nil
	}
}

// patch is a JSON merge patch of a function.
type patch map[string]any

// put sets a key: what stands behind its first dot is a key within the outer one.
func (p patch) put(key string, value any) {
	outer, inner, nested := strings.Cut(key, ".")
	if !nested {
		p[outer] = value
		return
	}
	m, ok := p[outer].(map[string]any)
	if !ok {
		m = map[string]any{}
		p[outer] = m
	}
	m[inner] = value
}

type setFlags struct {
	env   envFlags
	unset []string
}

func (c *cli) setCmd() *cobra.Command {
	var s setFlags
	cmd := &cobra.Command{
		Use:   "set NAME [KEY=VALUE...] [-- ARG...]",
		Short: "change settings of a function and keep the rest",
		Long: `Change what is named of a function's settings and keep the rest.

What is in the memory of its guests (image, arguments, environment, port,
ready_path, memory_mib, vcpus, disk_mib, egress nat) is tried out and snapshotted
as by a deploy, and replaces what serves only when that has worked. All else is
in force at once, without a new snapshot. Either makes a revision, to which
` + "`skep rollback`" + ` goes back.

Keys: ` + strings.Join(slices.Sorted(maps.Keys(functionSettings)), ", ") + `;
env.NAME for a variable of the environment, env.NAME without a value to take it
from this one. Arguments of the function go after --. --unset rehearsal takes all of it away.`,
		Example: `  skep set shop timeout=5s max_instances=20
  skep set shop env.LEVEL=2 memory_mib=512
  skep set shop --env-file secrets.env
  skep set shop --unset env.LEVEL --unset memory_policy
  skep set shop image=localhost:5000/shop:v4`,
		Args:              nArgs(1, 4096),
		ValidArgsFunction: c.completeSet,
		RunE:              func(cmd *cobra.Command, args []string) error { return c.set(cmd, &s, args) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	s.env.register(f)
	f.StringArrayVar(&s.unset, "unset", nil, "`KEY` that gets its default again, or env.NAME that goes; may be repeated")
	return cmd
}

// completeSet completes the function's name, then keys.
func (c *cli) completeSet(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return c.complete(1, functionNames)(cmd, args, begun)
	}
	var fit []string
	for _, key := range append(slices.Sorted(maps.Keys(functionSettings)), "env.") {
		if strings.HasPrefix(key, begun) && key != "env." {
			fit = append(fit, key+"=")
		} else if strings.HasPrefix(key, begun) {
			fit = append(fit, key)
		}
	}
	return fit, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// patch makes the merge patch that the arguments describe.
func (s *setFlags) patch(cmd *cobra.Command, environ, args []string) (patch, error) {
	rest, p := args[1:], patch{}
	if dash := cmd.ArgsLenAtDash(); dash >= 1 {
		rest, p["args"] = args[1:dash], args[dash:]
	}
	for _, key := range s.unset {
		key = canonical(key)
		if _, ok := functionSettings[key]; !ok && !strings.HasPrefix(key, "env.") && key != "args" && key != "rehearsal" {
			return nil, unknownKey(cmd, key)
		}
		p.put(key, nil)
	}
	vars := s.env
	for _, a := range rest {
		key, text, given := strings.Cut(a, "=")
		key = canonical(key)
		if name, ok := strings.CutPrefix(key, "env."); ok {
			vars.vars = append(vars.vars, name+strings.TrimPrefix(a, key))
			continue
		}
		known, ok := functionSettings[key]
		if !ok {
			return nil, unknownKey(cmd, key)
		}
		if !given {
			return nil, usagef(cmd, "%s: want %s=VALUE", key, key)
		}
		v, err := known.parse(text)
		if err != nil {
			return nil, &usageError{msg: err.Error()}
		}
		p.put(key, v)
	}
	env, err := vars.read(environ)
	if err != nil {
		return nil, err
	}
	for k, v := range env {
		p.put("env."+k, v)
	}
	if len(p) == 0 {
		return nil, usagef(cmd, "nothing to change: name a KEY=VALUE")
	}
	return p, nil
}

// canonical takes a key with dashes, as flags have them, too.
func canonical(key string) string {
	if strings.HasPrefix(key, "env.") {
		return key
	}
	return strings.ReplaceAll(key, "-", "_")
}

func unknownKey(cmd *cobra.Command, key string) error {
	return usagef(cmd, "%q is no setting of a function", key)
}

func (c *cli) set(cmd *cobra.Command, s *setFlags, args []string) error {
	if cmd.ArgsLenAtDash() == 0 {
		return usagef(cmd, "an argument is missing")
	}
	p, err := s.patch(cmd, c.environ, args)
	if err != nil {
		return err
	}
	if ref, ok := p["image"].(string); ok {
		if p["image"], err = c.localImage(cmd.Context(), ref); err != nil {
			return err
		}
	}
	return c.changeFunction(cmd.Context(), func(ctx context.Context, client *api.Client, progress func(api.DeployEvent)) (api.Function, error) {
		return client.Set(ctx, args[0], p, progress)
	})
}

// changeFunction runs what changes a function, with its progress, and says what
// came of it.
func (c *cli) changeFunction(ctx context.Context, change func(context.Context, *api.Client, func(api.DeployEvent)) (api.Function, error)) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	bars := c.newProgress()
	defer bars.close()
	start := time.Now()
	f, err := change(ctx, client, bars.event)
	bars.close()
	if err != nil {
		return err
	}
	if c.json {
		return c.writeJSON(f)
	}
	fmt.Fprintf(c.out, "%s is at revision %d\n", f.Name, f.Revision)
	if terminal(c.err) {
		fmt.Fprintf(c.err, "  in %.1f s; `skep rollback %s` takes it back\n", time.Since(start).Seconds(), f.Name)
	}
	return nil
}
