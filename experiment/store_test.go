package experiment

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

func sampleOf(ms float64) Sample {
	return Sample{Time: time.Unix(1, 0).UTC(), Record: &api.Invocation{ID: "x", Start: api.StartRestore,
		Phases: api.Phases{Spawn: time.Millisecond, Total: time.Duration(ms * float64(time.Millisecond))},
		Memory: &api.MemoryStats{Policy: "reap", Faults: 3, Prefetched: 97, BytesRead: 4096}}}
}

func mustAdd(t *testing.T, s *Store, p Point, samples ...Sample) {
	t.Helper()
	if err := s.Add(p, samples); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir, Session{VMM: "qemu tcg"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.file.Close() })
	return s
}

// A run that was interrupted anywhere goes on with what is complete.
func TestResume(t *testing.T) {
	done := Point{Experiment: "policies", Function: "f", Variant: "reap"}
	half := Point{Experiment: "concurrency", Function: "f", Variant: "reap", N: 2}
	for name, end := range map[string]func(b []byte) []byte{
		"whole":      func(b []byte) []byte { return b },
		"torn line":  func(b []byte) []byte { return b[:len(b)-10] },
		"torn point": func(b []byte) []byte { return b[:strings.LastIndex(string(b[:len(b)-1]), "\n")+1] },
		"torn early": func(b []byte) []byte { return b[:strings.Index(string(b), `"n":2`)] },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			mustAdd(t, s, done, sampleOf(5))
			mustAdd(t, s, half, sampleOf(6), sampleOf(7))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, SamplesFile)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, end(b), 0o644); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			left, _ := s.Left([]Point{done, half})
			if want := map[bool]int{true: 0, false: 1}[name == "whole"]; len(left) != want || !s.Has(done) {
				t.Fatalf("%d points are left: want %d; %v", len(left), want, left)
			}
			if len(left) > 0 {
				mustAdd(t, s, half, sampleOf(6), sampleOf(7))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			d, err := Load(dir)
			if err != nil || len(d.Samples) != 3 || len(d.Sessions) != 2 || d.Samples[2].Total() != 7 || d.Samples[2].Instance != 1 {
				t.Errorf("%v: %d sessions, samples %+v", err, len(d.Sessions), d.Samples)
			}
		})
	}
}

func TestNotResults(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, SamplesFile), []byte("{\"a\": 1}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(dir, Session{}); err == nil || !strings.Contains(err.Error(), "--out") {
		t.Errorf("error %v: want one that says what to do", err)
	}
}

func TestDatabase(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	mustAdd(t, s, Point{Experiment: "policies", Function: "f", Variant: "reap"}, sampleOf(5))
	for range 2 { // made anew, not added to
		if err := WriteDatabase(t.Context(), dir, &s.Data); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, DatabaseFile))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n, spawn, faults int
	var total float64
	err = db.QueryRow("SELECT count(*), sum(total_ms), sum(spawn_us), sum(faults) FROM samples JOIN sessions ON sessions.id = samples.session").Scan(&n, &total, &spawn, &faults)
	if err != nil || n != 1 || total != 5 || spawn != 1000 || faults != 3 {
		t.Errorf("%v: %d samples, %g ms, %d µs, %d faults", err, n, total, spawn, faults)
	}
}
