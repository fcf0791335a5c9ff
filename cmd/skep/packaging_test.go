package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/config"
)

// What a package has beside the programs is whole, the same at each time, and taken
// by who reads it.
func TestPackageFiles(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	dir, second := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, second} {
		if code, _, stderr := skep(t, "/run/skep/skep.sock", "packaging", d); code != exitOK {
			t.Fatal(stderr)
		}
	}
	if out, err := exec.Command("diff", "-r", dir, second).CombinedOutput(); err != nil {
		t.Errorf("the second time they are others: %v\n%s", err, out)
	}
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	c := &cli{}
	var pages func(*cobra.Command)
	pages = func(cmd *cobra.Command) {
		if !cmd.IsAvailableCommand() && cmd.HasParent() {
			return
		}
		page := read(filepath.Join("man1", strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1"))
		if !bytes.Contains(page, []byte(`"Jan 1970"`)) || cmd.Example != "" && !bytes.Contains(page, []byte(".SH EXAMPLE")) {
			t.Errorf("the page of %s has neither its date nor its example:\n%.300s", cmd.CommandPath(), page)
		}
		for _, sub := range cmd.Commands() {
			pages(sub)
		}
	}
	pages(c.root())

	r, err := config.Load(config.Input{File: filepath.Join(dir, "config.toml")})
	if err != nil {
		t.Fatal(err)
	}
	for key, from := range r.From {
		if from != "default" && key != "kernel_dir" {
			t.Errorf("%s is set by %s", key, from)
		}
	}
	if r.Config.KernelDir != packagedKernels {
		t.Errorf("kernels are in %s", r.Config.KernelDir)
	}

	if out, err := exec.Command("bash", "-n", filepath.Join(dir, "skep.bash")).CombinedOutput(); err != nil {
		t.Errorf("bash does not take the completion: %v\n%s", err, out)
	}
	for _, name := range []string{"_skep", "skep.fish"} {
		if !bytes.Contains(read(name), []byte("skep")) {
			t.Errorf("%s is no completion", name)
		}
	}

	unit := string(read(unitName))
	for _, want := range []string{"\nExecStart=\"" + packagedProgram + "\" up\n", "\nTimeoutStopSec=60\n", "systemctl edit"} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit lacks %q:\n%s", want, unit)
		}
	}
	if strings.Contains(unit, "Environment=") {
		t.Errorf("the unit has settings of its own:\n%s", unit)
	}
	verifyUnit(t, []byte(strings.ReplaceAll(unit, packagedProgram, "/bin/true")))
}
