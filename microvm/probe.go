package microvm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"github.com/skep-dev/skep/internal/cause"
)

// probeAgent names probes to the server, which may want to tell them from
// requests.
const probeAgent = "skep-probe"

// Answers asks the server for a sign of life, the way that a client's
// request goes, until it gives one or ctx ends: a 2xx at its ready path. Without
// a path any answer will do, to a request that asks for nothing: OPTIONS * is
// HTTP's own ping, and HTTP/2 has one of its own. Who answers is alive.
func (v *VM) Answers(ctx context.Context) error {
	pause := 10 * time.Millisecond
	for {
		err := v.Ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return cause.Because(ctx, err)
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		}
	}
}

// Ask is Answers, asked once.
func (v *VM) Ask(ctx context.Context) error {
	err := v.askOver(ctx)
	if err != nil && ctx.Err() == nil && !errors.Is(err, syscall.ECONNREFUSED) && v.spec.Server.ReadyPath == "" {
		if v.ping(ctx) == nil {
			return nil
		}
	}
	return err
}

// ping asks with HTTP/2's own ping, with prior knowledge: a server of gRPC has nothing
// else, and may reset the stream of a request that is none of its calls, which clients
// then send again and again.
func (v *VM) ping(ctx context.Context) error {
	conn, err := v.conns.open(ctx, v.spec.Server.Port)
	if err != nil {
		return err
	}
	defer conn.Close()
	//lint:ignore SA1019 net/http has no ping
	c, err := (&http2.Transport{}).NewClientConn(conn)
	if err != nil {
		return err
	}
	return c.Ping(ctx)
}

func (v *VM) askOver(ctx context.Context) error {
	s := &v.spec.Server
	req := &http.Request{Method: http.MethodOptions, URL: &url.URL{Scheme: "http", Host: s.Name, Opaque: "*"}}
	if s.ReadyPath != "" {
		u, err := url.Parse("http://" + s.Name + "/" + strings.TrimPrefix(s.ReadyPath, "/"))
		if err != nil {
			return err
		}
		req.Method, req.URL = http.MethodGet, u
	}
	req.Header = http.Header{"User-Agent": {probeAgent}}
	req.Close = true // the next connection may be the only one that the server takes
	resp, err := v.Transport(false).RoundTrip(req.WithContext(ctx))
	if err != nil {
		return err
	}
	resp.Body.Close()
	if s.ReadyPath != "" && resp.StatusCode/100 != 2 {
		return fmt.Errorf("GET %s is answered with %s", s.ReadyPath, resp.Status)
	}
	return nil
}
