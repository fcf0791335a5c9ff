//go:build !race

package memory_test

const dropped = 0
