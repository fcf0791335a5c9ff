package workingset

import "time"

// Touch is the first use of a page after a restore.
type Touch struct {
	Page  uint32        // number in the memory file
	Write bool          // it was a write, where that is known
	After time.Duration // since the vCPUs were resumed; 0 while device state was loaded
}
