package coldstart

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	sandboxID = "aaaa0001"
	userID    = "bbbb0001"
	proxyID   = "cccc0001"
	pod       = "stack-x-00001-deployment-7f-abcde"
)

var zero = time.Date(2026, 11, 27, 18, 0, 0, 0, time.UTC)

// at is a time of the request's way, in milliseconds.
func at(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }

// a log is what the programs on the way have written.
type log struct{ audit, containerd, activator, autoscaler, queue string }

// cold is the log of one cold start, by a containerd that writes metadata in one way or
// another.
func cold(sandbox, container func(name string) string, skep bool) (l log) {
	audit := func(ms int, verb, resource, subresource, name string, took int) {
		l.audit += fmt.Sprintf(`{"kind":"Event","verb":%q,"objectRef":{"resource":%q,"subresource":%q,"namespace":"ns","name":%q},"responseStatus":{"code":200},"requestReceivedTimestamp":%q,"stageTimestamp":%q}`+"\n",
			verb, resource, subresource, name, at(ms).Format(time.RFC3339Nano), at(ms+took).Format(time.RFC3339Nano))
	}
	audit(30, "patch", "deployments", "", "stack-x-00001-deployment", 5)
	audit(50, "create", "pods", "", "", 10)
	audit(70, "create", "pods", "binding", pod, 10)
	audit(90, "patch", "pods", "status", pod, 10)
	say := func(ms int, text string) {
		l.containerd += fmt.Sprintf("time=%q level=info msg=%q\n", at(ms).Format(time.RFC3339Nano), text)
	}
	say(95, "RunPodSandbox for "+sandbox("another"))
	say(100, "RunPodSandbox for "+sandbox(pod))
	say(200, "RunPodSandbox for "+sandbox(pod)+` returns sandbox id "`+sandboxID+`"`)
	within := `CreateContainer within sandbox "` + sandboxID + `" for `
	say(210, within+"container "+container("user-container"))
	say(220, within+container("user-container")+` returns container id "`+userID+`"`)
	say(230, `StartContainer for "`+userID+`"`)
	if skep {
		l.containerd += `time=2026-11-27T18:00:00.430Z level=INFO msg="microVM started" container=` + userID + ` snapshot=ready-x ready=there memory_mib=256 duration=190ms of_it.disk=5ms of_it.network=15ms of_it.guest=100ms of_it.furnish=60ms of_guest.spawn=50ms` + "\n"
	}
	say(500, `StartContainer for "`+userID+`" returns successfully`)
	say(510, within+"container "+container("queue-proxy"))
	say(520, within+container("queue-proxy")+` returns container id "`+proxyID+`"`)
	say(530, `StartContainer for "`+proxyID+`"`)
	say(600, `StartContainer for "`+proxyID+`" returns successfully`)
	request := func(ms, latency int, uri string) string {
		return fmt.Sprintf(`%s stdout F {"httpRequest": {"requestMethod": "GET", "requestUrl": "%s", "status": 200, "latency": "%gs", "protocol": "HTTP/1.1"}, "traceId": ""}`+"\n", at(ms).Format(time.RFC3339Nano), uri, float64(latency)/1000)
	}
	l.activator = request(740, 700, "/?id=another") + request(760, 755, "/?input=2&id=mine-1")
	l.autoscaler = at(20).Format(time.RFC3339Nano) + ` stderr F {"severity":"DEBUG","message":"Received stat message: {Key:ns/stack-x-00001 Stat:{PodName:activator-1 AverageConcurrentRequests:1}}"}` + "\n"
	l.queue = request(750, 50, "/?input=2&id=mine-1")
	return l
}

// node writes a log where a node's programs do, behind what they wrote before.
func node(t *testing.T, l log) (Node, func()) {
	t.Helper()
	dir := t.TempDir()
	n := Node{Audit: dir + "/audit.log", Containerd: dir + "/containerd.log", Var: dir + "/var"}
	files := map[string]string{n.Audit: l.audit, n.Containerd: l.containerd,
		n.Var + "/log/pods/knative-serving_activator-1_u/activator/0.log": l.activator, n.Var + "/log/pods/knative-serving_autoscaler-1_u/autoscaler/0.log": l.autoscaler,
		n.Var + "/log/pods/ns_" + pod + "_u/queue-proxy/0.log": l.queue}
	add := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range files { // an earlier one, an hour ago
		add(path, strings.ReplaceAll(text, "T18:", "T17:"))
	}
	return n, func() {
		for path, text := range files {
			add(path, text)
		}
		result := n.Var + "/lib/cni/results/pods-" + sandboxID + "-eth0"
		add(result, "{}")
		if err := os.Chtimes(result, at(160), at(160)); err != nil {
			t.Fatal(err)
		}
	}
}

