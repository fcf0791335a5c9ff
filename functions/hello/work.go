package main

import (
	"encoding/json"
	"math"
	"net/http"
	"runtime"
	"strconv"
	"time"
)

// perMillisecond is how many steps of burn take one. It is measured before the function
// is ready, so that it is in its snapshot and clones need not measure it.
var perMillisecond = 1000.0

// calibrate measures burn: the fastest of some rounds, in which nothing else had the
// processor.
func calibrate() {
	const steps = 20000
	best := time.Duration(math.MaxInt64)
	for range 5 {
		t := time.Now()
		burn(steps)
		best = min(best, time.Since(t))
	}
	perMillisecond = steps / max(best.Seconds()*1000, 1e-6)
}

func burn(steps int) {
	x := 2.0
	for range steps {
		x = math.Sqrt(x + 1)
	}
	runtime.KeepAlive(x) // or the compiler sees that nobody wants it
}

// work does what a function of a trace did: it takes mib of memory, and runs for ms, or
// with idle=1 waits for so long. ms is of an undisturbed processor: who shares it takes
// longer.
func work(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ms, err := strconv.ParseFloat(r.FormValue("ms"), 64)
	if r.FormValue("ms") == "" {
		ms, err = 0, nil
	}
	mib := number(r, "mib")
	if err != nil || !(ms >= 0 && ms <= 86400e3) || mib < 0 || mib > 1<<20 {
		http.Error(w, "ms is how many milliseconds to run, at most a day; mib how much memory to take", http.StatusBadRequest)
		return
	}
	held := make([]byte, mib<<20)
	for i := 0; i < len(held); i += 4096 {
		held[i] = 1
	}
	if r.FormValue("idle") != "" {
		select {
		case <-time.After(time.Duration(ms * float64(time.Millisecond))):
		case <-r.Context().Done():
		}
	} else {
		// In slices of a millisecond, so that who has left is not worked for.
		for left := ms - time.Since(began).Seconds()*1000; left > 0 && r.Context().Err() == nil; left-- {
			burn(int(perMillisecond * min(left, 1)))
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"took_ms": time.Since(began).Seconds() * 1000, "asked_ms": ms, "mib": len(held) >> 20})
}
