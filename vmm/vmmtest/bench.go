package vmmtest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/vmm"
)

// Bench measures what a VMM itself takes: the pause for a snapshot, and the
// parts of a restore, with a guest of 256 MiB and warm caches. It reports
// medians, and logs every sample in milliseconds.
func Bench(b *testing.B, open func(testing.TB) vmm.VMM) {
	s := newSuite(b, open)
	s.config.MemoryMiB = 256
	s.state, s.memory, s.last = s.snapshot(b, s.config)
	info, err := s.vmm.Info(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%+v", info)
	b.Run("Snapshot", s.benchSnapshot)
	b.Run("RestoreFile", func(b *testing.B) { s.benchRestore(b, false) })
	b.Run("RestoreAttach", func(b *testing.B) { s.benchRestore(b, true) })
}

// samples are named series of durations.
type samples struct {
	names  []string
	values map[string][]time.Duration
}

func (s *samples) add(name string, d time.Duration) {
	if s.values == nil {
		s.values = map[string][]time.Duration{}
	}
	if _, ok := s.values[name]; !ok {
		s.names = append(s.names, name)
	}
	s.values[name] = append(s.values[name], d)
}

func (s *samples) report(b *testing.B) {
	b.ReportMetric(0, "ns/op") // the whole round, clean-up included, says nothing
	for _, name := range s.names {
		v := s.values[name]
		var all strings.Builder
		for _, d := range v {
			fmt.Fprintf(&all, " %.2f", ms(d))
		}
		b.Logf("%s:%s", name, all.String())
		slices.Sort(v)
		b.ReportMetric(ms(v[len(v)/2]), name+"-ms")
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (s *suite) benchSnapshot(b *testing.B) {
	var got samples
	for b.Loop() {
		ctx := s.context(b)
		i := s.boot(b, s.host(b), s.config)
		i.await(ctx, b, 1)
		dir := b.TempDir()
		began := time.Now()
		if err := i.Pause(ctx); err != nil {
			b.Fatal(err)
		}
		got.add("pause", time.Since(began))
		if err := i.Snapshot(ctx, filepath.Join(dir, "state"), filepath.Join(dir, "memory")); err != nil {
			b.Fatal(err)
		}
		got.add("pause+snapshot", time.Since(began))
		began = time.Now()
		i.end(b)
		got.add("kill", time.Since(began))
	}
	got.report(b)
}

func (s *suite) benchRestore(b *testing.B, attach bool) {
	var got samples
	for b.Loop() {
		ctx := s.context(b)
		memory := vmm.Memory{File: s.memory}
		p := servePages(b, s.memory)
		if attach {
			memory = vmm.Memory{Attach: p.attach}
		}
		began := time.Now()
		i := s.restore(b, s.host(b), s.config, s.state, memory)
		got.add("restore", time.Since(began))
		got.add("spawn", i.Timings().Spawn)
		got.add("load", i.Timings().Load)
		began = time.Now()
		if err := i.Resume(ctx); err != nil {
			b.Fatal(err)
		}
		got.add("resume", time.Since(began))
		i.end(b)
		p.close()
	}
	got.report(b)
}
