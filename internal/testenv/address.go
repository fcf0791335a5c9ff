package testenv

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
)

// FreeAddress is an address of the loopback, as "127.0.0.1:12345", for a server that
// cannot be handed a listener. Its port is below those that the kernel gives to
// who asks for any, so that no dial and no other test takes it before the server does.
func FreeAddress(t testing.TB) string {
	t.Helper()
	var first int
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(b), &first)
	}
	const least = 10_000
	if err != nil || first < least+1000 {
		t.Fatalf("no ports of this host are for servers: net.ipv4.ip_local_port_range begins at %d, %v", first, err)
	}
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", least+rand.IntN(first-least)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("each of a hundred ports is taken")
	return ""
}
