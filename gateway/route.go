package gateway

import (
	"net"
	"net/url"
	"strings"
)

// pathPrefix is where every function is below, whatever the host.
const pathPrefix = "/function/"

// controlPrefix is the same on the control API, where "/invoke" follows the name.
const controlPrefix = "/v1/functions/"

// place is what a request's URL names.
type place struct {
	function string
	prefix   string // of the path, in front of the function's own; "" where the host names the function
	path     string // the function's own, escaped as the client did it
}

// route finds the function that a request names. By host, "<name>.<domain>",
// the path is the function's; by path, "/function/<name>/…", the prefix is
// removed. The host wins: what is below it belongs to the function. A host that is
// nothing but a function's name is looked at where neither names one (byBareHost).
func route(host, domain string, u *url.URL) (place, bool) {
	raw := u.EscapedPath()
	if name, ok := byHost(host, domain); ok {
		return place{function: name, path: raw}, true
	}
	s, rest := segments(raw, 2)
	if s == nil || s[0] != "function" || s[1] == "" {
		return place{}, false
	}
	return place{s[1], pathPrefix + s[1], rest}, true
}

func byHost(host, domain string) (name string, ok bool) {
	name, ok = strings.CutSuffix(hostOf(host), "."+domain)
	return name, ok && name != "" && !strings.Contains(name, ".")
}

// hostOf is a Host without its port, in lower case.
func hostOf(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// routeControl finds the function in a path of the control API.
func routeControl(u *url.URL) (place, bool) {
	s, rest := segments(u.EscapedPath(), 4)
	if s == nil || s[0] != "v1" || s[1] != "functions" || s[2] == "" || s[3] != "invoke" {
		return place{}, false
	}
	return place{s[2], controlPrefix + s[2] + "/invoke", rest}, true
}

// segments returns the first n segments of an escaped path, unescaped, and what
// follows them as it is, "/" if that is nothing; nil if there are fewer.
func segments(raw string, n int) (first []string, rest string) {
	rest = raw
	for range n {
		s, ok := strings.CutPrefix(rest, "/")
		if !ok {
			return nil, ""
		}
		rest = ""
		if i := strings.IndexByte(s, '/'); i >= 0 {
			s, rest = s[:i], s[i:]
		}
		s, err := url.PathUnescape(s)
		if err != nil {
			return nil, ""
		}
		first = append(first, s)
	}
	if rest == "" {
		rest = "/"
	}
	return first, rest
}

// strip leaves in a URL what belongs to the function.
func (p place) strip(u *url.URL) {
	if p.prefix == "" {
		return
	}
	if path, err := url.PathUnescape(p.path); err == nil { // it was a valid URL with the prefix
		u.Path, u.RawPath = path, p.path
	}
}
