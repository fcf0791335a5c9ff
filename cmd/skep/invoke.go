package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

// invokeFlags are what the invoke verb's flags were set to.
type invokeFlags struct {
	method, path, policy, start string
	data                        string
	headers                     []string
	n, concurrency              int
	verbose                     bool
}

func (c *cli) invokeCmd() *cobra.Command {
	var o invokeFlags
	cmd := &cobra.Command{
		Use:   "invoke NAME",
		Short: "call a function, and see where the time goes",
		Long: `Call a function and write what it answers to stdout.

-v shows every phase of the invocation and what guest memory cost. -n calls
many times and shows medians by start kind instead of the answers.`,
		Example: `  skep invoke hello
  skep invoke hello -d '{"size": 3}' --path /resize
  tar c . | skep invoke pack -d -
  skep invoke hello -v --start restore --policy mmap
  skep invoke hello -n 100 -c 8
  skep invoke hello -n 20 --start restore --json | jq .phases.total_us`,
		Args:              nArgs(1, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd); err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			if o.n == 1 {
				return c.invokeOnce(cmd.Context(), client, args[0], &o)
			}
			return c.invokeMany(cmd.Context(), client, args[0], &o)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&o.data, "data", "d", "", "request body: text, `@FILE`, or - for stdin")
	f.StringVarP(&o.method, "method", "X", "", "HTTP `METHOD` (default GET, with -d POST)")
	f.StringVar(&o.path, "path", "/", "path and query on the function's server")
	f.StringArrayVarP(&o.headers, "header", "H", nil, "`NAME: VALUE` of the request; may be repeated")
	f.StringVar(&o.start, "start", "", "kind of start: boot, restore or warm (default: as it comes), refused where it cannot be had")
	f.StringVar(&o.policy, "policy", "", "memory policy of the restore, for this call")
	f.IntVarP(&o.n, "count", "n", 1, "call `N` times and summarise")
	f.IntVarP(&o.concurrency, "concurrency", "c", 1, "of them, so many at once")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show phases and faults, on stderr")
	return cmd
}

func (o *invokeFlags) check(cmd *cobra.Command) error {
	kinds := []string{"", string(api.StartBoot), string(api.StartRestore), string(api.StartWarm)}
	switch {
	case !slices.Contains(kinds, o.start):
		return usagef(cmd, "--start is %q: want boot, restore or warm", o.start)
	case o.n < 1 || o.concurrency < 1:
		return usagef(cmd, "-n and -c want 1 or more")
	case o.n > 1 && o.data == "-":
		return usagef(cmd, "-d - can be sent only once: put it into a file for -n %d", o.n)
	}
	return nil
}

// request makes one request; its body is to be closed by the caller.
func (o *invokeFlags) request(function string, in io.Reader) (api.InvokeRequest, error) {
	r := api.InvokeRequest{
		Function: function, Method: o.method, Path: o.path, Start: api.StartKind(o.start), Policy: o.policy, Header: http.Header{},
	}
	for _, h := range o.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return r, &usageError{msg: fmt.Sprintf("--header %q: want NAME: VALUE", h)}
		}
		r.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	switch {
	case o.data == "-":
		r.Body = in
	case strings.HasPrefix(o.data, "@"):
		f, err := os.Open(o.data[1:])
		if err != nil {
			return r, err
		}
		r.Body = f
	case o.data != "":
		r.Body = strings.NewReader(o.data)
	}
	return r, nil
}

// invokeOnce streams the answer to stdout, or with --json writes it with its record.
func (c *cli) invokeOnce(ctx context.Context, client *api.Client, function string, o *invokeFlags) error {
	req, err := o.request(function, c.in)
	if err != nil {
		return err
	}
	resp, err := client.Invoke(ctx, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := skepError(function, resp); err != nil {
		return err
	}
	var body bytes.Buffer
	var out io.Writer = c.out
	if c.json {
		out = &body
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("reading the answer of %s: %w", function, err)
	}
	if c.json {
		err = c.invocationJSON(ctx, client, resp, body.Bytes())
	} else if o.verbose {
		err = c.explain(ctx, client, resp)
	}
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return &functionError{function: function, status: resp.StatusCode}
	}
	return nil
}

func (c *cli) invocationJSON(ctx context.Context, client *api.Client, resp *http.Response, body []byte) error {
	rec, err := record(ctx, client, resp)
	if err != nil {
		return err
	}
	out := struct {
		Status int             `json:"status"`
		Header http.Header     `json:"header"`
		Body   string          `json:"body,omitempty"`
		Bytes  []byte          `json:"body_base64,omitempty"` // when it is not text
		Record *api.Invocation `json:"record"`
	}{Status: resp.StatusCode, Header: resp.Header, Record: &rec}
	if utf8.Valid(body) {
		out.Body = string(body)
	} else {
		out.Bytes = body
	}
	return c.writeJSON(out)
}

// record returns the record of an answer. The daemon stores it after the last
// byte has left, so it may be there only a moment later.
func record(ctx context.Context, client *api.Client, resp *http.Response) (api.Invocation, error) {
	id := resp.Header.Get(api.HeaderInvocation)
	if id == "" {
		return api.Invocation{}, errors.New("the daemon's answer names no record: client and daemon may be of different versions")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for wait := 2 * time.Millisecond; ; wait *= 2 {
		rec, err := client.Invocation(ctx, id)
		var e *api.Error
		if err == nil || !errors.As(err, &e) || e.Status != http.StatusNotFound {
			return rec, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return rec, fmt.Errorf("invocation %s left no record: %w", id, err)
		}
	}
}

// invokeMany calls n times and summarises by start kind.
func (c *cli) invokeMany(ctx context.Context, client *api.Client, function string, o *invokeFlags) error {
	var (
		mu     sync.Mutex // guards recs and errs
		recs   []api.Invocation
		errs   []error
		wg     sync.WaitGroup
		calls  = make(chan struct{}, o.n)
		failed *functionError
	)
	for range o.n {
		calls <- struct{}{}
	}
	close(calls)
	start := time.Now()
	for range min(o.concurrency, o.n) {
		wg.Go(func() {
			for range calls {
				rec, err := c.invokeForRecord(ctx, client, function, o)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					recs = append(recs, rec)
				}
				if rec.Status != 0 && rec.Status/100 != 2 {
					failed = &functionError{function: function, status: rec.Status}
				}
				stop := len(errs) > 0
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := c.summarise(recs, time.Since(start)); err != nil {
		return err
	}
	if len(errs) > 0 {
		return errs[0]
	}
	if failed != nil {
		return failed
	}
	return nil
}

func (c *cli) invokeForRecord(ctx context.Context, client *api.Client, function string, o *invokeFlags) (api.Invocation, error) {
	req, err := o.request(function, nil)
	if err != nil {
		return api.Invocation{}, err
	}
	resp, err := client.Invoke(ctx, req)
	if err != nil {
		return api.Invocation{}, err
	}
	defer resp.Body.Close()
	if err := skepError(function, resp); err != nil {
		return api.Invocation{}, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return api.Invocation{}, fmt.Errorf("reading the answer of %s: %w", function, err)
	}
	return record(ctx, client, resp)
}
