package scale

import "time"

// greedyDual is the policy of Fuerst and Sharma, "FaasCache: Keeping Serverless
// Computing Alive with Greedy-Dual Caching" (ASPLOS'21), section 4: nothing ends for
// its age; when a node needs memory, the instances go of which the least would be
// lost, by how often the function is called, what a start costs it, and how much
// memory that frees, with a clock for age.
var greedyDual = Kind{
	Name: "greedy-dual", Summary: "FaasCache: keeps all until memory is short, then ends what is used least for what it takes",
	New: func(_ Values, f Function, g *Group) Policy {
		return &greedyDualPolicy{group: g, size: float64(max(1, f.MemoryMiB))}
	},
}

type greedyDualPolicy struct {
	group *Group
	size  float64

	frequency float64
	cost      float64 // of a start, in seconds
	inFlight  int
	rank      float64
}

func (g *greedyDualPolicy) Decide(_ time.Duration, l *Load) Decision {
	start, again := react(l)
	inFlight := l.Waiting + l.Active
	g.cost = l.Start.Seconds()
	if inFlight > g.inFlight {
		g.frequency += float64(inFlight - g.inFlight)
		g.rank = max(g.rank, g.group.time()+g.frequency*max(g.cost, 1e-3)/g.size)
	}
	g.inFlight = inFlight
	return Decision{Start: start, Keep: l.Min, Idle: Forever, Again: again}
}

// Rank is the priority of the paper's equation 1: clock + frequency × cost / size, with
// the clock of the last use.
func (g *greedyDualPolicy) Rank() float64 { return g.rank }

func (g *greedyDualPolicy) Evicted(left int) {
	g.group.advance(g.rank)
	if left == 0 {
		g.frequency, g.rank = 0, 0
	}
}
