package remotetest

import (
	"testing"

	"github.com/skep-dev/skep/internal/link"
)

// Before puts a link before an address until the test ends, and returns where it listens.
func Before(t testing.TB, l link.Link, address string) string {
	t.Helper()
	p, err := link.Open(l, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p.Address()
}
