//go:build race

package memory_test

// dropped is the share of what is put into a sync.Pool that the race detector has it drop,
// as a divisor.
const dropped = 25
