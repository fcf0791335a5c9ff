// Package coldstart says where the time of a cold start through Knative went: of one
// request at a service that had no pod, by what the programs on its way have logged.
// All of them run on one machine, so that their times are of one clock. Each boundary
// between two parts has one source:
//
//	ingress      the activator has the request          its request log: end less latency
//	activator    the autoscaler knows of it             the autoscaler's log
//	autoscaler   the Deployment is to have a pod        the API server's audit log: request
//	controllers  the pod exists                         audit log: answer
//	scheduler    the pod has a node                     audit log: answer
//	kubelet      the sandbox is asked for               containerd's log
//	cni          the pod has its network                the result that CNI's library keeps: when it was written
//	sandbox      the sandbox is there                   containerd's log
//	kubelet      the container is asked for             containerd's log
//	create       it is there                            containerd's log
//	kubelet      its start is asked for                 containerd's log
//	containerd   the shim begins to create it           the shim's log: end less duration
//	shim, vmm, files  the shim has created it           the shim's log, which has these
//	process      it has started                         containerd's log
//	sidecar      queue-proxy has started                containerd's log
//	readiness    queue-proxy has the request            its request log: end less latency
//	function     queue-proxy has the answer             its request log
//	answer       the client has it                      the client
//
// Under a runtime other than skep's, containerd, shim, vmm, files and process are one:
// start. A part that comes more than once is the sum. The parts add up to the whole: who
// waits for whom is in none but the one at whose end the wait is over, and what happens
// meanwhile elsewhere is in none.
package coldstart

import (
	"errors"
	"fmt"
	"time"
)

// Names of the parts, in the order of the request's way.
var Names = []string{"ingress", "activator", "autoscaler", "controllers", "scheduler", "kubelet", "cni", "sandbox",
	"create", "containerd", "shim", "vmm", "files", "process", "start", "sidecar", "readiness", "function", "answer"}

// Path is where the time of a request went.
type Path struct {
	Total time.Duration `json:"total_ns"`
	Parts []Part        `json:"parts"`
	Pod   string        `json:"pod"`
	// What the shim says of a microVM: the snapshot that it came from, whether its process
	// ran in there, and what of vmm and others took how long.
	Snapshot string                   `json:"snapshot,omitempty"`
	Ready    string                   `json:"ready,omitempty"`
	Laps     map[string]time.Duration `json:"laps_ns,omitempty"`
}

// Part is a part of the whole; those that a path does not have are left out.
type Part struct {
	Name string        `json:"name"`
	Took time.Duration `json:"ns"`
}

// Of is what parts took together.
func (p Path) Of(names ...string) (sum time.Duration) {
	for _, part := range p.Parts {
		for _, name := range names {
			if part.Name == name {
				sum += part.Took
			}
		}
	}
	return sum
}

// Request is the one that is looked for.
type Request struct {
	Namespace, Revision string
	ID                  string // is in its URI, and in that of no other
	Sent, Answered      time.Time
}

// boundary is the end of a part.
type boundary struct {
	part string
	at   time.Time
}

// divide makes parts of the time between sent and answered. A boundary that lies before
// the one before it ends a part that took no time.
func divide(sent, answered time.Time, all []boundary) (parts []Part) {
	took := map[string]time.Duration{}
	last := sent
	for _, b := range append(all, boundary{"answer", answered}) {
		at := b.at
		if at.Before(last) {
			at = last
		}
		if at.After(answered) {
			at = answered
		}
		took[b.part] += at.Sub(last)
		last = at
	}
	for _, name := range Names {
		for _, b := range append(all, boundary{part: "answer"}) {
			if b.part == name {
				parts = append(parts, Part{name, took[name]})
				break
			}
		}
	}
	return parts
}

// path composes the parts of what the logs say.
func (f *found) path(r Request) (Path, error) {
	p := Path{Total: r.Answered.Sub(r.Sent), Pod: f.pod}
	all := []boundary{
		{"ingress", f.activator.began}, {"activator", f.reported}, {"autoscaler", f.scaled}, {"controllers", f.created}, {"scheduler", f.bound},
		{"kubelet", f.sandbox.called}, {"cni", f.network}, {"sandbox", f.sandbox.returned},
		{"kubelet", f.user.create.called}, {"create", f.user.create.returned}, {"kubelet", f.user.start.called},
	}
	if m := f.microVM; m != nil {
		began := m.at.Add(-m.duration)
		vmm, files := m.laps["of_it.guest"], m.laps["of_it.furnish"]
		all = append(all, boundary{"containerd", began}, boundary{"shim", m.at.Add(-files - vmm)}, boundary{"vmm", m.at.Add(-files)}, boundary{"files", m.at},
			boundary{"process", f.user.start.returned})
		p.Snapshot, p.Ready, p.Laps = m.snapshot, m.ready, m.laps
	} else {
		all = append(all, boundary{"start", f.user.start.returned})
	}
	all = append(all, boundary{"sidecar", f.proxy.start.returned}, boundary{"readiness", f.queue.began}, boundary{"function", f.queue.ended})
	var errs []error
	for _, b := range all {
		if b.at.IsZero() {
			errs = append(errs, fmt.Errorf("the end of %s is in no log (%s)", b.part, sources[b.part]))
		}
	}
	if errs != nil {
		return p, errors.Join(errs...)
	}
	p.Parts = divide(r.Sent, r.Answered, all)
	return p, nil
}

// sources say where the end of a part is looked for.
var sources = map[string]string{
	"ingress": "the activator's request log", "activator": "the autoscaler's log, at level debug", "autoscaler": "the API server's audit log",
	"controllers": "the API server's audit log", "scheduler": "the API server's audit log", "kubelet": "containerd's log", "cni": "CNI's results",
	"sandbox": "containerd's log", "create": "containerd's log", "process": "containerd's log", "start": "containerd's log", "sidecar": "containerd's log",
	"readiness": "queue-proxy's request log", "function": "queue-proxy's request log",
}
