package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxFile bounds the configuration file; a longer one is not a configuration.
const maxFile = 1 << 20

// Input is where settings come from. The zero value reads nothing but
// DefaultFile.
type Input struct {
	// File is read instead of DefaultFile, and must exist. Without it the
	// environment's SKEP_CONFIG is.
	File string
	// Environ is the environment, as os.Environ returns it.
	Environ []string
	// Flags are the keys that were given on the command line.
	Flags map[string]string
}

// Result is the effective configuration and how it came to be.
type Result struct {
	Config Config
	// From names, for each key, where its value came from: "default", "file
	// /etc/skep/config.toml", "environment SKEP_LISTEN", "flag --listen".
	From map[string]string
	// File is the file that was read; empty if there was none.
	File string
	// CacheDir is where skep keeps what can be had again: below the user's cache
	// directory, or that of the system for who has no home.
	CacheDir string
	// Ignored are variables of the environment that begin with EnvPrefix and
	// name no key. They are not errors: other programs set some.
	Ignored []string
}

// known are variables with EnvPrefix that are not keys.
var known = []string{"SKEP_CONFIG", "SKEP_REQUIRE", "SKEP_AGENT", "SKEP_HELLO"}

// Load merges defaults, file, environment and flags, the later over the
// earlier, and validates the result once.
func Load(in Input) (Result, error) {
	r := Result{Config: Default(), From: map[string]string{}}
	for _, k := range Keys {
		r.From[k.Name] = "default"
	}
	env := r.environ(in.Environ)
	if err := r.readFile(in.File, env["SKEP_CONFIG"]); err != nil {
		return r, err
	}
	for _, k := range Keys {
		if v, ok := env[k.Env()]; ok {
			if err := k.setText(&r.Config, v); err != nil {
				return r, fmt.Errorf("environment variable %s: %w", k.Env(), err)
			}
			r.From[k.Name] = "environment " + k.Env()
		}
		if v, ok := in.Flags[k.Name]; ok {
			if err := k.setText(&r.Config, v); err != nil {
				return r, fmt.Errorf("flag --%s: %w", k.Flag(), err)
			}
			r.From[k.Name] = "flag --" + k.Flag()
		}
	}
	for name := range in.Flags {
		if _, ok := Find(name); !ok {
			return r, fmt.Errorf("flag for %q: no such setting", name)
		}
	}
	if r.Config.Socket == "" {
		r.Config.Socket = filepath.Join(r.Config.RunDir, "skep.sock")
	}
	if r.Config.KernelDir == "" {
		r.Config.KernelDir = filepath.Join(r.CacheDir, "kernels")
	}
	if err := r.Config.Validate(); err != nil {
		return r, fmt.Errorf("configuration: %w", err)
	}
	return r, nil
}

// environ reads what of the environment concerns skep.
func (r *Result) environ(list []string) map[string]string {
	env := map[string]string{}
	r.CacheDir = "/var/cache/skep"
	for _, e := range list {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case name == "XDG_CACHE_HOME" && filepath.IsAbs(value):
			env[name] = value
		case name == "HOME" && filepath.IsAbs(value):
			r.CacheDir = filepath.Join(value, ".cache", "skep")
		case strings.HasPrefix(name, EnvPrefix):
			env[name] = value
			key := strings.ToLower(strings.TrimPrefix(name, EnvPrefix))
			if _, ok := Find(key); !ok && !slices.Contains(known, name) && !strings.HasPrefix(name, "SKEP_TEST_") {
				r.Ignored = append(r.Ignored, name)
			}
		}
	}
	if dir := env["XDG_CACHE_HOME"]; dir != "" {
		r.CacheDir = filepath.Join(dir, "skep")
	}
	sort.Strings(r.Ignored)
	return env
}

// readFile reads the file that was named, or the default one where it exists.
func (r *Result) readFile(flag, env string) error {
	path, must := flag, flag != ""
	if path == "" && env != "" {
		path, must = env, true
	}
	if path == "" {
		path = DefaultFile
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if len(b) > maxFile {
		return fmt.Errorf("reading the configuration: %s is longer than %d bytes", path, maxFile)
	}
	r.File = path
	return r.decode(path, b)
}

func (r *Result) decode(path string, b []byte) error {
	var m map[string]any
	if err := toml.Unmarshal(b, &m); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, col := de.Position()
			return fmt.Errorf("configuration %s, line %d, column %d: %w", path, row, col, err)
		}
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	for _, k := range Keys {
		v, ok := m[k.Name]
		if !ok {
			continue
		}
		if err := k.setTOML(&r.Config, v); err != nil {
			return fmt.Errorf("configuration %s: %w", path, err)
		}
		r.From[k.Name] = "file " + path
		delete(m, k.Name)
	}
	unknown := slices.Collect(maps.Keys(m))
	if len(unknown) == 0 {
		return nil
	}
	sort.Strings(unknown)
	msg := fmt.Sprintf("configuration %s: unknown key %s", path, strings.Join(quoteAll(unknown), ", "))
	if near := nearest(unknown[0]); near != "" {
		msg += fmt.Sprintf(" (did you mean %q?)", near)
	}
	return errors.New(msg + "; `skep config` lists the keys")
}

func quoteAll(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = fmt.Sprintf("%q", n)
	}
	return out
}

// nearest returns the key that a misspelt name most likely meant, or "".
func nearest(name string) string {
	best, bestDistance := "", 4
	for _, k := range Keys {
		if d := distance(strings.ReplaceAll(strings.ToLower(name), "-", "_"), k.Name); d < bestDistance {
			best, bestDistance = k.Name, d
		}
	}
	return best
}

// distance is the number of single-letter edits between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
