package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/config"
)

// private is a daemon of this process's own, for verbs that need one for
// themselves: its own data directory, socket and port.
type private struct {
	d       *daemon
	client  *api.Client
	version api.Version
	dir     string // of the socket and running machines
	cancel  context.CancelFunc
	served  chan error
}

// startPrivate starts a daemon for the verb of that name. Its data directory is
// kept, so that images need to be made only once.
func (c *cli) startPrivate(ctx context.Context, name string) (*private, error) {
	if err := asRoot("skep " + name); err != nil {
		return nil, err
	}
	r, err := c.settings()
	if err != nil {
		return nil, err
	}
	cfg := &r.Config
	if _, err := c.guestKernel(ctx, *cfg); err != nil {
		return nil, err
	}
	cfg.DataDir = privateData(r, name)
	if r.From["shells"] == "default" {
		cfg.Shells = 0 // what a cold start takes is what such a verb is for
	}
	if r.From["log_level"] == "default" {
		cfg.LogLevel = "warn"
	}
	return c.openPrivate(ctx, r)
}

// privateData is the data directory of a verb's daemon.
func privateData(r config.Result, name string) string {
	if r.From["data_dir"] == "default" {
		return filepath.Join(r.CacheDir, name)
	}
	return r.Config.DataDir
}

// openPrivate starts a daemon with that configuration, at a socket and a port of its own.
func (c *cli) openPrivate(ctx context.Context, r config.Result) (*private, error) {
	dir, err := os.MkdirTemp("", "skep-")
	if err != nil {
		return nil, err
	}
	cfg := &r.Config
	cfg.RunDir, cfg.Socket = dir, filepath.Join(dir, "skep.sock")
	cfg.Listen, cfg.ControlListen, cfg.MetricsListen = "127.0.0.1:0", "", ""
	d, err := openDaemon(ctx, r, newLogger(c.err, *cfg))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	// The daemon outlives an interrupt by its clean-up, so that what the verb
	// deployed can still be removed.
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &private{d: d, dir: dir, cancel: cancel, served: make(chan error, 1)}
	go func() { p.served <- d.serve(serving) }()
	p.client = api.NewClient(api.ClientOptions{Socket: cfg.Socket})
	if p.version, err = p.client.Version(ctx); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

// stop ends the daemon and removes its run directory.
func (p *private) stop() error {
	p.client.Close()
	p.cancel()
	err := <-p.served
	return errors.Join(err, os.RemoveAll(p.dir))
}

// deployPrivate deploys a function that comes with skep, and returns a
// measurement of it and what removes it.
func (c *cli) deployPrivate(ctx context.Context, p *private, builtin string, f api.Function) (*measurement, func() error, error) {
	var err error
	if f.Image, err = c.localImage(ctx, "functions/"+builtin); err != nil {
		return nil, nil, err
	}
	bars := c.newProgress()
	defer bars.close()
	start := time.Now()
	if _, err = p.client.Deploy(ctx, f, bars.event); err != nil {
		return nil, nil, fmt.Errorf("deploying %s: %w", builtin, err)
	}
	bars.close()
	c.say("deployed %s in %.1f s: image, boot, snapshot", builtin, time.Since(start).Seconds())
	remove := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return p.client.RemoveFunction(ctx, f.Name)
	}
	return &measurement{d: p.d, client: p.client, function: f.Name, path: "/", cold: coldFiles}, remove, nil
}
