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
	Status   int          `json:"status,omitempty"` // with Error: the HTTP status that fits it
}

// Deploy makes f a function, or changes the one of that name, and returns it as
// the daemon stored it. progress, which may be nil, is told how far it is.
func (c *Client) Deploy(ctx context.Context, f Function, progress func(DeployEvent)) (Function, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return Function{}, err
	}
	resp, err := c.do(ctx, http.MethodPut, "/v1/functions/"+url.PathEscape(f.Name), bytes.NewReader(b))
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
			return Function{}, fmt.Errorf("deploying %s: the daemon's answer broke off: %w", f.Name, err)
		}
		switch {
		case line.Error != nil:
			line.Error.Status = line.Status
			return Function{}, line.Error
		case line.Function != nil:
			return *line.Function, nil
		case line.Event != nil && progress != nil:
			progress(*line.Event)
		}
	}
}
