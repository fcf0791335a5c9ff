package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/internal/atomicfile"
)

const unitName = "skep.service"

// packagedUnits is where packages put units. One of the same name in the directory
// of `skep service install` goes before it.
const packagedUnits = "/usr/lib/systemd/system"

func unitIn(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, unitName))
	return err == nil
}

//go:embed skep.service.tmpl
var unitText string

var unitTemplate = template.Must(template.New(unitName).Funcs(template.FuncMap{"word": quoteWord, "quote": quoteUnit}).Parse(unitText))

// unit is what the text of the service's unit depends on.
type unit struct {
	Program string
	Package bool     // it is a package's, and not written by this program
	Config  string   // configuration file; "" for none
	Env     []string // settings that a service would find otherwise than who installs it
	Stop    int      // seconds that the end may take
}

// quoteWord writes a word of a command line, in which $ begins a variable.
func quoteWord(s string) string { return strings.ReplaceAll(quoteUnit(s), "$", "$$") }

// quoteUnit writes a word as unit files have them.
func quoteUnit(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "\n", `\n`).Replace(s) + `"`
}

// text is the unit's file.
func (u unit) text() ([]byte, error) {
	var b bytes.Buffer
	err := unitTemplate.Execute(&b, u)
	return b.Bytes(), err
}

// newUnit makes the unit of a daemon with these settings. What came from the
// installer's environment and home is written down: a service has neither.
func newUnit(program string, r config.Result) (unit, error) {
	u := unit{Program: program, Stop: int((r.Config.DrainTimeout.D() + endGrace).Seconds())}
	if r.File != "" && r.File != config.DefaultFile {
		abs, err := filepath.Abs(r.File)
		if err != nil {
			return u, err
		}
		u.Config = abs
	}
	for _, k := range config.Keys {
		from := r.From[k.Name]
		home := k.Name == "kernel_dir" && from == "default"
		if !home && !strings.HasPrefix(from, "environment") && !strings.HasPrefix(from, "flag") {
			continue
		}
		value := fmt.Sprint(k.Value(r.Config))
		if list, ok := k.Value(r.Config).([]string); ok {
			value = strings.Join(list, ",")
		}
		u.Env = append(u.Env, k.Env()+"="+value)
	}
	return u, nil
}

func (c *cli) serviceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service",
		Short: "have systemd run the daemon",
		Example: `  skep service install
  skep service status
  skep service uninstall`,
	}
	onlyVerbs(cmd)
	var dir string
	var noStart, show bool
	install := &cobra.Command{
		Use:   "install",
		Short: "write the unit, and start the daemon now and with the host",
		Long: `Write a systemd unit that runs this program as the daemon, enable it and start
it. A unit that is there is replaced, and the daemon started anew. Settings that
came from flags or from the environment are written into the unit; the
configuration file is read at each start. A unit that a package brought is left
alone: this one goes before it.

systemd starts the daemon again when it dies. What machines it left then are
ended by the next start, as after any crash. At its end only the daemon gets the
signal, and drains; what is left after drain_timeout and 30 s is killed.`,
		Example: `  skep service install
  skep service install --listen 0.0.0.0:80 --domain fn.example.com
  skep service install --show`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.installService(cmd.Context(), dir, noStart, show)
		},
	}
	install.Flags().BoolVar(&noStart, "no-start", false, "only write the unit")
	install.Flags().BoolVar(&show, "show", false, "write the unit to stdout, and change nothing")
	c.allKeyFlags(install)
	uninstall := &cobra.Command{
		Use:     "uninstall",
		Short:   "end the daemon and remove its unit; functions and snapshots stay",
		Example: `  skep service uninstall`,
		Args:    nArgs(0, 0),
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.uninstallService(cmd.Context(), dir) },
	}
	status := &cobra.Command{
		Use:     "status",
		Short:   "show what systemd knows of the daemon",
		Example: `  skep service status`,
		Args:    nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !unitIn(dir) && !unitIn(packagedUnits) {
				return fmt.Errorf("there is no %s in %s: `skep service install` makes it", unitName, dir)
			}
			return c.systemctl(cmd.Context(), "status", "--no-pager", unitName)
		},
	}
	for _, v := range []*cobra.Command{install, uninstall, status} {
		v.Flags().StringVar(&dir, "unit-dir", "/etc/systemd/system", "directory of the unit")
		cmd.AddCommand(v)
	}
	return cmd
}

func (c *cli) installService(ctx context.Context, dir string, noStart, show bool) error {
	r, err := c.settings()
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	u, err := newUnit(program, r)
	if err != nil {
		return err
	}
	text, err := u.text()
	if err != nil {
		return err
	}
	if show {
		_, err := c.out.Write(text)
		return err
	}
	path := filepath.Join(dir, unitName)
	// Settings may tell more than everybody should know.
	if err := atomicfile.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("writing the unit: %w", err)
	}
	fmt.Fprintf(c.out, "wrote %s\n", path)
	if noStart {
		return nil
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", unitName}, {"restart", unitName}} {
		if err := c.systemctl(ctx, args...); err != nil {
			return err
		}
	}
	fmt.Fprintln(c.out, "the daemon runs, and will with each start of the host; `journalctl -u skep` shows its log")
	return nil
}

func (c *cli) uninstallService(ctx context.Context, dir string) error {
	if !unitIn(dir) {
		if unitIn(packagedUnits) {
			return fmt.Errorf("there is no %s in %s; the one in %s is the package's: `systemctl disable --now skep` ends its daemon, removing the package removes it", unitName, dir, packagedUnits)
		}
		return fmt.Errorf("there is no %s in %s", unitName, dir)
	}
	path := filepath.Join(dir, unitName)
	if err := c.systemctl(ctx, "disable", "--now", unitName); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing the unit: %w", err)
	}
	fmt.Fprintf(c.out, "removed %s\n", path)
	return c.systemctl(ctx, "daemon-reload")
}

// systemctl runs it, and shows what it says.
func (c *cli) systemctl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = c.out, c.err, c.environ
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("systemctl is not here: on a host without systemd, have its init system run `skep up`")
	}
	if err != nil {
		return fmt.Errorf("systemctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
