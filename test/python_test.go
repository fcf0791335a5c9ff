package test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestPython has the Python client, sync and async, deploy, call and measure functions of
// a real daemon, which it finds by its configuration.
func TestPython(t *testing.T) {
	python := testenv.Python(t)
	d := start(t)
	ref, err := functions.Build(context.Background(), t.TempDir(), "hello", func(step string) { t.Log(step) })
	if err != nil {
		t.Fatal(err)
	}
	image, ok := strings.CutPrefix(ref, "dir:")
	if !ok {
		t.Fatalf("the image of hello is %s: want a directory", ref)
	}
	t.Log(testenv.RunPython(t, python, "../clients/python", d.forPython("SKEP_TEST_IMAGE="+image),
		"-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_daemon.py"))
}

// forPython is the environment of a Python that uses the daemon.
func (d *daemon) forPython(more ...string) []string {
	return append(more, "SKEP_CONFIG="+filepath.Join(d.dir, "config.toml"), "SKEP_TEST_READY="+d.ready().String(),
		"PATH="+d.bin+":"+os.Getenv("PATH"))
}

// TestNotebook runs the notebook of examples/ against a real daemon. SKEP_TEST_NOTEBOOK names a
// file for it with its outputs, to look at.
func TestNotebook(t *testing.T) {
	python := testenv.Python(t)
	d := start(t)
	t.Log(testenv.RunPython(t, python, "../clients/python", d.forPython("SKEP_TEST_NOTEBOOK="+os.Getenv("SKEP_TEST_NOTEBOOK")),
		"-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_notebook.py"))
	if fs, err := d.client.Functions(d.ctx(10 * time.Second)); err != nil || len(fs) > 0 {
		t.Errorf("the notebook left %v, %v", fs, err)
	}
}
