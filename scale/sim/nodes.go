package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"

	"github.com/skep-dev/skep/load/trace"
)

// node is one of the cluster.
type node struct {
	used float64 // MiB of instances
	idle float64 // of those, of idle ones
	// Instances by the rank that they had when they were last looked at, the lowest
	// first. A rank only grows, so that the first whose rank is still that is the lowest.
	ranks ranks
	bases uint64 // those that it has a snapshot on, a bit each
}

// maxBases bounds how many bases there are.
const maxBases = 64

// baseOf draws which base a function's snapshot is on: functions of an application share it.
func baseOf(f *trace.Function, index, bases int) uint8 {
	h := fnv.New32a()
	if f.App == "" {
		fmt.Fprint(h, index)
	} else {
		fmt.Fprint(h, f.Owner, "/", f.App)
	}
	return uint8(h.Sum32() % uint32(max(1, bases)))
}

type ranked struct {
	rank       float64
	instance   int32
	generation uint32
}

type ranks []ranked

func (r ranks) Len() int           { return len(r) }
func (r ranks) Less(i, j int) bool { return r[i].rank < r[j].rank }
func (r ranks) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }
func (r *ranks) Push(v any)        { *r = append(*r, v.(ranked)) }
func (r *ranks) Pop() any {
	old := *r
	v := old[len(old)-1]
	*r = old[:len(old)-1]
	return v
}

// unranked is added to the ranks of instances whose function's policy has no opinion,
// which is when they were last used: below all that have a rank.
const unranked = -1e30

func (w *world) rank(in *instance) float64 {
	if r := w.functions[in.function].ranker; r != nil {
		return r.Rank()
	}
	return unranked + float64(in.changed)*1e10
}

// launch starts an instance of a function; false: no node has memory for it.
func (w *world) launch(id int32) bool {
	f := &w.functions[id]
	n := w.place(f)
	if n < 0 {
		return false
	}
	w.makeRoom(n, f.mib)
	i := w.newInstance()
	in := &w.instances[i]
	*in = instance{function: id, node: n, state: gone, generation: in.generation, created: w.now, mib: f.mib}
	w.move(i, starting)
	nd := &w.nodes[n]
	nd.used += in.mib
	w.held.all += in.mib
	if w.c.NodeMiB > 0 {
		heap.Push(&nd.ranks, ranked{w.rank(in), i, in.generation})
	}
	took := w.starts.At(w.rand.Float64()) + w.fetch(f, n)
	w.stats.starts++
	w.events.push(event{w.now + int64(took*1e9), i, ready})
	return true
}

func (w *world) newInstance() int32 {
	if k := len(w.spare); k > 0 {
		i := w.spare[k-1]
		w.spare = w.spare[:k-1]
		return i
	}
	w.instances = append(w.instances, instance{})
	return int32(len(w.instances) - 1)
}

// end ends an idle instance.
func (w *world) end(i int32) {
	in := &w.instances[i]
	f := &w.functions[in.function]
	w.unlink(f, in)
	if !in.served {
		w.stats.unused++
	}
	in.state = gone
	in.generation++
	nd := &w.nodes[in.node]
	nd.used -= in.mib
	nd.idle -= in.mib
	w.held.all -= in.mib
	w.held.idle -= in.mib
	w.spare = append(w.spare, i)
}

// place chooses the node for an instance; -1: none has room, even if what is idle ends.
func (w *world) place(f *function) int32 {
	best, bestFits := int32(-1), false
	var bestHas, bestUsed float64
	limit := float64(w.c.NodeMiB)
	for i := range w.nodes {
		n := &w.nodes[i]
		if limit > 0 && n.used-n.idle+f.mib > limit {
			continue
		}
		fits := limit == 0 || n.used+f.mib <= limit
		has := w.there(f, i)
		better := n.used < bestUsed
		if w.c.Placement == Pack {
			better = n.used > bestUsed
		}
		// Room without ending anything comes first, then what of its snapshot is there.
		if best < 0 || fits && !bestFits || fits == bestFits && (has > bestHas || has == bestHas && better) {
			best, bestFits, bestHas, bestUsed = int32(i), fits, has, n.used
		}
	}
	return best
}

// there is the part of the function's snapshot that the node has, as far as the placement
// looks at it.
func (w *world) there(f *function, node int) float64 {
	switch {
	case w.c.Placement != SnapshotAware && w.c.Placement != ChunkAware:
		return 0
	case f.has(node):
		return 1
	case w.c.Placement == ChunkAware && w.nodes[node].has(f.base):
		return w.c.Costs.FetchShared
	}
	return 0
}

func (n *node) has(base uint8) bool { return n.bases>>base&1 == 1 }

func (f *function) has(node int) bool {
	return f.snapshots != nil && f.snapshots[node/64]>>(node%64)&1 == 1
}

// fetch is how long it takes until the node has the function's snapshot, in seconds.
func (w *world) fetch(f *function, node int32) float64 {
	if len(w.c.Costs.Fetch) == 0 || f.has(int(node)) {
		return 0
	}
	if f.snapshots == nil {
		f.snapshots = make([]uint64, (len(w.nodes)+63)/64)
	}
	f.snapshots[node/64] |= 1 << (node % 64)
	part, n := 1.0, &w.nodes[node]
	if n.has(f.base) {
		part -= w.c.Costs.FetchShared
	}
	n.bases |= 1 << f.base
	w.stats.fetches++
	w.stats.fetched += part
	return part * w.c.Costs.Fetch.At(w.rand.Float64())
}

// makeRoom ends idle instances of a node, the lowest rank first, until so much fits. place
// has seen to it that it will.
func (w *world) makeRoom(n int32, mib float64) {
	if w.c.NodeMiB == 0 {
		return
	}
	nd := &w.nodes[n]
	var serving []ranked
	for nd.used+mib > float64(w.c.NodeMiB) && len(nd.ranks) > 0 {
		top := nd.ranks[0]
		in := &w.instances[top.instance]
		if in.generation != top.generation {
			heap.Pop(&nd.ranks)
			continue
		}
		if rank := w.rank(in); rank > top.rank {
			nd.ranks[0].rank = rank
			heap.Fix(&nd.ranks, 0)
			continue
		}
		heap.Pop(&nd.ranks)
		if in.state != idle {
			serving = append(serving, top)
			continue
		}
		f := &w.functions[in.function]
		w.end(top.instance)
		w.stats.evicted++
		if f.ranker != nil {
			f.ranker.Evicted(int(f.lists[starting].n + f.lists[idle].n + f.lists[busy].n))
		}
	}
	for _, r := range serving {
		heap.Push(&nd.ranks, r)
	}
}

// block notes that a function waits for memory, if it has requests that do.
func (w *world) block(id int32, waiting int) {
	f := &w.functions[id]
	if !f.blocked && waiting > 0 {
		f.blocked = true
		w.blocked = append(w.blocked, id)
	}
}

// unblock lets functions try again that wait for memory, as far as there is some.
func (w *world) unblock() {
	for len(w.blocked) > 0 {
		id := w.blocked[0]
		f := &w.functions[id]
		if f.head < len(f.queue) && w.place(f) < 0 {
			return
		}
		w.blocked = w.blocked[1:]
		f.blocked = false
		if f.head < len(f.queue) {
			w.decide(id)
		}
	}
}
