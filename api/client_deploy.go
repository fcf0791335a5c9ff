package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// DeployLine is one line of the answer to a deploy. The last line has Function
// or Error; the lines before it have Event.
type DeployLine struct {
	Event    *DeployEvent `json:"event,omitempty"`
	Function *Function    `json:"function,omitempty"`
	Error    *Error       `json:"failure,omitempty"`
}

// Deploy makes f a function, or replaces the one of that name, and returns it as
// the daemon stored it. progress, which may be nil, is told how far it is.
func (c *Client) Deploy(ctx context.Context, f Function, progress func(DeployEvent)) (Function, error) {
	return c.change(ctx, http.MethodPut, f.Name, "", f, progress)
}

// Set changes of a function what the patch names, a value that marshals to a
// JSON merge patch of a Function, and keeps the rest. It returns the function as
// Deploy does.
func (c *Client) Set(ctx context.Context, name string, patch any, progress func(DeployEvent)) (Function, error) {
	return c.change(ctx, http.MethodPatch, name, "", patch, progress)
}

// Rollback puts an earlier revision of a function into force, 0 for the one
// before. It returns the function as Deploy does.
func (c *Client) Rollback(ctx context.Context, name string, revision int, progress func(DeployEvent)) (Function, error) {
	return c.change(ctx, http.MethodPost, name, "/rollback", RollbackRequest{Revision: revision}, progress)
}

// Revisions lists what is kept of a function's history, newest first.
func (c *Client) Revisions(ctx context.Context, name string) (rs []Revision, err error) {
	return rs, c.call(ctx, "GET", "/v1/functions/"+url.PathEscape(name)+"/revisions", nil, &rs)
}

// change sends what changes a function, and reads the stream that answers it.
func (c *Client) change(ctx context.Context, method, name, call string, body any, progress func(DeployEvent)) (Function, error) {
	b, err := marshal(body)
	if err != nil {
		return Function{}, err
	}
	resp, err := c.do(ctx, method, "/v1/functions/"+url.PathEscape(name)+call, bytes.NewReader(b))
	if err != nil {
		return Function{}, err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)); ; {
		var line DeployLine
		if err := d.Decode(&line); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return Function{}, fmt.Errorf("deploying %s: the daemon's answer broke off: %w", name, err)
		}
		switch {
		case line.Error != nil:
			return Function{}, line.Error
		case line.Function != nil:
			return *line.Function, nil
		case line.Event != nil && progress != nil:
			progress(*line.Event)
		}
	}
}
