package testenv

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// SchemathesisEnv names the environment variable with schemathesis' program.
const SchemathesisEnv = "SKEP_SCHEMATHESIS"

// schemathesisSettings lists where a call may be refused that its schema allows: settings
// must fit each other and the path, images be there, 1.0 is no whole number to Go, and exec
// is no HTTP.
const schemathesisSettings = `
[[operations]]
include-operation-id = ["deployFunction", "setFunction", "rollbackFunction", "collectStore", "createSnapshot", "execInFunction", "execInInstance"]
checks.positive_data_acceptance.enabled = false
`

// Schemathesis makes calls of a control API at an address up from its OpenAPI document,
// those that it allows and those that it does not, and fails the test when an answer is
// not as the document says, or a server's error. flags are of `schemathesis run`.
func Schemathesis(t *testing.T, address, token string, flags ...string) {
	t.Helper()
	program, err := exec.LookPath(cmp.Or(os.Getenv(SchemathesisEnv), "schemathesis"))
	NeedThat(t, "schemathesis", err, "python3 -m venv V && V/bin/pip install schemathesis, and set "+SchemathesisEnv+" to V/bin/schemathesis")
	url := "http://" + address
	args := append([]string{
		"run", url + "/v1/openapi.json", "--url", url, "--header", "Authorization: Bearer " + token,
		// Streams, which have no end; the functions' own answers; those without a body
		// of JSON. Tests of their own look at them.
		"--exclude-operation-id", "followEvents", "--exclude-operation-id", "getLogs", "--exclude-path-regex", "/invoke/",
		"--request-timeout", "60", "--no-color", "--generation-deterministic",
	}, flags...)
	ctx, cancel := context.WithTimeout(t.Context(), Limit(t, 4*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(cmd.Dir, "schemathesis.toml"), []byte(schemathesisSettings), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	text := strings.ReplaceAll(string(out), token, "TOKEN")
	if err != nil {
		t.Errorf("schemathesis: %v\n%s", err, text)
		return
	}
	if at := strings.LastIndex(text, "SUMMARY"); at >= 0 {
		t.Log(text[at:])
	}
}
