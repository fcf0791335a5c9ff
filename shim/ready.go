package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/image"
)

// readyPlan is how a container may start from a ready snapshot: from a guest in which
// its process runs already.
type readyPlan struct {
	process guest.Process // as it runs there
	probe   probe
	key     string // of the containers that can share the snapshot
}

// planReady says how a container with this process may start from a ready snapshot, or
// why it may not. The process may have an input: it gets nothing of it until it runs
// from the snapshot.
func planReady(c container, process guest.Process, img image.Image) (p *readyPlan, why string, err error) {
	p = &readyPlan{process: process}
	p.process.Env = slices.DeleteFunc(slices.Clone(process.Env), func(v string) bool { return strings.HasPrefix(v, "HOSTNAME=") })
	p.probe = probeOf(c, img.Config)
	switch use := c.Settings.Snapshot; {
	case use == snapshotBase, use == snapshotOff:
		return nil, fmt.Sprintf("annotation %s is %s", annotationSnapshot, use), nil
	case process.TTY:
		return nil, "its process has a terminal", nil
	case p.probe.none():
		return nil, fmt.Sprintf("nothing says when it is ready: no annotation %s, %s or %s, no PORT, and not one port that its image exposes", annotationPort, annotationPath, annotationCommand), nil
	case use == snapshotAuto:
		if extra := extraEnv(c.Process.Env, img.Config.Env); len(extra) > 0 {
			return nil, fmt.Sprintf("its environment may hold secrets (%s); annotation %s: ready says that it does not", strings.Join(extra, ", "), annotationSnapshot), nil
		}
	}
	p.key, err = readyKey(c, p)
	return p, "", err
}

// probeOf says how a container's readiness is found out: by what its annotations say,
// or else at the port that is known.
func probeOf(c container, img image.Config) probe {
	p := probe{Port: c.Settings.Port, Path: c.Settings.ReadyPath, Command: c.Settings.ReadyCmd}
	if p.Port == 0 {
		p.Port = portOf(c.Process.Env)
	}
	if p.Port == 0 {
		p.Port = onlyPort(img.Exposed)
	}
	if p.Port == 0 {
		p.Path = ""
	}
	return p
}

// portOf is what the variable PORT says; 0 without.
func portOf(env []string) (port int) {
	for _, v := range env {
		if s, ok := strings.CutPrefix(v, "PORT="); ok {
			port, _ = number(s, 1, 65535)
		}
	}
	return port
}

// onlyPort is the port of TCP that an image exposes; 0 if there is none, or more
// than one.
func onlyPort(exposed []string) (port int) {
	for _, e := range exposed {
		number, proto, _ := strings.Cut(e, "/")
		n, err := strconv.Atoi(number)
		if err != nil || proto != "" && proto != "tcp" {
			continue
		}
		if port != 0 {
			return 0
		}
		port = n
	}
	return port
}

// tellsNothing are variables that are no secrets, whatever they say.
var tellsNothing = regexp.MustCompile(`^(PATH|HOSTNAME|PORT|K_[A-Z0-9_]+)$`)

// aService are variables by which Kubernetes tells where its services are. Others may
// have such names: what they say has to look like that, too.
var aService = regexp.MustCompile(`^[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// extraEnv lists the names of variables that neither the image has nor everybody: the
// specification does not say which of them are secret.
func extraEnv(env, ofImage []string) (names []string) {
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		if !slices.Contains(ofImage, v) && !tellsNothing.MatchString(name) && !(aService.MatchString(name) && isPlace(value)) {
			names = append(names, name)
		}
	}
	return names
}

// isPlace says that a text is an address, a port, a protocol, or protocol://address:port.
func isPlace(s string) bool {
	if _, err := number(s, 0, 65535); err == nil || slices.Contains([]string{"tcp", "udp", "sctp"}, s) {
		return true
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	proto, at, ok := strings.Cut(s, "://")
	_, err := netip.ParseAddrPort(at)
	return ok && err == nil && slices.Contains([]string{"tcp", "udp", "sctp"}, proto)
}

// byName sorts variables: the kubelet gives those of services in an order that no two
// pods share. Of one that is there twice the last still is.
func byName(env []string) []string {
	return slices.SortedStableFunc(slices.Values(env), func(a, b string) int {
		name, _, _ := strings.Cut(a, "=")
		other, _, _ := strings.Cut(b, "=")
		return strings.Compare(name, other)
	})
}

// readyKey is of all that the guest of a ready snapshot was told, but for what its
// clones are told anew.
func readyKey(c container, p *readyPlan) (string, error) {
	type told struct {
		mount
		Digest string
	}
	start, err := c.startOf(guest.Names{})
	if err != nil {
		return "", err
	}
	v := struct {
		Start   guest.Start
		Process guest.Process
		Probe   probe
		Mounts  []told
	}{start, p.process, p.probe, nil}
	v.Process.Env = byName(v.Process.Env)
	for _, m := range c.Mounts {
		t := told{mount: m}
		t.Source = "" // which has the pod's id in it
		var err error
		switch {
		case m.Source == "", m.Return, slices.Contains(names, m.Path):
		case isLate(m):
			t.Digest, err = namesDigest(m.Source)
		default:
			t.Digest, err = contentDigest(m.Source)
		}
		if err != nil {
			return "", fmt.Errorf("mount at %s: %w", m.Path, err)
		}
		v.Mounts = append(v.Mounts, t)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
