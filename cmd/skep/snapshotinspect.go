package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/memory/pagemap"
	"github.com/skep-dev/skep/snapshot"
)

func (c *cli) snapshotInspectCmd() *cobra.Command {
	var picture string
	cmd := &cobra.Command{
		Use:   "inspect ID|FUNCTION",
		Short: "show a snapshot: what made it, and which of its memory guests use",
		Long: `Show a snapshot, or a function's newest: what made it, the trace of pages that
a guest touches, and the working set that is prefetched. --json has all of the
manifest, and the same under "guest_memory".

--map draws guest memory, a cell for each page, by what is known of it.`,
		Example: `  skep snapshot inspect hello
  skep snapshot inspect hello --map hello.svg
  skep snapshot inspect ID --json | jq .guest_memory.trace.summary`,
		Args:              nArgs(1, 1),
		ValidArgsFunction: c.complete(1, snapshotsAndFunctions),
		RunE: func(cmd *cobra.Command, args []string) error {
			if picture != "" && drawing(picture) == nil {
				return usagef(cmd, "--map is %q: want a file that ends in .svg or .png", picture)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			return c.inspectSnapshot(cmd.Context(), client, args[0], picture)
		},
	}
	cmd.Flags().StringVar(&picture, "map", "", "draw a map of guest memory into `FILE`.svg or .png")
	return cmd
}

func snapshotsAndFunctions(ctx context.Context, client *api.Client) ([]string, error) {
	names, err := functionNames(ctx, client)
	ids, err2 := snapshotIDs(ctx, client)
	return append(names, ids...), errors.Join(err, err2)
}

func (c *cli) inspectSnapshot(ctx context.Context, client *api.Client, arg, picture string) error {
	id, err := findSnapshot(ctx, client, arg)
	if err != nil {
		return err
	}
	raw, err := client.Snapshot(ctx, id)
	if err != nil {
		return err
	}
	var m snapshot.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("reading the manifest of snapshot %s: %w", id, err)
	}
	mem, err := client.SnapshotMemory(ctx, id, picture != "")
	if err != nil {
		return err
	}
	if picture != "" {
		if err := drawMap(picture, mem, m.Created); err != nil {
			return fmt.Errorf("drawing the map of snapshot %s: %w", id, err)
		}
		c.say("wrote %s", picture)
	}
	if c.json {
		mem.Map = nil // it was asked for to be drawn
		return c.writeJSON(struct {
			snapshot.Manifest
			Memory api.SnapshotMemory `json:"guest_memory"`
		}{m, mem})
	}
	return c.printSnapshot(m, mem)
}

// findSnapshot is the id that is meant: a snapshot's own, or that of a
// function's newest snapshot, of those that can be used if there are any.
func findSnapshot(ctx context.Context, client *api.Client, arg string) (string, error) {
	all, err := client.Snapshots(ctx, "")
	if err != nil {
		return "", err
	}
	found := ""
	for _, s := range slices.Backward(all) { // the newest last
		if s.ID == arg {
			return arg, nil
		}
		if s.Function == arg && s.Usable {
			found = s.ID
		}
	}
	if found != "" {
		return found, nil
	}
	if i := slices.IndexFunc(all, func(s api.Snapshot) bool { return s.Function == arg }); i >= 0 {
		return all[i].ID, nil
	}
	return "", &api.Error{
		Status:  http.StatusNotFound,
		Message: fmt.Sprintf("%q: no snapshot has this id, and no function of this name has a snapshot", arg),
		Hint:    "`skep snapshot ls` lists the snapshots that exist",
	}
}

func (c *cli) printSnapshot(m snapshot.Manifest, mem api.SnapshotMemory) error {
	rows := [][]string{
		{"snapshot", m.ID},
		{"function", m.Function},
		{"created", fmt.Sprintf("%s, %s", m.Created.Format(time.RFC3339), m.Reason)},
		{"vmm", strings.TrimSpace(fmt.Sprintf("%s %s %s", m.VMM.Name, m.VMM.Version, m.VMM.Accel))},
		{"image", dash(m.ImageDigest)},
		{"guest", fmt.Sprintf("%d vcpus, %d MiB, %s of it not holes", m.VCPUs, m.MemoryMiB, size(mem.DataPages*pageSize))},
		{"memory policy", mem.Policy},
	}
	if mem.Problem != "" {
		rows = append(rows, []string{"problem", mem.Problem})
	}
	if err := table(c.out, rows); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	if err := table(c.out, pageRows(mem)); err != nil {
		return err
	}
	return c.printRemarks(mem)
}

const pageSize = 4096

