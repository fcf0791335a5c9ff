package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

func (c *cli) eventsCmd() *cobra.Command {
	var q api.EventQuery
	var kinds []string
	var limit int
	cmd := &cobra.Command{
		Use:   "events [FUNCTION]",
		Short: "show what happens, while it happens",
		Long: `Show what happens in the daemon, of one function or of all, until interrupted:
instances as they start, work, idle and end, the phases of each start, the records
of invocations, deployments, snapshots. With --json each line is an event.

The first event is a resync: what came before it is not told. It comes again when
events were lost, which happens only to who reads slower than they come; each
event has an id, and --after ID goes on there. The daemon remembers the last 4096.`,
		Example: `  skep events
  skep events hello --kind instance,phase
  skep events --json --kind invocation | jq -c .invocation.phases
  skep events hello --kind invocation -n 1`,
		Args:              nArgs(0, 1),
		ValidArgsFunction: c.complete(1, functionNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				q.Function = args[0]
			}
			for _, k := range kinds {
				q.Kinds = append(q.Kinds, api.EventKind(k))
			}
			if err := q.Validate(); err != nil {
				return &usageError{msg: err.Error()}
			}
			if limit < 0 {
				return usagef(cmd, "--limit is %d: want 0 or more", limit)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			defer client.Close()
			seen := 0
			err = client.Events(cmd.Context(), q, func(ev api.Event) error {
				if err := c.printEvent(ev); err != nil {
					return err
				}
				if ev.Kind != api.EventResync {
					seen++
				}
				if limit > 0 && seen == limit {
					return errEnough
				}
				return nil
			})
			if errors.Is(err, errEnough) || cmd.Context().Err() != nil {
				return nil // interrupting is how one ends it
			}
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringSliceVar(&kinds, "kind", nil, "only of these kinds: instance, phase, invocation, deploy, function, function_removed, snapshot, snapshot_removed")
	f.StringVar(&q.After, "after", "", "those after the event with this id")
	f.IntVarP(&limit, "limit", "n", 0, "end after `N` events, resyncs not counted (0: never)")
	return cmd
}

var errEnough = errors.New("as many events as were asked for")

func (c *cli) printEvent(ev api.Event) error {
	if c.json {
		return json.NewEncoder(c.out).Encode(ev)
	}
	_, err := fmt.Fprintf(c.out, "%s  %-16s  %-20s  %s\n", ev.Time.Local().Format("15:04:05.000"), ev.Kind, dash(ev.Function), printable(eventText(ev)))
	return err
}

// eventText says an event in a line.
func eventText(ev api.Event) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch {
	case ev.Instance != nil:
		add("%s %s", ev.Instance.ID, ev.Instance.State)
		if ev.Instance.State == api.InstanceIdle && ev.Instance.Requests == 0 {
			add("after a %s", ev.Instance.Start)
		}
	case ev.Phase != nil:
		add("%s %s took %s ms", ev.Phase.Instance, ev.Phase.Name, millis(ev.Phase.Took))
	case ev.Invocation != nil:
		i := ev.Invocation
		add("%s %s start, status %s, %s ms", i.ID, dash(string(i.Start)), strconv.Itoa(i.Status), millis(i.Phases.Total))
		if i.Failure != "" {
			add("%s: %s", i.Failure, i.Error)
		}
	case ev.Deploy != nil:
		add("%s", deployText(*ev.Deploy))
	case ev.Snapshot != nil:
		add("%s", ev.Snapshot.ID)
	case ev.Settings != nil:
		add("revision %d", ev.Settings.Revision)
	}
	if ev.Reason != "" {
		add("%s", ev.Reason)
	}
	return strings.Join(parts, ", ")
}

func deployText(e api.DeployEvent) string {
	s := string(e.Stage)
	if e.Detail != "" {
		s += " " + e.Detail
	}
	switch {
	case e.Error != "":
		s += ": " + e.Error
	case e.Took > 0:
		s += fmt.Sprintf(", %v", e.Took.Round(time.Millisecond))
	case e.Total > 0:
		s += fmt.Sprintf(" %s of %s", size(e.Done), size(e.Total))
	}
	return s
}
