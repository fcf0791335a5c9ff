package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/internal/testenv"
)

// TestAPIProperties has calls made up from the API's document over a daemon with a
// function, its snapshot and its records: none is answered otherwise than the document
// says, and none hurts the daemon.
func TestAPIProperties(t *testing.T) {
	testenv.Need(t, "root", "uffd", "tap", "kernel")
	token, address := strings.Repeat("t", 32), testenv.FreeAddress(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	// Names of images that are made up reach no registry.
	t.Setenv("NO_PROXY", "127.0.0.1")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	d := start(t, "control_listen = '"+address+"'", "control_token_file = '"+file+"'")
	d.hello("hello")
	d.mustGet("hello", "/")
	testenv.Schemathesis(t, address, token, "--max-examples", "10")
	d.hello("last")
	d.mustGet("last", "/")
}
