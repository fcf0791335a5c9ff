package shim

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/memory"
	"github.com/skep-dev/skep/shim/journal"
	"github.com/skep-dev/skep/shim/rootdisk"
)

// Every container that was to be a microVM leaves a record of its start, and one of
// its end, where those of all shims are (package journal). They are written off the
// way of whatever they are about.

// labelLimit is how long containerd may take to say which labels a pod has, journalLimit
// what a record may take to be written.
const (
	labelLimit   = time.Second
	journalLimit = time.Second
)

// beginning is what the record of a start needs to know of its beginning.
type beginning struct {
	id      string // of the record
	at      time.Time
	trace   string
	journal journal.Journal
	disks   rootdisk.Maker
	writing *sync.WaitGroup // all that is written
}

func (o *opener) beginning(at time.Time) beginning {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return beginning{id: hex.EncodeToString(id[:]), at: at, journal: journal.Of(o.cfg.DataDir), disks: rootdisk.Maker{Address: o.address, Namespace: o.namespace}, writing: &o.writing}
}

// recorded writes the record of the start, once; err is why it has failed. It may be
// called when the guest has come to rest, whose figures are in there, or when it ends.
func (r *room) recorded(err error) {
	r.recording.Do(func() {
		rec := r.record(err)
		r.written = make(chan struct{})
		r.begun.writing.Go(func() {
			defer close(r.written)
			rec.Function = revisionOf(r.id, r.spec, r.labels())
			r.enter(journal.Entry{Start: &rec})
		})
	})
}

// labels are the pod's. Without them its name has to do.
func (r *room) labels() map[string]string {
	sandbox := r.spec.Annotations[annotationSandbox]
	if sandbox == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.events.ctx), labelLimit)
	defer cancel()
	labels, err := r.begun.disks.Labels(ctx, sandbox)
	if err != nil {
		r.log.Debug("asking for the pod's labels", "error", err)
	}
	return labels
}

// recordedEnd writes the record of the end, after that of the start.
func (r *room) recordedEnd(exit guest.ProcessExit, at time.Time) {
	r.recorded(nil)
	r.begun.writing.Go(func() {
		<-r.written
		r.enter(journal.Entry{ID: r.begun.id, Exit: &api.ContainerExit{Code: exit.Code, OutOfMemory: exit.OOM, Time: at.UTC()}})
	})
}

func (r *room) enter(e journal.Entry) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.events.ctx), journalLimit)
	defer cancel()
	if err := r.begun.journal.Append(ctx, e); err != nil {
		r.log.Warn("a record is lost", "error", err)
	}
}

// record is that of the start, but for the revision.
func (r *room) record(err error) api.Invocation {
	a := r.spec.Annotations
	rec := api.Invocation{ID: r.begun.id, Instance: r.wanted.ID, Time: r.begun.at.UTC(), Trace: r.begun.trace,
		Container: &api.Container{ID: r.id, Name: a[annotationName], Pod: a[annotationPod], Namespace: cmp.Or(a[annotationNamespace], r.begun.disks.Namespace),
			Image: r.wanted.Disk.Digest, Ready: r.why, Steps: r.steps.all()}}
	if err != nil {
		rec.Failure, rec.Error = api.FailurePlatform, err.Error()
	}
	g := r.last.Load()
	if g == nil {
		rec.Phases.Total = r.took()
		rec.Phases.Queue = rec.Phases.Total
		return rec
	}
	rec.Start, rec.Snapshot, rec.Container.Made = api.StartRestore, g.Snapshot, g.Made
	if g.Snapshot == "" {
		rec.Start = api.StartBoot
	}
	rec.Phases = phasesOf(g.Phases(), &r.steps, r.took())
	g.WithSession(func(s memory.Session) {
		m := s.Stats()
		rec.Memory = &m
	})
	return rec
}

// phasesOf are a start's: those of its last guest, and of the steps that are one. All
// else, which is containerd's time between its calls too, has waited.
func phasesOf(p api.Phases, s *steps, total time.Duration) api.Phases {
	p.Slot = s.took("network")
	p.Clone += s.took("clone")
	p.Init += s.took("furnish", "process")
	p.Process = s.took("ready", "answer")
	sum := time.Duration(0)
	p.Each(func(_ string, d time.Duration) { sum += d })
	p.Queue, p.Total = max(0, total-sum), total
	return p
}

// took is how long the start has, or had, taken.
func (r *room) took() time.Duration {
	if d := r.startTook.Load(); d > 0 {
		return time.Duration(d)
	}
	return time.Since(r.begun.at)
}

// revisionOf is what a container is a container of, as a request is of a function:
// Knative's revision, the revision of a Deployment that its ReplicaSet is, or else the
// pod or container itself.
func revisionOf(id string, spec *specs.Spec, labels map[string]string) string {
	if spec.Process != nil {
		for _, v := range spec.Process.Env {
			if name, ok := strings.CutPrefix(v, knativeRevision); ok && name != "" {
				return name
			}
		}
	}
	pod := spec.Annotations[annotationPod]
	if hash := labels["pod-template-hash"]; hash != "" {
		if before, _, ok := strings.Cut(pod, "-"+hash+"-"); ok {
			return before + "-" + hash
		}
	}
	return cmp.Or(pod, id)
}
