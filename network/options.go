package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
)

// Kinds of egress, as in package api.
const (
	egressNone = "none"
	egressHost = "host"
	egressNAT  = "nat"
)

// Options of Open. Prefix and the guest's addresses must be set.
type Options struct {
	// Prefix of the names of everything on the host: namespaces are PREFIX-N, the
	// nftables table is PREFIX. Whatever carries it is taken to be this daemon's:
	// it must be unique to the data directory. Letters, digits, '-' and '_'.
	Prefix string
	// Ahead is how many slots of a kind are kept ready. Those with NAT are made
	// ahead once the first has been asked for. 0: each is made when asked for.
	Ahead int
	// Keep is how many idle slots are kept at most; 0: four times Ahead, at
	// least 16.
	Keep int

	GuestMAC  net.HardwareAddr
	HostMAC   net.HardwareAddr // of every tap
	Guest     net.IP           // IPv4
	Gateway   net.IP           // IPv4, of every tap
	PrefixLen int              // of the network of the two; 0: 30

	// Services are what guests with egress "host" reach.
	Services []Service

	// NATPool is where slots with egress have their address from, one each; it
	// may be shared with other daemons. Zero: 10.211.0.0/16.
	NATPool netip.Prefix
	// Nameservers that guests with egress may reach on port 53 even where they
	// are addresses of this host or link-local ones.
	Nameservers []netip.Addr

	Logger *slog.Logger // nil: discard

	mark int // on packets of dialled connections; 0: none
}

var (
	defaultNATPool = netip.MustParsePrefix("10.211.0.0/16")
	prefixPattern  = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_-]{0,31}$`)
)

// complete checks the options and fills in defaults.
func (o *Options) complete() error {
	if !prefixPattern.MatchString(o.Prefix) {
		return fmt.Errorf("prefix %q: want a letter, then at most 31 letters, digits, '-' and '_'", o.Prefix)
	}
	if o.Ahead < 0 || o.Keep < 0 {
		return fmt.Errorf("slots ahead (%d) and kept (%d) cannot be negative", o.Ahead, o.Keep)
	}
	if o.Keep == 0 {
		o.Keep = max(4*o.Ahead, 16)
	}
	o.Keep = max(o.Keep, o.Ahead)
	if len(o.GuestMAC) != 6 || len(o.HostMAC) != 6 {
		return errors.New("the MAC addresses of guest and host must be given")
	}
	if o.PrefixLen == 0 {
		o.PrefixLen = 30
	}
	o.Guest, o.Gateway = o.Guest.To4(), o.Gateway.To4()
	mask := net.CIDRMask(o.PrefixLen, 32)
	if o.Guest == nil || o.Gateway == nil || mask == nil || !o.Guest.Mask(mask).Equal(o.Gateway.Mask(mask)) {
		return fmt.Errorf("guest %v and gateway %v must be IPv4 addresses of one /%d network", o.Guest, o.Gateway, o.PrefixLen)
	}
	ports := make(map[int]bool)
	for _, v := range o.Services {
		if v.Port < 1 || v.Port > 65535 || ports[v.Port] || !v.Target.IsValid() || !v.Target.Addr().Is4() {
			return fmt.Errorf("service %v at port %d: want an IPv4 address with a port, at a port that no other service has", v.Target, v.Port)
		}
		ports[v.Port] = true
	}
	if o.NATPool == (netip.Prefix{}) {
		o.NATPool = defaultNATPool
	}
	o.NATPool = o.NATPool.Masked()
	if !o.NATPool.Addr().Is4() || o.NATPool.Bits() > 30 {
		return fmt.Errorf("NAT pool %v: want an IPv4 prefix of /30 or shorter", o.NATPool)
	}
	if g, _ := netip.AddrFromSlice(o.Guest); o.NATPool.Contains(g) {
		return fmt.Errorf("NAT pool %v holds the guests' own address %v: choose another", o.NATPool, g)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}
