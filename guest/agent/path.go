package agent

import (
	"fmt"
	"path/filepath"
	"strings"
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
