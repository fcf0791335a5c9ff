package scale

import (
	"math"
	"time"
)

// hybrid is the hybrid histogram policy of Shahrad et al., "Serverless in the
// Wild" (USENIX ATC'20), section 4.2: how long the function was idle before its
// requests, in a histogram of minutes; its head says for how long it need not be
// there (and that it is started ahead then), its tail for how long it must be.
// Where the histogram says nothing, it is kept for as long as that is wide; where
// most idle times are wider, the next one is forecast.
//
// What is different: the paper forecasts by an ARIMA model that it searches for;
// here it is ARIMA(0,1,1), which is exponential smoothing. Head and tail are
// looked up anew when there are an eighth more idle times, not for each.
var hybrid = Kind{
	Name: "hybrid", Summary: "hybrid histogram (Serverless in the Wild): learns idle times, ends early, starts ahead",
	Params: []Param{
		{Name: "range", Help: "width of the histogram", Default: 4 * 3600, Min: 60, Max: maxSeconds, Seconds: true},
		{Name: "bin", Help: "width of one of its bins", Default: 60, Min: 1, Max: 3600, Seconds: true},
		{Name: "head", Help: "quantile of idle times before which it is started ahead", Default: 0.05, Min: 0, Max: 0.5},
		{Name: "tail", Help: "quantile of idle times until which it is kept", Default: 0.99, Min: 0.5, Max: 1},
		{Name: "margin", Help: "by which the one is made shorter and the other longer", Default: 0.1, Min: 0, Max: 1},
		{Name: "cv", Help: "coefficient of variation of the bins below which the histogram says nothing", Default: 2, Min: 0, Max: 100},
		{Name: "outside", Help: "share of idle times beyond the histogram from which they are forecast", Default: 0.5, Min: 0, Max: 1},
		{Name: "forecast-margin", Help: "margin around a forecast", Default: 0.15, Min: 0, Max: 1},
	},
	New: newHybrid,
}

type hybridPolicy struct {
	v     Values
	width time.Duration
	bin   time.Duration

	bins     []uint32 // nil: nothing was seen yet
	inside   uint32   // idle times in them
	squares  float64  // sum of the squares of the bins
	outside  uint32   // idle times that were wider
	forecast float64  // of the next idle time, in seconds; of all that were wider

	known       uint32        // idle times that the following are from
	forecasting bool          // by the forecast
	prewarm     time.Duration // from the last answer until an instance is to be there; 0: it stays
	keep        time.Duration // from then on

	busy      bool          // there are requests
	served    bool          // there have been
	idleSince time.Duration // the last was answered then
	ahead     bool          // the start ahead of this idle time's end was asked for
}

func newHybrid(v Values, _ Function, _ *Group) Policy {
	width := v.duration("range")
	return &hybridPolicy{v: v, width: width, bin: v.duration("bin"), keep: width}
}

func (h *hybridPolicy) Decide(now time.Duration, l *Load) Decision {
	start, again := react(l)
	d := Decision{Start: start, Keep: l.Min, Again: again}
	busy := l.Waiting+l.Active > 0
	switch {
	case busy && !h.busy && h.served:
		h.saw(now - h.idleSince)
	case !busy && h.busy:
		h.idleSince, h.served, h.ahead = now, true, false
		h.look()
	}
	h.busy = busy
	if busy || !h.served {
		d.Idle = h.prewarm + h.keep
	} else {
		h.idle(now, l, &d)
	}
	return d
}

// idle decides while there are no requests.
func (h *hybridPolicy) idle(now time.Duration, l *Load, d *Decision) {
	since := now - h.idleSince
	switch {
	case h.prewarm == 0:
		d.Idle = h.keep
	case since < h.prewarm:
		d.Idle = 0
		d.Again = sooner(d.Again, h.prewarm-since)
	case since < h.prewarm+h.keep:
		d.Idle = h.keep
		if all := l.Starting + l.Busy + l.Idle; !h.ahead && all == 0 && l.Max > 0 {
			d.Start = max(d.Start, 1)
		}
		h.ahead = true
		d.Again = sooner(d.Again, h.prewarm+h.keep-since)
	default: // it did not come
		d.Idle = 0
	}
}

// saw counts an idle time.
func (h *hybridPolicy) saw(t time.Duration) {
	if h.bins == nil {
		h.bins = make([]uint32, max(1, int(h.width/h.bin)))
	}
	if bin := int(t / h.bin); bin < len(h.bins) {
		h.squares += float64(2*h.bins[bin] + 1)
		h.bins[bin]++
		h.inside++
		return
	}
	h.outside++
	if h.forecast == 0 {
		h.forecast = t.Seconds()
	}
	h.forecast += smoothing * (t.Seconds() - h.forecast)
}

// smoothing is how much of a forecast's error the next one makes up for.
const smoothing = 0.3

// look decides how long the idle time that begins will be.
func (h *hybridPolicy) look() {
	all := h.inside + h.outside
	if !h.forecasting && all < h.known+h.known/8+1 {
		return
	}
	h.known = all
	h.prewarm, h.keep = 0, h.width
	h.forecasting = float64(h.outside) > h.v["outside"]*float64(all)
	switch {
	case h.forecasting:
		margin := h.v["forecast-margin"]
		h.prewarm = seconds(h.forecast * (1 - margin))
		h.keep = seconds(2 * margin * h.forecast)
	case h.variation() >= h.v["cv"]:
		margin := h.v["margin"]
		head := time.Duration(h.quantile(h.v["head"])) * h.bin // rounded down
		tail := time.Duration(h.quantile(h.v["tail"])+1) * h.bin
		h.prewarm = seconds(head.Seconds() * (1 - margin))
		h.keep = seconds(tail.Seconds()*(1+margin)) - h.prewarm
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// variation is the coefficient of variation of the bins' counts.
func (h *hybridPolicy) variation() float64 {
	if h.inside == 0 {
		return 0
	}
	n, sum := float64(len(h.bins)), float64(h.inside)
	mean := sum / n
	return math.Sqrt(max(0, h.squares/n-mean*mean)) / mean
}

// quantile returns the bin in which that part of the idle times has been seen.
func (h *hybridPolicy) quantile(q float64) int {
	need := max(1, uint32(math.Ceil(q*float64(h.inside))))
	seen := uint32(0)
	for i, n := range h.bins {
		if seen += n; seen >= need {
			return i
		}
	}
	return len(h.bins) - 1
}
