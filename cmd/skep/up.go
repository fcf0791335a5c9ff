package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/config"
)

func (c *cli) upCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "run the daemon, in the foreground",
		Long: `Run the daemon, in the foreground, until it is interrupted. Functions and
snapshots of earlier runs are there at once; what a daemon that was killed left
behind is cleaned up first.

SIGTERM or an interrupt drains it: new requests are refused, those under way
are answered within drain_timeout, every machine is ended. A second one ends it
at once. Every setting is a flag here, an environment variable (SKEP_LISTEN)
and a key of the configuration file; ` + "`skep config`" + ` explains them.`,
		Example: `  skep up
  skep up --listen 0.0.0.0:80 --domain fn.example.com
  skep up --data-dir /srv/skep --vmm qemu --log-format json`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := c.settings()
			if err != nil {
				return err
			}
			return c.up(cmd.Context(), r)
		},
	}
	c.allKeyFlags(cmd)
	return cmd
}

func (c *cli) up(ctx context.Context, r config.Result) error {
	log := newLogger(c.err, r.Config)
	for _, name := range r.Ignored {
		log.Warn("environment variable names no setting", "variable", name)
	}
	d, err := openDaemon(ctx, r, log)
	if err != nil {
		return err
	}
	if err := c.printAddresses(d); err != nil {
		return err
	}
	if err := notifySystemd(c.environ, "READY=1"); err != nil {
		log.Warn("the service manager does not know that the daemon is ready", "error", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = notifySystemd(c.environ, stopping(r.Config)) })
	defer stop()
	return d.serve(ctx)
}

// printAddresses says where the daemon is reached, on stdout.
func (c *cli) printAddresses(d *daemon) error {
	if c.json {
		return c.writeJSON(map[string]string{"gateway": d.gatewayAddr(), "socket": d.cfg.Socket})
	}
	_, err := fmt.Fprintf(c.out, "functions  http://%s/function/<name>/  and  %s\ncontrol    %s\n",
		d.gatewayAddr(), functionURL(d.cfg, d.gatewayAddr(), "<name>"), d.cfg.Socket)
	return err
}

// functionURL returns where the gateway answers for a function.
func functionURL(cfg config.Config, gateway, function string) string {
	host := function + "." + cfg.Domain
	if _, port, err := net.SplitHostPort(gateway); err == nil && port != "80" {
		host = net.JoinHostPort(host, port)
	}
	return "http://" + host + "/"
}

// newLogger makes the daemon's one logger.
func newLogger(w io.Writer, cfg config.Config) *slog.Logger {
	var level slog.Level
	// Validate has let through only names that slog knows.
	_ = level.UnmarshalText([]byte(cfg.LogLevel))
	o := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// asRoot refuses early, and in words, what would fail late.
func asRoot(what string) error {
	if os.Getuid() == 0 {
		return nil
	}
	return fmt.Errorf("%s needs root, for network namespaces, tap devices and userfaultfd: run it with sudo", what)
}
