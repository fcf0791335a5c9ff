package network

import (
	"io"
	"net"
	"net/netip"
	"testing"
)

// serviceOptions offer at port 7090 what listens on loopback at 7091, and at
// 7092 what does not listen.
func serviceOptions(t testing.TB, prefix string) Options {
	o := testOptions(t, prefix)
	o.Services = []Service{
		{Port: 7090, Target: netip.MustParseAddrPort("127.0.0.1:7091")},
		{Port: 7092, Target: netip.MustParseAddrPort("127.0.0.1:7093")},
	}
	return o
}

func TestServicesAreChecked(t *testing.T) {
	good := netip.MustParseAddrPort("127.0.0.1:1")
	for name, services := range map[string][]Service{
		"no port": {{Target: good}}, "no target": {{Port: 1}}, "twice": {{1, good}, {1, good}}, "IPv6": {{1, netip.MustParseAddrPort("[::1]:1")}},
	} {
		o := testOptions(t, "skept")
		if o.Services = services; o.complete() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A guest with egress "host" reaches the service and nothing else; the next
// guest of the slot, without it, reaches nothing.
func TestHostServiceIsAllThatIsReached(t *testing.T) {
	s := open(t, serviceOptions(t, "skept-svc"))
	listen(t, s, s.home, "127.0.0.1:7091", "service")
	listen(t, s, s.home, "0.0.0.0:7080", "the daemon")
	slot := take(t, s, egressHost)
	g := bootGuest(t, s, slot)
	gateway := testGateway.String()
	if !sees(t, s, g, gateway+":7090", "service", patient) {
		t.Error("the service is not reached")
	}
	for _, port := range []string{":7080", ":7091"} {
		if sees(t, s, g, gateway+port, "", brief) {
			t.Errorf("the guest reaches %s", gateway+port)
		}
	}
	// Half-closed connections keep their other half.
	c, err := dialFrom(s, g.ns, gateway+":7090", patient)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "echo"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(c); err != nil || string(all) != "serviceecho" {
		t.Errorf("read %q, %v", all, err)
	}
	c.Close()
	if d, err := dialFrom(s, g.ns, gateway+":7092", patient); err == nil {
		if _, err := d.Read(make([]byte, 1)); err == nil {
			t.Error("a service that is not there answers")
		}
		d.Close()
	}
	open, err := dialFrom(s, g.ns, gateway+":7090", patient) // the guest ends with it open
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	greeted(t, open, "service")
	g.end()
	s.Give(slot)

	next := takeSame(t, s, slot)
	defer s.Give(next)
	g = bootGuest(t, s, next)
	defer g.end()
	if sees(t, s, g, gateway+":7090", "", brief) {
		t.Error("a guest without egress reaches the service")
	}
}

// Two guests have the same addresses and ports, each its own.
func TestServicesOfSeveralSlots(t *testing.T) {
	s := open(t, serviceOptions(t, "skept-svcs"))
	listen(t, s, s.home, "127.0.0.1:7091", "service")
	for range 3 {
		slot := take(t, s, egressHost)
		defer s.Give(slot)
		g := bootGuest(t, s, slot)
		defer g.end()
		if !sees(t, s, g, testGateway.String()+":7090", "service", patient) {
			t.Error("the service is not reached")
		}
	}
}