// pageRows puts trace and working set side by side.
func pageRows(mem api.SnapshotMemory) [][]string {
	rows := [][]string{{"", "TRACE", "WORKING SET"}}
	files := []api.PageFile{mem.Trace, mem.WorkingSet}
	add := func(name string, value func(f api.PageFile, s *api.PageSummary) string) {
		row := []string{name}
		for _, f := range files {
			if f.Summary == nil {
				row = append(row, "-")
			} else {
				row = append(row, dash(value(f, f.Summary)))
			}
		}
		rows = append(rows, row)
	}
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	add("pages", func(_ api.PageFile, s *api.PageSummary) string {
		return fmt.Sprintf("%d (%.1f%% of the guest)", s.Pages, 100*s.GuestShare)
	})
	add("runs", func(_ api.PageFile, s *api.PageSummary) string { return strconv.Itoa(s.Runs) })
	add("pages per run", func(_ api.PageFile, s *api.PageSummary) string {
		return fmt.Sprintf("%.2f, at most %d", s.Contiguity, s.LongestRun)
	})
	add("zero pages", func(_ api.PageFile, s *api.PageSummary) string {
		return fmt.Sprintf("%d (%.1f%%)", s.ZeroPages, 100*s.ZeroShare)
	})
	add("contents", func(_ api.PageFile, s *api.PageSummary) string { return size(s.Bytes) })
	add("file", func(f api.PageFile, _ *api.PageSummary) string {
		return fmt.Sprintf("%s, %s ago", size(f.FileBytes), ago(f.Recorded))
	})
	files = files[:1]
	add("first touched by", func(_ api.PageFile, s *api.PageSummary) string {
		return fmt.Sprintf("%d reads, %d writes", s.Reads, s.Writes)
	})
	add("before resume", func(_ api.PageFile, s *api.PageSummary) string { return count(s.BeforeResume) + " pages" })
	add("first touch", func(_ api.PageFile, s *api.PageSummary) string { return millis(s.First) + " ms after resume" })
	add("last touch", func(_ api.PageFile, s *api.PageSummary) string { return millis(s.Span) + " ms after resume" })
	return rows
}

// printRemarks says what is missing, what was refused, and what restores showed.
func (c *cli) printRemarks(mem api.SnapshotMemory) error {
	var lines []string
	for _, f := range []struct {
		name string
		api.PageFile
	}{{"trace", mem.Trace}, {"working set", mem.WorkingSet}} {
		switch {
		case f.Problem != "":
			lines = append(lines, f.name+" refused: "+f.Problem+"; it will be recorded anew")
		case f.Summary == nil:
			lines = append(lines, "no "+f.name+" yet: a restore under stream, reap, wsfile or parallel records it")
		}
	}
	if t := mem.Trial; t.Problem != "" {
		lines = append(lines, "what a trial touched is refused: "+t.Problem)
	} else if t.Summary != nil && mem.WorkingSet.Summary == nil {
		lines = append(lines, fmt.Sprintf("until then stream prefetches the %d pages that a trial touched when it was deployed", t.Summary.Pages))
	}
	l := mem.Learned
	if l.Problem != "" {
		lines = append(lines, "what restores have shown is refused: "+l.Problem+"; it will be learned anew")
	}
	if l.Restores > 0 {
		lines = append(lines, fmt.Sprintf("%d restores observed: %d pages missed by the last eight, %d of the working set held back and not touched", l.Restores, l.Missed, l.Wasted))
	}
	if l.Without > 0 {
		lines = append(lines, fmt.Sprintf("prefetching does not pay: the next %d starts are made without", l.Without))
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(c.out, "\n%s\n", strings.Join(lines, "\n"))
	return err
}

// drawing is what draws into a file of that name; nil if nothing does.
func drawing(file string) func(*pagemap.Map, *bytes.Buffer) error {
	switch strings.ToLower(filepath.Ext(file)) {
	case ".svg":
		return func(m *pagemap.Map, b *bytes.Buffer) error { return m.SVG(b) }
	case ".png":
		return func(m *pagemap.Map, b *bytes.Buffer) error { return m.PNG(b) }
	}
	return nil
}

func drawMap(file string, mem api.SnapshotMemory, created time.Time) error {
	m := &pagemap.Map{
		Title:    "Guest memory of " + mem.Function,
		Subtitle: []string{fmt.Sprintf("snapshot %s, made %s, memory policy %s", mem.Snapshot, created.UTC().Format("2006-01-02 15:04 UTC"), mem.Policy)},
		Pages:    mem.MemoryBytes / pageSize,
	}
	if mem.Map != nil {
		m.Known = *mem.Map
	}
	if s := mem.Trace.Summary; s != nil {
		m.Notes = append(m.Notes, fmt.Sprintf("Trace: %d pages in %d runs, %.2f pages each.", s.Pages, s.Runs, s.Contiguity))
	}
	if s := mem.WorkingSet.Summary; s != nil {
		m.Notes = append(m.Notes, fmt.Sprintf("Working set: %.1f MiB, %.1f%% of memory.", float64(s.Bytes)/(1<<20), 100*s.GuestShare))
	}
	if n := mem.Learned.Restores; n > 0 {
		m.Notes = append(m.Notes, fmt.Sprintf("Missed and wasted: seen in %d restores.", n))
	}
	var b bytes.Buffer
	if err := drawing(file)(m, &b); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}
