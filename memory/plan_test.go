package memory

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
)

// What is read at once is all of the contents, in order, each piece of it in whole
// runs, verifiable by itself and not larger than a buffer; small ones first.
func TestParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		var runs []workingset.Run
		page := uint32(0)
		for range rng.IntN(60) {
			page += 1 + rng.Uint32N(9)
			n := 1 + rng.Uint32N([]uint32{3, 100, 700}[round%3])
			runs = append(runs, workingset.Run{First: page, Pages: n, Zero: rng.IntN(4) == 0})
			page += n
		}
		p := newPlan(runs)
		run, at, want := 0, int64(0), int64(0)
		for _, r := range runs {
			want += r.Bytes()
		}
		for _, part := range p.parts() {
			switch {
			case part.from != run || part.at != at || p.bytes(part.span) != part.bytes:
				t.Fatalf("round %d: %+v does not follow run %d at %d", round, part, run, at)
			case part.at%workingset.BlockSize != 0 || part.bytes > bufferSize || part.at < bufferSize && part.bytes > firstPart:
				t.Fatalf("round %d: %+v", round, part)
			}
			run, at = part.to, at+part.bytes
		}
		if run != len(p.runs) || at != want {
			t.Fatalf("round %d: parts end at run %d of %d and byte %d of %d", round, run, len(p.runs), at, want)
		}
	}
}

// The longer the guest is ahead of the plan, the more is installed before it is
// asked again what it waits for.
func TestPiecesGrow(t *testing.T) {
	s := &server{}
	for turn, want := range []int{pieceLimit, 2 * pieceLimit, 4 * pieceLimit, maxPiece, maxPiece, pieceLimit} {
		s.ahead = turn%5 != 0
		if s.nextPiece(); s.piece != want {
			t.Errorf("turn %d: %d pages, want %d", turn, s.piece, want)
		}
	}
}

// Runs that are there already need not come: what may be left when the vCPUs begin to run is reckoned without
// them. What another has recorded comes first, and the clock goes on from there.
func TestPlanAndRecordingFollow(t *testing.T) {
	p := newPlan([]workingset.Run{{First: 0, Pages: 4}, {First: 8, Pages: 100}, {First: 200, Pages: 2, Zero: true}})
	total, there := p.left, newBitmap(256)
	there.setRange(0, 3)
	there.setRange(8, 8+pieceLimit)
	there.setRange(200, 202)
	p.have(there)
	if p.find(0).done || !p.find(8).done || p.find(107).done || !p.find(201).done || p.left != total-2 {
		t.Errorf("%d of %d runs are left", p.left, total)
	}
	r := newRecorder(256, 0)
	r.touch(7, true)
	r.follow([]workingset.Touch{{Page: 5, After: time.Second}, {Page: 7, After: time.Second}, {Page: 6, After: 2 * time.Second}})
	r.resume()
	r.touch(6, false)
	r.touch(9, false)
	got := r.freeze()
	if len(got) != 4 || got[0] != (workingset.Touch{Page: 7, Write: true}) || got[1].Page != 5 || got[2] != (workingset.Touch{Page: 6, After: 2 * time.Second}) ||
		got[3].Page != 9 || got[3].After < 2*time.Second || got[3].After > time.Minute {
		t.Errorf("recorded %+v", got)
	}
}
