package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/memory/replay"
	"github.com/skep-dev/skep/snapshot"
)

// replayFlags are what the flags of replay were set to.
type replayFlags struct {
	o         replay.Options
	synthetic replay.Synthetic
	memoryMiB int64
	warm      bool
	grid      bool
	out       string
}

func (c *cli) replayCmd() *cobra.Command {
	var r replayFlags
	cmd := &cobra.Command{
		Use:   "replay [SNAPSHOT]",
		Short: "measure the memory path alone, without a VM",
		Long: `Replay which pages a function touched after its restore, at native speed and
without a VM: a process maps memory of the guest's size, registers it as a VMM
would and touches the recorded pages in order, checking each. The same server
and policies fill its memory as a guest's. Under mmap it maps the memory file
itself, as Firecracker does; under mmap-huge with the advice to use huge pages,
as QEMU would. Beside them stand floors from the same run: a bare loop that copies the same runs, one that answers faults, and
the disk.

SNAPSHOT is the id of one with a trace (any restore under stream, reap, wsfile
or parallel records it), or its directory. Without one a snapshot is made up.`,
		Example: `  skep replay
  skep replay hello-20261123-081804-c335cbf9 --policy reap,stream -n 20
  skep replay --pages 2000 --runs-of-pages 900 --instances 16 --out samples.json
  taskset -c 0 skep replay --grid --policy wsfile,reap,stream -n 5     # on one processor`,
		Args: nArgs(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.replay(cmd.Context(), r, args) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringSliceVar(&r.o.Policies, "policy", nil, "memory policies (default: all)")
	f.IntVarP(&r.o.Runs, "runs", "n", 10, "runs of each policy, in turns")
	f.IntVar(&r.o.Touchers, "touchers", 1, "threads that touch")
	f.IntVar(&r.o.Instances, "instances", 1, "replays at once")
	f.BoolVar(&r.o.Pauses, "pauses", false, "touch when the trace says, not as fast as possible")
	f.BoolVar(&r.warm, "warm", false, "leave the files in the page cache")
	f.BoolVar(&r.grid, "grid", false, "with 1, 4 and 16 touchers, cold and warm, as fast as possible and not: all cases, without floors")
	f.BoolVar(&r.o.NoFloors, "no-floors", false, "measure the policies alone")
	f.IntVar(&r.synthetic.Pages, "pages", 8192, "made up: pages that are touched")
	f.IntVar(&r.synthetic.Runs, "runs-of-pages", 2624, "made up: runs that they lie in")
	f.Int64Var(&r.memoryMiB, "memory-mib", 512, "made up: guest memory")
	f.StringVarP(&r.out, "out", "o", "", "`FILE` for the report with raw samples, as JSON")
	c.keyFlags(f, "data_dir")
	return cmd
}

func (c *cli) replay(ctx context.Context, r replayFlags, args []string) error {
	if err := asRoot("skep replay"); err != nil {
		return err
	}
	src, cleanup, err := c.replaySource(r, args)
	if err != nil {
		return err
	}
	defer cleanup()
	r.o.Cold, r.o.Sources = !r.warm, []memory.Source{src}
	if r.grid {
		r.o.NoFloors = true
		reports, err := replay.Grid(ctx, r.o)
		if err != nil {
			return err
		}
		return c.replayed(r.out, reports, func() error { return replay.GridTable(c.out, reports) })
	}
	report, err := replay.Run(ctx, r.o)
	if err != nil {
		return err
	}
	return c.replayed(r.out, report, func() error { return report.Table(c.out) })
}

// replayed writes a report, with its raw samples to a file if there is one.
func (c *cli) replayed(out string, report any, table func() error) error {
	if out != "" {
		b, err := json.Marshal(report)
		if err != nil {
			return err
		}
		if err := os.WriteFile(out, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if c.json {
		return c.writeJSON(report)
	}
	return table()
}

// replaySource is the snapshot that is meant, or one that is made up.
func (c *cli) replaySource(r replayFlags, args []string) (memory.Source, func(), error) {
	if len(args) > 0 {
		src, err := c.snapshotSource(args[0])
		return src, func() {}, err
	}
	set, err := c.settings()
	if err != nil {
		return memory.Source{}, nil, err
	}
	// On the file system of snapshots where there is one: temporary files are
	// often in memory.
	parent := set.Config.DataDir
	if _, err := os.Stat(parent); err != nil {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "replay-")
	if err != nil {
		return memory.Source{}, nil, err
	}
	r.synthetic.MemorySize = r.memoryMiB << 20
	src, err := r.synthetic.Make(dir)
	if err != nil {
		os.RemoveAll(dir)
		return memory.Source{}, nil, err
	}
	return src, func() { os.RemoveAll(dir) }, nil
}

// snapshotSource reads a snapshot's manifest, from its directory or by its id.
func (c *cli) snapshotSource(arg string) (memory.Source, error) {
	dir := arg
	if snapshot.ValidID(arg) {
		set, err := c.settings()
		if err != nil {
			return memory.Source{}, err
		}
		dir = filepath.Join(set.Config.DataDir, "snapshots", arg)
	}
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return memory.Source{}, fmt.Errorf("reading the snapshot: %w; `skep snapshot ls` lists those that there are", err)
	}
	m, err := snapshot.Decode(b)
	if err != nil {
		return memory.Source{}, fmt.Errorf("snapshot %s: %w", arg, err)
	}
	return memory.Source{SnapshotID: m.ID, Path: filepath.Join(dir, snapshot.PartMemory), Size: m.Parts[snapshot.PartMemory].Size, Dir: filepath.Join(dir, "trace")}, nil
}
