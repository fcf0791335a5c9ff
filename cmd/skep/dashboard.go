package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/control"
)

func (c *cli) dashboardCmd() *cobra.Command {
	var show bool
	var listen string
	cmd := &cobra.Command{
		Use:   "dashboard",
		Short: "open the page on which one sees the daemon at work",
		Long: `Open the page on which one sees functions, instances as they start and end, requests
with their phases, snapshots with their memory, and logs, live.

The link that is printed, and opened where there is a browser, is good once and for a
minute; the tab that it opened may use the control API for 12 hours. A daemon with
control_listen serves the page there. For one without, and from another machine, this
command does, at --listen, until it is interrupted; to see it from elsewhere, forward
the port (ssh -L 7088:127.0.0.1:7088 HOST).`,
		Example: `  skep dashboard
  skep dashboard --no-open
  skep dashboard --listen 127.0.0.1:7088`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			t, err := client.Ticket(cmd.Context())
			if err != nil {
				return err
			}
			if t.Address != "" && !cmd.Flags().Changed("listen") {
				return c.openPage(cmd.Context(), t, show)
			}
			r, err := c.settings()
			if err != nil {
				return err
			}
			return c.serveDashboard(cmd.Context(), r.Config, listen, show)
		},
	}
	cmd.Flags().BoolVar(&show, "no-open", false, "only print the link")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:7088", "`ADDRESS` of the page, where the daemon serves none")
	return cmd
}

// openPage prints the link that a ticket makes, and has a browser open it.
func (c *cli) openPage(ctx context.Context, t api.Ticket, show bool) error {
	// Behind the #, which a browser sends nowhere.
	link := "http://" + t.Address + "/#ticket=" + t.Ticket
	if c.json {
		return c.writeJSON(map[string]string{"url": link})
	}
	if _, err := fmt.Fprintln(c.out, link); err != nil || show {
		return err
	}
	if program, err := exec.LookPath("xdg-open"); err == nil {
		_ = exec.CommandContext(ctx, program, link).Run() // without a screen it fails, and the link is there
	}
	return nil
}

// serveDashboard serves the page before a daemon that does not, until ctx ends.
func (c *cli) serveDashboard(ctx context.Context, cfg config.Config, listen string, show bool) error {
	proxy, err := c.proxy(cfg)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return &usageError{msg: fmt.Sprintf("--listen is %q: want an address such as 127.0.0.1:7088", listen)}
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return &usageError{msg: fmt.Sprintf("--listen is %q: want an address of the loopback; to see the page from elsewhere, forward its port", listen)}
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listening for the page: %w; another address can be set with --listen", err)
	}
	sessions := control.NewSessions()
	t := sessions.Ticket()
	// Nobody has this token: sessions alone are let in.
	guarded, err := control.RequireToken(control.NewSessions().Ticket().Ticket, sessions, proxy)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	t.Address = l.Addr().String()
	if err := c.openPage(ctx, t, show); err != nil {
		return errors.Join(err, l.Close())
	}
	return control.Serve(ctx, l, control.Page(sessions, guarded), 100*time.Millisecond)
}

// proxy passes requests on to the daemon, with what that wants to see of who asks.
func (c *cli) proxy(cfg config.Config) (http.Handler, error) {
	token, err := c.token(cfg)
	if err != nil {
		return nil, err
	}
	to := &url.URL{Scheme: "http", Host: "skep"}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		if cfg.Address != "" {
			return d.DialContext(ctx, "tcp", cfg.Address)
		}
		return d.DialContext(ctx, "unix", cfg.Socket)
	}}
	return &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			if token != "" {
				r.Out.Header.Set("Authorization", "Bearer "+token)
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			control.WriteError(w, &api.Error{Status: http.StatusBadGateway, Message: fmt.Sprintf("no daemon answers: %v", err), Hint: "`skep up` starts it"})
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}, nil
}
