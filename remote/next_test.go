package remote_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
)

// TestNextSnapshots pushes the snapshots of a function one after the other, each of which differs from the
// one before in a hundredth of its blocks: what is stored of it is that, and not much more in the long run, and however
// many came before, it is read in a bounded number of ranges, and is what it was.
func TestNextSnapshots(t *testing.T) {
	const blocks, changed, generations, scatter = 1000, 10, 24, 8
	for _, c := range []struct {
		name    string
		scatter int
	}{{"bounded", scatter}, {"unbounded", 1 << 20}} {
		t.Run(c.name, func(t *testing.T) {
			b := &remotetest.Memory{}
			s, err := remote.New(remote.Options{Bucket: b, Prefix: "team", Block: block, Pack: 1 << 20, Scatter: c.scatter})
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(1, 2))
			now := seeds(1, blocks)
			next := uint64(blocks)
			var first, written, last int64
			for g := range generations {
				for range changed {
					next++
					now[r.IntN(blocks)] = next
				}
				id := fmt.Sprintf("g%02d", g)
				data := content(now...)
				out := push(t, s, snap(t, id, data))
				switch written += out.Written; {
				case g == 0:
					first = out.Written
				case g == 1 && out.New > changed*block:
					t.Errorf("of the second snapshot %d bytes are new, of %d that changed", out.New, changed*block)
				}
				before, _ := b.Read()
				back, err := got(t, open(t, b), id)
				if err != nil || !bytes.Equal(back, data) {
					t.Fatalf("%s: got %d bytes of %d, %v", id, len(back), len(data), err)
				}
				after, _ := b.Read()
				last = int64(after - before)
			}
			t.Logf("%d bytes for the first, %d on average for each next; the last is read in %d ranges", first, (written-first)/(generations-1), last)
			// The manifest, the whole ones, and what the last push alone has added.
			if few := last <= 1+first>>20+1+scatter+1; few != (c.scatter == scatter) {
				t.Errorf("the last is read in %d ranges", last)
			}
			if c.scatter == scatter && (written-first)/(generations-1) > first/8 {
				t.Errorf("%d bytes are stored for each next, %d were for the first", (written-first)/(generations-1), first)
			}
		})
	}
}
