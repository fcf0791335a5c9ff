package memory

import (
	"math/rand/v2"
	"testing"

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
