package gateway

import (
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// forwardedHeaders say where a request comes from. What a client says of that
// itself reaches no function, unless the client is one to trust.
var forwardedHeaders = []string{
	"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Proto", "X-Real-Ip",
}

// forward writes who a request comes from.
func forward(r *httputil.ProxyRequest, trust bool) {
	for _, h := range forwardedHeaders {
		delete(r.Out.Header, h)
		if v, ok := r.In.Header[h]; ok && trust {
			r.Out.Header[h] = v
		}
	}
	r.SetXForwarded()
}

// trusts says whether the peer at an address is a proxy whose word counts.
func (g *Gateway) trusts(remote string) bool {
	if len(g.opts.TrustForwarded) == 0 {
		return false
	}
	peer, err := netip.ParseAddrPort(remote)
	return err == nil && g.trustsAddr(peer.Addr())
}

func (g *Gateway) trustsAddr(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range g.opts.TrustForwarded {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// clientAddr is the address that a request comes from: the peer's, or, where
// that is a proxy to trust, the last that its kind has not written.
func (g *Gateway) clientAddr(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	at := peer.Addr()
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0 && g.trustsAddr(at); i-- {
		before, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		at = before
	}
	return at.String()
}

// HeaderRequestID carries a request's id through all that it passes.
const HeaderRequestID = "X-Request-Id"

// requestID is the client's, if that is sane, or the invocation's.
func requestID(h http.Header, invocation string) string {
	ids := h[HeaderRequestID]
	if len(ids) != 1 || ids[0] == "" || len(ids[0]) > 128 {
		return invocation
	}
	for _, c := range []byte(ids[0]) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.:/+=@~", rune(c)) {
			return invocation
		}
	}
	return ids[0]
}

// validHost says whether a request's host can be passed on. Over HTTP/2 nobody
// has looked at it yet.
func validHost(host string) bool {
	if !httpguts.ValidHostHeader(host) {
		return false
	}
	_, err := httpguts.PunycodeHostPort(host)
	return err == nil
}
