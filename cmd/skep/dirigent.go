package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/load/dirigent"
)

func (c *cli) dirigentCmd() *cobra.Command {
	var listen, image string
	var keep bool
	cmd := &cobra.Command{
		Use:   "dirigent",
		Short: "take functions from invitro's loader, which then calls them here",
		Long: `Answer what invitro's loader (github.com/vhive-serverless/invitro) asks of Dirigent's
control plane, until it is interrupted: it registers its trace's functions here, which
are deployed, and calls them at skep's gateway. In its configuration:

  "Platform": "Dirigent", "InvokeProtocol": "http1"     (or http2)
  "DirigentConfigPath": a file with "DirigentControlPlaneIP": "127.0.0.1:9091"

--image has another image in the place of all that the loader names: functions/hello
runs for as long as each call says, as the image of invitro's example does. Whoever
reaches --listen may deploy, so it is an address of the loopback. Functions are removed
at the end that were not there before.`,
		Example: `  skep dirigent --image functions/hello
  loader --config config.json                          # of invitro, elsewhere`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			host, _, err := net.SplitHostPort(listen)
			if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
				return usagef(cmd, "--listen is %q: want an address of the loopback, such as 127.0.0.1:9091", listen)
			}
			return c.dirigent(cmd.Context(), listen, image, keep)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&listen, "listen", "127.0.0.1:9091", "`ADDRESS` that the loader registers functions at")
	f.StringVar(&image, "image", "", "`IMAGE` of all functions (default: what the loader names)")
	f.BoolVar(&keep, "keep", false, "leave the functions deployed at the end")
	return cmd
}

func (c *cli) dirigent(ctx context.Context, listen, image string, keep bool) (err error) {
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	version, err := client.Version(ctx)
	if err != nil {
		return err
	}
	before, err := client.Functions(ctx)
	if err != nil {
		return err
	}
	if image != "" {
		if image, err = c.localImage(ctx, image); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listening for registrations: %w; another address can be set with --listen", err)
	}
	var mu sync.Mutex // guards made
	var made []string
	h := &dirigent.Handler{
		Gateway: reachable(version.Gateway),
		Deploy: func(ctx context.Context, f api.Function) error {
			if image != "" {
				f.Image = image
			}
			f.ReadyTimeout = api.Duration(5 * time.Minute)
			begun := time.Now()
			mu.Lock()
			if !slices.ContainsFunc(before, func(s api.FunctionStatus) bool { return s.Name == f.Name }) {
				made = append(made, f.Name)
			}
			mu.Unlock()
			if _, err := client.Deploy(ctx, f, nil); err != nil {
				c.say("%s was not deployed: %v", f.Name, err)
				return err
			}
			c.say("deployed %s in %v", f.Name, time.Since(begun).Round(time.Millisecond))
			return nil
		},
		There: func(ctx context.Context, name string) (bool, error) {
			_, err := client.Function(ctx, name)
			var e *api.Error
			if errors.As(err, &e) && e.Status == http.StatusNotFound {
				return false, nil
			}
			return err == nil, err
		},
	}
	c.say("registrations at %s, calls at %s", l.Addr(), h.Gateway)
	err = control.Serve(ctx, l, h, time.Minute)
	if keep {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	mu.Lock()
	defer mu.Unlock()
	for _, name := range made {
		var e *api.Error
		if removed := client.RemoveFunction(ctx, name); removed != nil && !(errors.As(removed, &e) && e.Status == http.StatusNotFound) {
			err = errors.Join(err, fmt.Errorf("removing %s: %w", name, removed))
		}
	}
	return err
}

// reachable is an address of this host at which what listens at address is reached.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}
