package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/skep-dev/skep/config"
)

// What a package is like.
const (
	packagedProgram = "/usr/bin/skep"
	packagedKernels = "/var/cache/skep/kernels" // found by who has a home and by the service, which has none
)

// packagingCmd is for who makes packages.
func (c *cli) packagingCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "packaging DIR",
		Short:  "write what a package has beside the programs",
		Hidden: true,
		Long: `Write what a package has beside the programs into a directory:
man1/, a manual page for each verb, of the day that SOURCE_DATE_EPOCH says, or else
of today; skep.bash, _skep and skep.fish, completions for bash, zsh and fish;
config.toml, for ` + config.DefaultFile + `; and skep.service, a unit for
` + packagedProgram + ` that reads it.`,
		Example: `  skep packaging build/files`,
		Args:    nArgs(1, 1),
		RunE:    func(cmd *cobra.Command, args []string) error { return writePackaging(cmd.Root(), args[0]) },
	}
}

func writePackaging(root *cobra.Command, dir string) error {
	pages := filepath.Join(dir, "man1")
	if err := os.MkdirAll(pages, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "skep", Manual: "skep"}, pages); err != nil {
		return fmt.Errorf("writing manual pages: %w", err)
	}
	settings, err := config.Load(config.Input{File: os.DevNull, Flags: map[string]string{"kernel_dir": packagedKernels}})
	if err != nil {
		return err
	}
	for name, write := range map[string]func(io.Writer) error{
		"skep.bash":   func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"_skep":       root.GenZshCompletion,
		"skep.fish":   func(w io.Writer) error { return root.GenFishCompletion(w, true) },
		"config.toml": func(w io.Writer) error { _, err := w.Write(settings.Text()); return err },
		unitName:      func(w io.Writer) error { return writePackagedUnit(w, settings.Config) },
	} {
		var b bytes.Buffer
		err := write(&b)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644)
		}
		if err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

// writePackagedUnit writes the unit of a daemon that finds its settings in the file
// beside it, and so needs none in its environment.
func writePackagedUnit(w io.Writer, cfg config.Config) error {
	u, err := newUnit(packagedProgram, config.Result{Config: cfg})
	if err != nil {
		return err
	}
	u.Package = true
	text, err := u.text()
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
