package network

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func hasTable(t testing.TB, name string) bool {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == name {
			return true
		}
	}
	return false
}
