package scale

import "time"

// window averages a number over the last seconds, in buckets of one, as Knative's
// autoscaler does (pkg/autoscaler/aggregation, TimedFloat64Buckets): over less
// than the window after a gap as long as it, and over what there is at first.
type window struct {
	buckets []float64
	first   int64 // the second of the first that was written since the last gap
	last    int64 // the newest that was written
	written bool
}

func newWindow(length time.Duration) *window {
	return &window{buckets: make([]float64, max(1, int((length+time.Second-1)/time.Second)))}
}

func (w *window) at(second int64) *float64 { return &w.buckets[second%int64(len(w.buckets))] }

// add adds to the bucket of a second that is no earlier than the last.
func (w *window) add(second int64, v float64) {
	n := int64(len(w.buckets))
	switch {
	case !w.written || second-w.last >= n:
		clear(w.buckets)
		w.first, w.written = second, true
	default:
		for s := w.last + 1; s <= second; s++ {
			*w.at(s) = 0
		}
	}
	w.last = second
	*w.at(second) += v
}

// average of the window that ends with that second.
func (w *window) average(second int64) float64 {
	n := int64(len(w.buckets))
	late := second - w.last
	if !w.written || late >= n {
		return 0
	}
	sum := 0.0
	valid := min(w.last-w.first+1, n-max(late, 0))
	for i := range valid {
		sum += *w.at(w.last - i)
	}
	return sum / float64(valid)
}
