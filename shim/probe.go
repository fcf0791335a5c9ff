package shim

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/internal/cause"
)

// probe says how it is found out whether a container is ready: its command succeeds;
// or its server answers at a path; or it takes a connection.
type probe struct {
	Port    int
	Path    string
	Command []string
}

func (p probe) none() bool { return p.Port == 0 && len(p.Command) == 0 }

// asks says that it is the container that answers. Where only its port is known that
// is its guest's kernel, which says of a restored one what it said of the snapshot.
func (p probe) asks() bool { return p.Path != "" || len(p.Command) > 0 }

// prober asks a container.
type prober struct {
	probe
	process guest.Process // the container's own, as whom the command runs
	dial    func(ctx context.Context, port int) (net.Conn, error)
	asked   int
}

// askLimit bounds one question.
const askLimit = 10 * time.Second

// until asks until the container is ready, or ctx ends. The pauses grow: many servers
// are there at once, and some take minutes.
func (p *prober) until(ctx context.Context) error {
	pause, most := 2*time.Millisecond, 50*time.Millisecond
	if len(p.Command) > 0 {
		pause, most = 50*time.Millisecond, time.Second
	}
	for {
		err := p.ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pause):
			pause = min(pause*3/2, most)
		}
	}
}

func (p *prober) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	switch {
	case len(p.Command) > 0:
		return p.run(ctx)
	case p.Path != "":
		return p.get(ctx)
	}
	conn, err := p.dial(ctx, p.Port)
	if err != nil {
		return cause.Because(ctx, err)
	}
	return conn.Close()
}

// get asks as a kubelet does: any answer below 400 will do, and no redirection is
// followed.
func (p *prober) get(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://localhost:%d%s", p.Port, p.Path), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "skep-probe")
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx, p.Port) }}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return cause.Because(ctx, err)
	}
	resp.Body.Close()
	if resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s is answered with %s", p.Path, resp.Status)
	}
	return nil
}

// run runs the command as the container's process would.
func (p *prober) run(ctx context.Context) error {
	p.asked++
	process := p.process
	process.ID, process.Argv = fmt.Sprint("ready-", p.asked), p.Command
	process.Init, process.Keep, process.Stdin, process.TTY = false, false, false, false // of the container's own alone
	conn, err := p.dial(ctx, guest.ExecPort)
	if err != nil {
		return cause.Because(ctx, err)
	}
	r, err := guest.Exec(ctx, conn, process, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	defer r.Close()
	exit, err := r.Wait(ctx)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("its command %q ends with %d", p.Command, exit.Code)
	}
	return err
}
