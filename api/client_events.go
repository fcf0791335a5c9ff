package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/tmaxmax/go-sse"
)

// maxEvent bounds one event, in bytes.
const maxEvent = 8 << 20

// Events calls f for each event that the query selects, as it happens. The first is an
// EventResync, unless the query goes on after an event without a gap. It returns f's
// error, an error when ctx ends, or io.ErrUnexpectedEOF when the daemon or the
// connection to it has ended.
func (c *Client) Events(ctx context.Context, q EventQuery, f func(Event) error) error {
	v := url.Values{}
	if q.Function != "" {
		v.Set("function", q.Function)
	}
	if q.After != "" {
		v.Set("after", q.After)
	}
	if len(q.Kinds) > 0 {
		var kinds []string
		for _, k := range q.Kinds {
			kinds = append(kinds, string(k))
		}
		v.Set("kind", strings.Join(kinds, ","))
	}
	path := "/v1/events"
	if len(v) > 0 {
		path += "?" + v.Encode()
	}
	resp, err := c.do(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for raw, err := range sse.Read(resp.Body, &sse.ReadConfig{MaxEventSize: maxEvent}) {
		if err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
		var ev Event
		if err := json.Unmarshal([]byte(raw.Data), &ev); err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
		if err := f(ev); err != nil {
			return err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return fmt.Errorf("reading events: %w", io.ErrUnexpectedEOF)
}
