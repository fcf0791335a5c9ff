package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"syscall"
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
	if mib > 0 {
		// Apart from the heap, so that it goes with the call: a garbage collector would have that of
		// two calls, one after the other, be there at once, which is more than was said to be taken.
		held, err := syscall.Mmap(-1, 0, mib<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		if err != nil {
			http.Error(w, fmt.Sprintf("taking %d MiB of memory: %v", mib, err), http.StatusInsufficientStorage)
			return
		}
		defer syscall.Munmap(held)
		for i := 0; i < len(held); i += 4096 {
			held[i] = 1
		}
	}
	if r.FormValue("idle") != "" {
		select {
		case <-time.After(time.Duration(ms * float64(time.Millisecond))):
		case <-r.Context().Done():
		}
	} else {
		burnFor(r.Context(), ms-time.Since(began).Seconds()*1000)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"took_ms": time.Since(began).Seconds() * 1000, "asked_ms": ms, "mib": mib})
}

// burnFor burns so many milliseconds of an undisturbed processor, in slices of one, so that
// who has left is not worked for.
func burnFor(ctx context.Context, ms float64) {
	for ; ms > 0 && ctx.Err() == nil; ms-- {
		burn(int(perMillisecond * min(ms, 1)))
	}
}

// dirigent answers as functions do that invitro's loader calls on Dirigent: it burns for
// requested_cpu milliseconds, says for how many microseconds it has run, and does not take
// requested_memory, which is what the whole guest has.
func dirigent(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	ms, err := strconv.Atoi(r.Header.Get("requested_cpu"))
	if err != nil || ms < 0 || ms > 86400e3 {
		http.Error(w, "requested_cpu is how many milliseconds to run, at most a day", http.StatusBadRequest)
		return
	}
	burnFor(r.Context(), float64(ms))
	host, _ := os.Hostname() // in an answer of no consequence
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"Status": "OK", "Function": r.Header.Get("function"), "MachineName": host, "ExecutionTime": time.Since(began).Microseconds()})
}
