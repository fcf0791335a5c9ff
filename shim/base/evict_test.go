package base

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/config"
)

// What has not been used for long goes, the longest first, and as much more as the
// budget wants; what was used just now does not.
func TestVictims(t *testing.T) {
	now := time.Now()
	ago := func(id string, d time.Duration, bytes int64) candidate { return candidate{id, bytes, now.Add(-d)} }
	all := []candidate{ago("now", time.Minute, 50), ago("hour", time.Hour, 10), ago("week", 8*24*time.Hour, 10), ago("day", 24*time.Hour, 10), ago("held", 9*24*time.Hour, 10)}
	const week = 7 * 24 * time.Hour
	for _, c := range []struct {
		name   string
		keep   time.Duration
		budget int64
		want   []string
	}{
		{"room for all", 0, 90, nil},
		{"by time", week, 90, []string{"week"}},
		{"by time, and room is short", week, 75, []string{"week", "day"}},
		{"no room", 0, 0, []string{"week", "day", "hour"}},
		{"room for all but one", 0, 89, []string{"week"}},
	} {
		var got []string
		err := victims(slices.Clone(all), c.keep, c.budget, now, func(v candidate) (bool, error) {
			if v.id == "held" {
				return false, nil
			}
			got = append(got, v.id)
			return true, nil
		})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v: want %v", c.name, got, err, c.want)
		}
	}
}

// A revision's snapshot goes some time after its last pod, not while a guest runs from
// it, and the longest unused goes first where there is no room.
func TestEvict(t *testing.T) {
	h := newReadyHost(t)
	log := slog.New(slog.DiscardHandler)
	old := func(id string, d time.Duration) {
		at := time.Now().Add(-d)
		if err := os.Chtimes(filepath.Join(h.dir("snapshots"), id), at, at); err != nil {
			t.Fatal(err)
		}
	}
	there := func(ids ...string) (left []string) {
		for _, id := range ids {
			if _, err := os.Stat(filepath.Join(h.dir("snapshots"), id)); err == nil {
				left = append(left, id)
			}
		}
		return left
	}
	s := wanted("d")
	var ids []string
	for i := range 4 {
		ids = append(ids, publish(t, h, s, fmt.Sprint("key", i)))
	}
	held, _ := find(t, h, s, "key0")
	old(ids[0], 30*24*time.Hour)
	old(ids[1], 30*24*time.Hour)
	old(ids[2], time.Hour)
	cfg := config.Config{KeepSnapshots: api.Duration(7 * 24 * time.Hour), SnapshotBudget: 1 << 20}
	if err := Evict(h.cfg.DataDir, cfg, log); err != nil {
		t.Fatal(err)
	}
	if left := there(ids...); !slices.Equal(left, []string{ids[0], ids[2], ids[3]}) {
		t.Errorf("left are %v of %v", left, ids)
	}
	held.Release()
	if err := Evict(h.cfg.DataDir, cfg, log); err != nil {
		t.Fatal(err)
	}
	if left := there(ids...); !slices.Equal(left, []string{ids[2], ids[3]}) {
		t.Errorf("when no guest runs from it, left are %v of %v", left, ids)
	}
	// A restore is a use.
	r, _ := find(t, h, s, "key2")
	old(ids[2], 8*24*time.Hour)
	if err := used(r.snap); err != nil {
		t.Fatal(err)
	}
	r.Release()
	if err := Evict(h.cfg.DataDir, cfg, log); err != nil {
		t.Fatal(err)
	}
	if left := there(ids[2]); len(left) != 1 {
		t.Error("what was restored just now is gone")
	}
}
