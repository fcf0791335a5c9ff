package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BinariesEnv names the environment variable with a directory of programs that
// were built before, for hosts without Go: each under its package's path within
// the module, "cmd/skep".
const BinariesEnv = "SKEP_TEST_BINARIES"

// Build puts the static program of a package of this module, such as "cmd/skep",
// at out.
func Build(out, pkg string) error {
	if dir := os.Getenv(BinariesEnv); dir != "" {
		b, err := os.ReadFile(filepath.Join(dir, pkg))
		if err == nil {
			err = os.WriteFile(out, b, 0o755)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; put `CGO_ENABLED=0 go build -o %s github.com/skep-dev/skep/%s` there, or unset %s",
				err, filepath.Join(dir, pkg), pkg, BinariesEnv)
		}
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "github.com/skep-dev/skep/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// Program is Build into a directory of the test's.
func Program(t testing.TB, pkg string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(pkg))
	if err := Build(out, pkg); err != nil {
		t.Fatal(err)
	}
	return out
}
