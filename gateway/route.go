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

// route finds the function that a request names. By host, "<name>.<domain>",
// the path is the function's; by path, "/function/<name>/…", the prefix is
// removed. The host wins: what is below it belongs to the function.
func route(host, domain, path string) (name, prefix string, ok bool) {
	if name, ok := byHost(host, domain); ok {
		return name, "", true
	}
	rest, ok := strings.CutPrefix(path, pathPrefix)
	if !ok {
		return "", "", false
	}
	name, _, _ = strings.Cut(rest, "/")
	return name, pathPrefix + name, name != ""
}

func byHost(host, domain string) (name string, ok bool) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	name, ok = strings.CutSuffix(host, "."+domain)
	return name, ok && name != "" && !strings.Contains(name, ".")
}

// routeControl finds the function in a path of the control API.
func routeControl(path string) (name, prefix string, ok bool) {
	rest, ok := strings.CutPrefix(path, controlPrefix)
	if !ok {
		return "", "", false
	}
	name, after, ok := strings.Cut(rest, "/")
	if !ok || name == "" || after != "invoke" && !strings.HasPrefix(after, "invoke/") {
		return "", "", false
	}
	return name, controlPrefix + name + "/invoke", true
}

// strip removes the prefix from a URL's path, in both its forms.
func strip(u *url.URL, prefix string) {
	if prefix == "" {
		return
	}
	u.Path = "/" + strings.TrimPrefix(strings.TrimPrefix(u.Path, prefix), "/")
	if u.RawPath != "" {
		u.RawPath = "/" + strings.TrimPrefix(strings.TrimPrefix(u.RawPath, prefix), "/")
	}
}
