package shim

import "runtime/debug"

// What a container's start leaves on the heap is a few megabytes. containerd's library
// has the garbage collector look for it each time that little more than one has come:
// a third of the processor time that the shim takes for a start. So it is left lying
// until the guest is at rest, or gone; then a shim is to be small, and most of them idle.
const (
	tidyPercent   = 40 // what containerd's library sets
	untidyPercent = 400
)

func untidy() { debug.SetGCPercent(untidyPercent) }
func tidy()   { debug.SetGCPercent(tidyPercent) }
