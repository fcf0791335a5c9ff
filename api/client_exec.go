package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
)

// ExecProtocol is what a connection to an instance is upgraded to: the frames of
// package guest, for one process or one copy of files.
const ExecProtocol = "skep-exec/1"

var instanceRE = regexp.MustCompile(`^i-[0-9a-f]{16}$`)

// Exec connects to where further processes start, and files are copied, in an
// instance: the one of that id, or the one of the function of that name that was
// used last. Package guest speaks over the connection: guest.Exec, guest.CopyIn,
// guest.CopyOut. ctx is for its start only.
func (c *Client) Exec(ctx context.Context, target string) (io.ReadWriteCloser, error) {
	path := "/v1/functions/" + url.PathEscape(target) + "/exec"
	if instanceRE.MatchString(target) {
		path = "/v1/instances/" + target + "/exec"
	}
	// The connection outlives ctx, which the transport would end it with.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	conn, err := c.upgrade(own, path)
	if !stop() && err == nil {
		conn.Close()
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &upgraded{conn, cancel}, nil
}

func (c *Client) upgrade(ctx context.Context, path string) (io.ReadWriteCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", ExecProtocol)
	resp, err := c.send(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		if resp.StatusCode/100 == 2 {
			return nil, fmt.Errorf("the daemon answers %s: want it to switch protocols", resp.Status)
		}
		return nil, readError(resp)
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		return nil, errors.Join(errors.New("the daemon's answer cannot be written to"), resp.Body.Close())
	}
	return conn, nil
}

// upgraded ends its request's context with the connection.
type upgraded struct {
	io.ReadWriteCloser
	cancel context.CancelFunc
}

func (u *upgraded) Close() error {
	defer u.cancel()
	return u.ReadWriteCloser.Close()
}
