package memo

import "time"

// Files of tests settle faster; still slower than any file system's clock ticks.
func init() { settled = 100 * time.Millisecond }
