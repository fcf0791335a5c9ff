package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultPath is where programs are looked for when the image does not say.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath finds the program in the function's root as a shell would.
func lookPath(root, dir, name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // relative to the working directory, as execve has it
	}
	paths := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			paths = v
		}
	}
	for _, p := range filepath.SplitList(paths) {
		full := filepath.Join(p, name)
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		if executable(root, full) {
			return full, nil
		}
	}
	return "", fmt.Errorf("no program %q in the image's PATH %s", name, paths)
}

// explain says what was wrong with a program that could not be run: execve has
// one error for a program that is not there and for one whose interpreter is not.
func explain(root, dir, path string, err error) error {
	full := path
	if !filepath.IsAbs(path) {
		full = dir + "/" + path
	}
	f, missing := openInRoot(root, full)
	if missing == nil {
		defer f.Close()
	}
	switch {
	case errors.Is(err, unix.ENOENT) && missing != nil:
		err = fmt.Errorf("the image has no such program: %w", err)
	case errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("the program is there, but not the interpreter or the dynamic loader that it names: %w", err)
	case errors.Is(err, unix.ENOEXEC):
		err = fmt.Errorf("it is neither a program for this machine's processor nor a script with an interpreter in its first line: %w", err)
	case errors.Is(err, unix.EACCES) && missing == nil && !executable(root, full):
		err = fmt.Errorf("it is no file that may be executed: %w", err)
	}
	return fmt.Errorf("running %s in the directory %s: %w", path, dir, err)
}

// executable reports whether path, seen by a process whose root directory is
// root, is a file that can be run.
func executable(root, path string) bool {
	f, err := openInRoot(root, path)
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
