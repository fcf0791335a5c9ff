package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Where the runtime is written. Since 2.2 containerd puts what a configuration imports
// over that key by key: where it imports conf.d, as the one does that containerd prints
// as its default, a file of our own is all it takes. Before that, a file that is
// imported replaces everything that the configuration says about the CRI; then, and
// where nothing imports conf.d, the runtime's table goes to the end of the
// configuration, between two comments.
const (
	dropIn = "conf.d/skep.toml" // beside the configuration
	begin  = "# >>> skep: written by `skep containerd install`, removed by `skep containerd uninstall`"
	end    = "# <<< skep"
)

// plugin is the CRI's part that has the runtimes, by the configuration's version.
func plugin(format int) string {
	if format >= 3 {
		return "io.containerd.cri.v1.runtime"
	}
	return "io.containerd.grpc.v1.cri"
}

// table is what makes the runtime known, in a format of the configuration.
func table(format int) string {
	return fmt.Sprintf(`[plugins.%q.containerd.runtimes.%s]
  runtime_type = %q
  # Annotations of pods by which they choose: docs/containerd.md.
  pod_annotations = ["skep.dev/*", "serving.knative.dev/*"]
`, plugin(format), Handler, Runtime)
}

// file is the part of containerd's configuration that matters here.
type file struct {
	Version int            `toml:"version"`
	Imports *[]string      `toml:"imports"`
	Plugins map[string]any `toml:"plugins"`
}

// runtime tells whether the configuration names the runtime, whoever wrote it.
func (f file) runtime() bool {
	for _, format := range []int{2, 3} {
		at, _ := f.Plugins[plugin(format)].(map[string]any)
		for _, k := range []string{"containerd", "runtimes"} {
			at, _ = at[k].(map[string]any)
		}
		for _, r := range at {
			if r, _ := r.(map[string]any); r["runtime_type"] == Runtime {
				return true
			}
		}
	}
	return false
}

// change is what is to be done to one file.
type change struct {
	path     string // on this host
	was, now []byte // was nil: there is none
	delete   bool
}

func (c change) none() bool { return !c.delete && c.was != nil && string(c.was) == string(c.now) }

func (c change) apply() error {
	if c.none() {
		return nil
	}
	if c.delete {
		return os.Remove(c.path)
	}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if st, err := os.Stat(c.path); err == nil {
		mode = st.Mode().Perm()
	}
	// A link to the configuration stays one.
	path, err := filepath.EvalSymlinks(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		path, err = c.path, nil
	}
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(path, c.now, mode)
}

// configured says how the configuration would name the runtime.
func (h Host) configured(ctx context.Context) (change, error) {
	v, err := h.version(ctx)
	if err != nil {
		return change{}, err
	}
	main, text, err := h.read()
	if err != nil {
		return change{}, err
	}
	beside := change{path: filepath.Join(filepath.Dir(h.path(h.Config)), dropIn), now: []byte("version = 3\n\n" + table(3))}
	if v.atLeast(2, 2) && h.imports(main) && !strings.Contains(string(text), begin) {
		beside.was, err = readIfThere(beside.path)
		return beside, err
	}
	c := change{path: h.path(h.Config), was: text}
	switch {
	case text == nil:
		main.Version = 2
		c.now = []byte("version = 2\n")
	case main.Version < 2:
		return c, fmt.Errorf("%s has version %d, which has no runtimes of ours: bring it to version 2 (`containerd config default` shows one), then install again", c.path, main.Version)
	default:
		c.now = []byte(cut(string(text)))
	}
	if main.runtime() && !strings.Contains(string(text), begin) {
		return change{path: c.path, was: text, now: text}, nil // somebody else's work
	}
	c.now = append(c.now, "\n"+begin+"\n"+table(main.Version)+end+"\n"...)
	return c, nil
}

// unconfigured says how the configuration would not.
func (h Host) unconfigured() ([]change, error) {
	var all []change
	beside := filepath.Join(filepath.Dir(h.path(h.Config)), dropIn)
	if was, err := readIfThere(beside); err != nil {
		return nil, err
	} else if was != nil {
		all = append(all, change{path: beside, was: was, delete: true})
	}
	text, err := readIfThere(h.path(h.Config))
	if err != nil || !strings.Contains(string(text), begin) {
		return all, err
	}
	c := change{path: h.path(h.Config), was: text, now: []byte(cut(string(text)))}
	c.delete = string(c.now) == "version = 2\n" // all that there was is ours
	return append(all, c), nil
}

// cut removes what stands between the two comments, and the line's end before.
func cut(text string) string {
	before, rest, found := strings.Cut(text, begin)
	if !found {
		return text
	}
	_, after, closed := strings.Cut(rest, end)
	if !closed {
		after = ""
	}
	return strings.TrimSuffix(before, "\n") + strings.TrimPrefix(after, "\n")
}

// read reads the configuration; text is nil when there is none.
func (h Host) read() (f file, text []byte, err error) {
	if text, err = readIfThere(h.path(h.Config)); err != nil || text == nil {
		return f, nil, err
	}
	if err := toml.Unmarshal(text, &f); err != nil {
		return f, nil, fmt.Errorf("reading %s: %w", h.path(h.Config), err)
	}
	return f, text, nil
}

// imports tells whether the configuration imports conf.d. That containerd shows it
// among the imports of any configuration means nothing: it imports what files say.
func (h Host) imports(f file) bool {
	if f.Imports == nil {
		return false
	}
	want := filepath.Join(filepath.Dir(h.Config), dropIn)
	return slices.ContainsFunc(*f.Imports, func(p string) bool {
		ok, _ := filepath.Match(p, want)
		return ok
	})
}

func readIfThere(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if b == nil {
		b = []byte{}
	}
	return b, err
}

// Configured tells whether containerd's configuration names the runtime as Install
// writes it.
func (h Host) Configured(ctx context.Context) (bool, error) {
	c, err := h.withDefaults().configured(ctx)
	return c.none(), err
}