var request = Request{Namespace: "ns", Revision: "stack-x-00001", ID: "mine-1", Sent: at(0), Answered: at(770)}

// Every millisecond of a cold start is in one part, whichever containerd and runtime.
func TestPath(t *testing.T) {
	old := [2]func(string) string{
		func(name string) string {
			return "&PodSandboxMetadata{Name:" + name + ",Uid:u,Namespace:ns,Attempt:0,}"
		},
		func(name string) string { return "&ContainerMetadata{Name:" + name + ",Attempt:0,}" },
	}
	recent := [2]func(string) string{
		func(name string) string { return `name:"` + name + `" uid:"u" namespace:"ns"` },
		func(name string) string { return `name:"` + name + `"` },
	}
	stock := map[string]int{"ingress": 5, "activator": 15, "autoscaler": 10, "controllers": 30, "scheduler": 20, "kubelet": 20 + 10 + 10, "cni": 60, "sandbox": 40,
		"create": 10, "sidecar": 100, "readiness": 100, "function": 50, "answer": 20}
	for name, tt := range map[string]struct {
		form  [2]func(string) string
		skep  bool
		parts map[string]int
	}{
		"runc":         {old, false, map[string]int{"start": 270}},
		"skep":         {recent, true, map[string]int{"containerd": 10, "shim": 30, "vmm": 100, "files": 60, "process": 70}},
		"skep, of old": {old, true, map[string]int{"containerd": 10, "shim": 30, "vmm": 100, "files": 60, "process": 70}},
	} {
		t.Run(name, func(t *testing.T) {
			n, happen := node(t, cold(tt.form[0], tt.form[1], tt.skep))
			marks, err := n.Mark()
			if err != nil {
				t.Fatal(err)
			}
			happen()
			p, err := marks.Path(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			sum := time.Duration(0)
			for _, part := range p.Parts {
				want, ok := stock[part.Name]
				if !ok {
					want = tt.parts[part.Name]
				}
				if part.Took != time.Duration(want)*time.Millisecond {
					t.Errorf("%s took %v, not %d ms", part.Name, part.Took, want)
				}
				sum += part.Took
			}
			if len(p.Parts) != len(stock)+len(tt.parts) || sum != p.Total || p.Pod != pod {
				t.Errorf("%d parts of %v make %v; pod %s", len(p.Parts), p.Total, sum, p.Pod)
			}
			if tt.skep != (p.Ready == "there" && p.Snapshot == "ready-x" && p.Laps["of_guest.spawn"] == 50*time.Millisecond) {
				t.Errorf("the shim says: %s, %s, %v", p.Ready, p.Snapshot, p.Laps)
			}
		})
	}
}

// What no log has is said, with the log in which it was looked for.
func TestPathLacks(t *testing.T) {
	l := cold(func(string) string { return "" }, func(string) string { return "" }, false)
	l.autoscaler = ""
	f := &found{of: request}
	for line := range strings.Lines(l.audit) {
		f.audit(line)
	}
	_, err := f.path(request)
	if err == nil || !strings.Contains(err.Error(), "the autoscaler's log") || !strings.Contains(err.Error(), "containerd's log") || strings.Contains(err.Error(), "audit") {
		t.Errorf("%v", err)
	}
}

// What ends before it could begin took no time, and the rest is still all there is.
func TestDivide(t *testing.T) {
	parts := divide(at(0), at(100), []boundary{{"ingress", at(10)}, {"activator", at(50)}, {"autoscaler", at(40)}, {"kubelet", at(60)}, {"function", at(120)}})
	want := map[string]int{"ingress": 10, "activator": 40, "autoscaler": 0, "kubelet": 10, "function": 40, "answer": 0}
	for _, p := range parts {
		if p.Took != time.Duration(want[p.Name])*time.Millisecond {
			t.Errorf("%s took %v", p.Name, p.Took)
		}
	}
	if len(parts) != len(want) {
		t.Errorf("%v", parts)
	}
}
