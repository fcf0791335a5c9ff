package coldstart

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// found is what the logs say of a request.
type found struct {
	of        Request
	activator served
	reported  time.Time // the autoscaler knows
	scaled    time.Time
	created   time.Time
	bound     time.Time
	pod       string

	sandbox     call
	sandboxID   string
	network     time.Time
	user, proxy container
	microVM     *microVM // nil: the container is none
	queue       served
}

// served is when a server had a request, and its answer.
type served struct{ began, ended time.Time }

// call is one of the CRI's.
type call struct{ called, returned time.Time }

// container is what the CRI was asked for one.
type container struct {
	id            string
	create, start call
}

// microVM is what a shim says when it has created one.
type microVM struct {
	at              time.Time
	duration        time.Duration
	snapshot, ready string
	laps            map[string]time.Duration
}

// Containers of Knative's pods.
const (
	userContainer  = "user-container"
	proxyContainer = "queue-proxy"
)

// auditEvent is a line of the API server's audit log.
type auditEvent struct {
	Verb      string
	ObjectRef struct{ Resource, Subresource, Namespace, Name string }
	User      struct{ Username string }
	Response  struct{ Code int } `json:"responseStatus"`
	Received  time.Time          `json:"requestReceivedTimestamp"`
	Answered  time.Time          `json:"stageTimestamp"`
}

// audit reads a line of the audit log.
func (f *found) audit(line string) {
	var e auditEvent
	if json.Unmarshal([]byte(line), &e) != nil || e.ObjectRef.Namespace != f.of.Namespace || e.Response.Code >= 300 {
		return
	}
	switch o := e.ObjectRef; {
	case e.Verb == "patch" && o.Resource == "deployments" && o.Name == f.of.Revision+"-deployment" && f.scaled.IsZero():
		f.scaled = e.Received
	case e.Verb == "create" && o.Resource == "pods" && o.Subresource == "" && f.bound.IsZero():
		f.created = e.Answered // the last one before the binding; its name is not told
	case e.Verb == "create" && o.Resource == "pods" && o.Subresource == "binding" && strings.HasPrefix(o.Name, f.of.Revision+"-deployment-") && f.bound.IsZero():
		f.bound, f.pod = e.Answered, o.Name
	}
}

var (
	// containerdLine is one of containerd's log.
	containerdLine = regexp.MustCompile(`^time="([^"]+)" level=info msg=("(?:[^"\\]|\\.)*")`)
	// metadataName is in how a version of containerd writes CRI's metadata:
	// &PodSandboxMetadata{Name:x,…}, name:"x".
	metadataName = regexp.MustCompile(`[Nn]ame:"?([^",}\s]+)`)
	sandboxOf    = regexp.MustCompile(`^CreateContainer within sandbox "([0-9a-f]+)" for `)
	returnsID    = regexp.MustCompile(` returns (?:sandbox|container) id "([0-9a-f]+)"$`)
	startOf      = regexp.MustCompile(`^StartContainer for "([0-9a-f]+)"( returns successfully)?$`)
)

// containerd reads a line of containerd's log, which has the shims' too. The pod's name
// has to be known.
func (f *found) containerd(line string) {
	if strings.Contains(line, `msg="microVM started"`) {
		f.shim(line)
		return
	}
	m := containerdLine.FindStringSubmatch(line)
	if m == nil {
		return
	}
	at, err := time.Parse(time.RFC3339Nano, m[1])
	msg, uerr := strconv.Unquote(m[2])
	if err != nil || uerr != nil {
		return
	}
	id := ""
	if m := returnsID.FindStringSubmatch(msg); m != nil {
		id = m[1]
	}
	switch {
	case strings.HasPrefix(msg, "RunPodSandbox for ") && nameIn(msg) == f.pod:
		if id == "" {
			f.sandbox.called = at
		} else {
			f.sandbox.returned, f.sandboxID = at, id
		}
	case strings.HasPrefix(msg, "CreateContainer within sandbox "):
		if m := sandboxOf.FindStringSubmatch(msg); m == nil || m[1] != f.sandboxID {
			return
		}
		if c := f.container(nameIn(msg)); c != nil && id == "" {
			c.create.called = at
		} else if c != nil {
			c.create.returned, c.id = at, id
		}
	default:
		m := startOf.FindStringSubmatch(msg)
		for _, c := range []*container{&f.user, &f.proxy} {
			if m == nil || m[1] != c.id {
				continue
			}
			if m[2] == "" {
				c.start.called = at
			} else {
				c.start.returned = at
			}
		}
	}
}

func nameIn(msg string) string {
	if m := metadataName.FindStringSubmatch(msg); m != nil {
		return m[1]
	}
	return ""
}

func (f *found) container(name string) *container {
	switch name {
	case userContainer:
		return &f.user
	case proxyContainer:
		return &f.proxy
	}
	return nil
}

// attribute is a name and a value of a line of log/slog's text.
var attribute = regexp.MustCompile(`([\w.]+)=("(?:[^"\\]|\\.)*"|\S*)`)

// shim reads what a shim says when it has created a microVM.
func (f *found) shim(line string) {
	v := microVM{laps: map[string]time.Duration{}}
	of := ""
	for _, m := range attribute.FindAllStringSubmatch(line, -1) {
		name, value := m[1], m[2]
		if text, err := strconv.Unquote(value); err == nil {
			value = text
		}
		d, err := time.ParseDuration(value)
		switch {
		case name == "time":
			v.at, _ = time.Parse(time.RFC3339Nano, value)
		case name == "container":
			of = value
		case name == "snapshot":
			v.snapshot = value
		case name == "ready":
			v.ready = value
		case name == "duration":
			v.duration = d
		case strings.HasPrefix(name, "of_") && err == nil:
			v.laps[name] = d
		}
	}
	if of != "" && of == f.user.id {
		f.microVM = &v
	}
}

// containerLog splits a line that a container wrote from when, and which stream, the
// CRI has noted with it.
func containerLog(line string) (at time.Time, text string, ok bool) {
	when, rest, ok := strings.Cut(line, " ")
	if !ok {
		return at, "", false
	}
	_, rest, _ = strings.Cut(rest, " ") // stdout
	_, text, ok = strings.Cut(rest, " ")
	at, err := time.Parse(time.RFC3339Nano, when)
	return at, text, ok && err == nil
}

// request reads a line of Knative's request logs: that of this request says when its
// server had it.
func (f *found) request(line string, s *served) {
	at, text, ok := containerLog(line)
	if !ok || !strings.Contains(text, f.of.ID) {
		return
	}
	var v struct {
		HTTPRequest struct{ RequestURL, Latency string }
	}
	if json.Unmarshal([]byte(text), &v) != nil || !strings.Contains(v.HTTPRequest.RequestURL, f.of.ID) {
		return
	}
	if took, err := time.ParseDuration(v.HTTPRequest.Latency); err == nil {
		*s = served{at.Add(-took), at}
	}
}

// autoscaler reads a line of its log: the first report of the revision after the request
// was sent.
func (f *found) autoscaler(line string) {
	at, text, ok := containerLog(line)
	if ok && f.reported.IsZero() && at.After(f.of.Sent) && strings.Contains(text, "Received stat message") && strings.Contains(text, "Key:"+f.of.Namespace+"/"+f.of.Revision+" ") {
		f.reported = at
	}
}
