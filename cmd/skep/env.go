package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// envFlags are where a function's environment comes from. Errors name variables
// and lines, never values: they end up in logs of builds.
type envFlags struct {
	vars  []string
	files []string
}

func (e *envFlags) register(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&e.vars, "env", "e", nil, "`NAME=VALUE` of the environment, or NAME to take it from this one; may be repeated")
	fs.StringArrayVar(&e.files, "env-file", nil, "`FILE` of such lines, as docker has them; may be repeated, --env goes over it")
}

// read returns the variables; environ is the caller's environment.
func (e *envFlags) read(environ []string) (map[string]string, error) {
	own := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		own[k] = v
	}
	env := map[string]string{}
	for _, file := range e.files {
		if err := readEnvFile(file, own, env); err != nil {
			return nil, &usageError{msg: err.Error()}
		}
	}
	for i, kv := range e.vars {
		k, v, given := strings.Cut(kv, "=")
		if k == "" {
			return nil, &usageError{msg: fmt.Sprintf("--env, the %d. one: want NAME=VALUE or NAME", i+1)}
		}
		if !given {
			var ok bool
			if v, ok = own[k]; !ok {
				return nil, &usageError{
					msg:  fmt.Sprintf("--env, the %d. one: no such variable is set here: want NAME=VALUE, or the NAME of one that is", i+1),
					hint: "with sudo, --preserve-env=NAME lets it through",
				}
			}
		}
		env[k] = v
	}
	return env, nil
}

// maxEnvFile is in bytes: more than a function's environment may have.
const maxEnvFile = 1 << 20

// readEnvFile reads lines NAME=VALUE, taken as they are, and NAME, which takes
// the caller's if it is set. Empty lines and those that begin with # are left
// out.
func readEnvFile(path string, own, env map[string]string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	if st.Size() > maxEnvFile {
		return fmt.Errorf("reading the environment: %s is larger than %d bytes", path, maxEnvFile)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxEnvFile)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(strings.TrimPrefix(lines.Text(), "\ufeff"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		k, v, given := strings.Cut(line, "=")
		if !given {
			k = strings.TrimRight(k, " \t\r")
			var ok bool
			if v, ok = own[k]; !ok {
				continue // as docker has it
			}
		}
		if k == "" || strings.ContainsAny(k, " \t") {
			return fmt.Errorf("environment file %s, line %d: want NAME=VALUE or NAME", path, n)
		}
		env[k] = v
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the environment from %s: %w", path, err)
	}
	return nil
}
