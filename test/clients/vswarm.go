package clients

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Invocation is a run of vSwarm's invoker: calls of gRPC, one after the other to each
// of its hosts in turn, whether or not the one before is answered.
type Invocation struct {
	Invoker string // the program
	Hosts   []string
	Port    int // of all of them
	PerSec  int
	Seconds int
}

// Invoked is what the invoker says of it.
type Invoked struct {
	Issued, Completed int
	Failed            []string // what it says of each that failed
}

var invoked = regexp.MustCompile(`Issued / completed requests: (\d+), (\d+)`)

// Invoke runs it. What is under way at its end is neither completed nor failed.
func (p Place) Invoke(ctx context.Context, v Invocation) (done Invoked, err error) {
	var endpoints []map[string]any
	for _, h := range v.Hosts {
		endpoints = append(endpoints, map[string]any{"hostname": h, "eventing": false})
	}
	if err := p.write("endpoints.json", endpoints); err != nil {
		return done, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(v.Seconds)*time.Second+time.Minute)
	defer cancel()
	out, err := p.run(ctx, v.Invoker, "-endpointsFile", "endpoints.json", "-port", strconv.Itoa(v.Port), "-rps", strconv.Itoa(v.PerSec), "-time", strconv.Itoa(v.Seconds))
	if err != nil {
		return done, err
	}
	m := invoked.FindStringSubmatch(out)
	if m == nil {
		return done, fmt.Errorf("the invoker does not say how many requests it has issued: %s", out)
	}
	done.Issued, _ = strconv.Atoi(m[1])
	done.Completed, _ = strconv.Atoi(m[2])
	for line := range strings.Lines(out) {
		if strings.Contains(line, "Failed to invoke") {
			done.Failed = append(done.Failed, strings.TrimSpace(line))
		}
	}
	return done, nil
}

// Whole says what is wrong with the run: a request that failed, or more that are under
// way at its end than one to each host.
func (v Invocation) Whole(done Invoked) error {
	if len(done.Failed) > 0 || done.Completed == 0 || done.Issued-done.Completed > len(v.Hosts) {
		return fmt.Errorf("of %d requests %d were completed, and %d failed: %s", done.Issued, done.Completed, len(done.Failed), strings.Join(done.Failed, "\n"))
	}
	return nil
}
