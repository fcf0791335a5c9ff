package trace

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
)

// Generator makes a trace with the statistics that Shahrad et al. published of Azure
// Functions in "Serverless in the Wild" (USENIX ATC'20), for machines without the files:
//
//   - functions in an application (figure 1): 54% have one, 95% at most ten
//   - triggers, by functions (figure 2)
//   - calls a day (figure 5): 45% at most one an hour, 81% at most one a minute, the
//     busiest 18.6% make more than 99% of all; the ends are chosen so that 50,000
//     functions are called some 900 million times a day, as the published trace's are
//   - over the day (figure 4): a constant half, and a wave
//   - regularity (figure 6): timers are periodic; half of the others come in bursts
//   - durations (figure 7): the means are log-normal, ln seconds of mean −0.38 and
//     deviation 2.36
//   - memory by application (figure 8): Burr, c 11.652, k 0.221, λ 107.083 MB
//
// What the paper says of applications' calls is taken for functions. It says nothing of
// rate and duration together: here no function has more than 100 requests at once, on
// average.
type Generator struct {
	Functions int
	Minutes   int     // 0: a day
	Rate      float64 // by which all rates are multiplied; 0: 1
	Seed      uint64
}

// rates are how many functions are called at most so often a day; log-linear between.
var rates = []struct{ part, perDay float64 }{
	{0, 1}, {0.45, 24}, {0.81, 1440}, {0.95, 2e4}, {0.99, 2e5}, {0.999, 2e6}, {1, 2e7},
}

// triggerShares are of functions, in percent.
var triggerShares = []struct {
	trigger string
	percent float64
}{
	{"http", 55}, {"timer", 15.6}, {"queue", 15.2}, {"orchestration", 6.9}, {"storage", 2.8}, {"event", 2.2}, {"others", 2.3},
}

// appSizes are of applications, in percent, with so many functions.
var appSizes = []struct {
	percent float64
	lo, hi  int
}{{54, 1, 1}, {16, 2, 2}, {10, 3, 3}, {8, 4, 5}, {7, 6, 10}, {4.96, 11, 100}, {0.04, 101, 500}}

// durationShape is how the quantiles of a function's durations lie around their mean.
var durationShape = Quantiles{0.3, 0.4, 0.7, 0.9, 1.1, 2.4, 4}

const (
	meanLogDuration, deviationLogDuration = -0.38, 2.36
	burrC, burrK, burrLambda              = 11.652, 0.221, 107.083
	mostAtOnce                            = 100
	longest                               = 600.0 // seconds, what Azure lets a function run
	wave                                  = 1.0 / 3
	burstShare                            = 0.5
	burstOn, burstMinutes                 = 0.1, 5.0 // part of the time, mean length
)

// Make makes the trace.
func (g Generator) Make() (*Trace, error) {
	if g.Functions < 1 || g.Functions > 10_000_000 {
		return nil, fmt.Errorf("generating %d functions: want 1 to 10000000", g.Functions)
	}
	if g.Minutes == 0 {
		g.Minutes = 24 * 60
	}
	if g.Minutes < 1 || g.Minutes > maxMinutes {
		return nil, fmt.Errorf("generating %d minutes: want 1 to %d", g.Minutes, maxMinutes)
	}
	if g.Rate == 0 {
		g.Rate = 1
	}
	if !(g.Rate > 0 && g.Rate <= 1000) {
		return nil, fmt.Errorf("generating at %v times the rate: want more than 0, at most 1000", g.Rate)
	}
	t := &Trace{Functions: make([]Function, 0, g.Functions), minutes: make([]column, g.Minutes)}
	r := rand.New(rand.NewPCG(g.Seed, 0x5bd1e995))
	for app := 0; len(t.Functions) < g.Functions; app++ {
		g.app(t, r, app)
	}
	for i := range t.Functions {
		// Each its own chance, so that one function's calls do not depend on another's.
		g.calls(t, rand.New(rand.NewPCG(g.Seed, mix(1, uint64(i)))), i)
	}
	return t, nil
}

// app adds the functions of one application.
func (g Generator) app(t *Trace, r *rand.Rand, app int) {
	size := 1
	x := r.Float64() * 100
	for _, s := range appSizes {
		if x -= s.percent; x < 0 {
			size = s.lo + r.IntN(s.hi-s.lo+1)
			break
		}
	}
	mib := burrLambda * math.Pow(math.Pow(1-r.Float64(), -1/burrK)-1, 1/burrC)
	name := strconv.Itoa(app)
	for i := 0; i < size && len(t.Functions) < g.Functions; i++ {
		f := Function{Owner: "0", App: "a" + name, Name: "f" + strconv.Itoa(len(t.Functions)), MemoryMiB: min(max(1, mib/float64(size)), 16<<10)}
		x := r.Float64() * 100
		for _, s := range triggerShares {
			f.Trigger = s.trigger
			if x -= s.percent; x < 0 {
				break
			}
		}
		t.Functions = append(t.Functions, f)
	}
}

// calls draws how often function i is called and for how long it runs.
func (g Generator) calls(t *Trace, r *rand.Rand, i int) {
	f := &t.Functions[i]
	perMinute := perDay(r.Float64()) / (24 * 60)
	mean := math.Exp(meanLogDuration + deviationLogDuration*r.NormFloat64())
	mean = min(mean, longest/4, mostAtOnce*60/max(perMinute, 1e-9))
	for j, s := range durationShape {
		f.Duration[j] = float32(max(0.001, mean*float64(s)))
	}
	f.Duration.tidy()
	perMinute *= g.Rate
	if f.Trigger == TriggerTimer && perMinute <= 1 {
		// Its period is a whole number of minutes.
		period := max(1, int(math.Round(1/perMinute)))
		for m := r.IntN(period); m < g.Minutes; m += period {
			t.add(i, m, 1)
		}
		return
	}
	bursts := r.Float64() < burstShare
	phase := r.Float64() * 0.2 // peaks lie near each other
	on := !bursts || r.Float64() < burstOn
	poisson := distuv.Poisson{Src: r}
	for m := 0; m < g.Minutes; m++ {
		if bursts {
			// On for burstMinutes in the mean, off for as much longer as makes burstOn of the time.
			leave := 1 / burstMinutes
			if !on {
				leave *= burstOn / (1 - burstOn)
			}
			if r.Float64() < leave {
				on = !on
			}
		}
		if !on {
			continue
		}
		lambda := perMinute * (1 + wave*math.Sin(2*math.Pi*(float64(m)/(24*60)+phase)))
		if bursts {
			lambda /= burstOn
		}
		if lambda < 0.01 && r.Float64() > lambda { // one call or none, nearly always
			continue
		} else if lambda < 0.01 {
			t.add(i, m, 1)
			continue
		}
		poisson.Lambda = lambda
		t.add(i, m, uint64(min(poisson.Rand(), maxCalls)))
	}
}

// perDay is the quantile of calls a day.
func perDay(part float64) float64 {
	for i := 1; i < len(rates); i++ {
		lo, hi := rates[i-1], rates[i]
		if part <= hi.part {
			x := (part - lo.part) / (hi.part - lo.part)
			return lo.perDay * math.Pow(hi.perDay/lo.perDay, x)
		}
	}
	return rates[len(rates)-1].perDay
}

// Length of the trace.
func (t *Trace) Length() time.Duration { return time.Duration(len(t.minutes)) * time.Minute }
