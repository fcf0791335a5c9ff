package vmmtest

import (
	"os"
	"testing"
)

// need skips where a machine cannot be made at all.
func need(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("microVMs need root: run sudo go test")
	}
}
