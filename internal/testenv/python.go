package testenv

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// PythonEnv names the environment variable with a Python that has the client's packages.
const PythonEnv = "SKEP_PYTHON"

// Python returns a Python that has what the Python client and its tests want, or skips.
func Python(t testing.TB) string {
	t.Helper()
	program, err := exec.LookPath(cmp.Or(os.Getenv(PythonEnv), "python3"))
	if err == nil {
		if out, bad := exec.Command(program, "-c", "import httpx, pytest, mypy, pandas, matplotlib, nbclient, ipykernel").CombinedOutput(); bad != nil {
			err = fmt.Errorf("%s: %w: %s", program, bad, out)
		}
	}
	NeedThat(t, "python", err, "make test-python, or python3 -m venv V && V/bin/pip install './clients/python[test]', and set "+PythonEnv+" to V/bin/python")
	return program
}

// RunPython runs Python in a directory and fails the test, with all it said, unless it
// ends well. env is added to the environment.
func RunPython(t testing.TB, program, dir string, env []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Limit(t, 5*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1"), env...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}
