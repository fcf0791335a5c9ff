package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/tracing/tree"
)

// traceWidth is that of a picture, in pixels.
const traceWidth = 900

func (c *cli) traceCmd() *cobra.Command {
	var picture string
	cmd := &cobra.Command{
		Use:   "trace FILE [ID] | ID",
		Short: "show a trace as a waterfall: where the time of a start went",
		Long: `Show one trace as a waterfall: its spans below one another, each where it was.

FILE is what a collector has written (its file exporter, in JSON): of all that is
in there, ID names the trace, or the invocation, that is shown; without it the
traces are listed, unless there is but one. Spans are sent where the variable
OTEL_EXPORTER_OTLP_ENDPOINT of the daemon says, or otlp_endpoint of its
configuration and of shims', which docs/operations.md describes.

ID alone is that of an invocation, or of a container's start (skep records
--containers), of which the record's phases are shown; nothing has to have been
traced for that.

With -o the waterfall is drawn into a file, which ends in .svg or .png. With
--json the spans are written as a tree.`,
		Example: `  skep trace /var/log/otel/traces.json
  skep trace /var/log/otel/traces.json 4bf92f3577b34da6a3ce929d0e0e4736 -o start.svg
  skep trace 4f1d2c3b5a697887`,
		Args: nArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if e := filepath.Ext(picture); picture != "" && e != ".svg" && e != ".png" {
				return usagef(cmd, "-o is %q: want a file that ends in .svg or .png", picture)
			}
			t, err := c.findTrace(cmd.Context(), args)
			if err != nil || t == nil {
				return err
			}
			return c.showTrace(t, picture)
		},
	}
	cmd.Flags().StringVarP(&picture, "output", "o", "", "draw into `FILE`.svg or .png")
	return cmd
}

// findTrace returns the trace that is meant; nil: those that there are were listed.
func (c *cli) findTrace(ctx context.Context, args []string) (*tree.Trace, error) {
	f, err := os.Open(args[0])
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(args) == 1:
		return c.traceOfRecord(ctx, args[0])
	case err != nil:
		return nil, err
	}
	defer f.Close()
	all, err := tree.Read(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", args[0], err)
	}
	switch {
	case len(args) == 2:
		t, err := tree.Find(all, args[1])
		if err != nil {
			return nil, fmt.Errorf("%s has %d traces: %w", args[0], len(all), err)
		}
		return t, nil
	case len(all) == 0:
		return nil, fmt.Errorf("%s has no spans yet: a collector writes them some seconds after their end", args[0])
	case len(all) == 1:
		return all[0], nil
	}
	if c.json {
		return nil, c.writeJSON(all)
	}
	rows := [][]string{{"TRACE", "BEGAN", "TOOK ms", "SPANS", "FIRST SPAN"}}
	for _, t := range all {
		rows = append(rows, []string{t.ID, t.Began.UTC().Format(time.RFC3339), millis(t.Ended.Sub(t.Began)), fmt.Sprint(t.Count), printable(t.Name())})
	}
	return nil, table(c.out, rows)
}

// traceOfRecord makes a trace of the record with that id: the daemon's, or of a container's
// start.
func (c *cli) traceOfRecord(ctx context.Context, id string) (*tree.Trace, error) {
	q := api.InvocationQuery{ID: id, Limit: 1}
	list, err := c.daemonRecords(ctx, q)
	if len(list) == 0 {
		var other error
		if list, other = c.containerRecords(ctx, q); err != nil {
			err = errors.Join(err, other)
		}
	}
	switch {
	case len(list) > 0:
		return tree.OfRecord(list[0]), nil
	case err != nil:
		return nil, fmt.Errorf("%s is no file, and looking for a record with that id: %w", id, err)
	}
	return nil, fmt.Errorf("%s is neither a file nor the id of a record that is kept (skep records)", id)
}

func (c *cli) showTrace(t *tree.Trace, picture string) error {
	switch {
	case picture != "":
		draw := func(w io.Writer) error { return chart.File(w, traceChart(t), traceWidth) }
		if filepath.Ext(picture) == ".png" {
			draw = func(w io.Writer) error { return chart.PNG(w, traceChart(t), traceWidth) }
		}
		return atomicfile.Write(picture, 0o644, draw)
	case c.json:
		return c.writeJSON(t)
	}
	columns := 100
	if f, ok := c.out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			columns = w
		}
	}
	return t.Text(c.out, columns)
}
