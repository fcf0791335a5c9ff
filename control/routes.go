package control

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/skep-dev/skep/api"
)

// route is a call of the API: what serves it, and what the API's document says of it
// (openapi.json, which a test makes of these and compares). Who adds one adds it here,
// and runs `go test ./control -run OpenAPI -update`.
type route struct {
	method, path string
	id           string // of the operation in the document: what clients call it
	about        string // a line
	handle       handler
	query        []param // the only names that a query may have
	takes        any     // of the body's type; nil: there is none
	gives        any     // of the answer's type; nil: an empty object
	as           string  // media type of the answer; "": JSON
	fails        []int   // statuses of its errors, beside those of all (400, 401, 405, 500)
}

// param is one name of a query.
type param struct {
	name, kind, about string
}

// Kinds of parameters.
const (
	aText     = "text"
	aBool     = "bool"
	aTime     = "time"     // RFC 3339
	aDuration = "duration" // 1.5s
	aLimit    = "limit"    // a number from 0 to maxPage
	aTail     = "tail"     // a number from 0 to maxTail
	aStatus   = "status"   // 504, or 5xx
	aFailure  = "failure"
	aStart    = "start"
	aKinds    = "kinds"     // kinds of events, with commas between
	aPlace    = "place of " // and the name of a list: where a page of it has ended
	aRecord   = "record"    // the id of one
)

const (
	ndjson      = "application/x-ndjson"
	eventStream = "text/event-stream"
	plainText   = "text/plain; charset=utf-8"
	svgImage    = "image/svg+xml"
)

var ofLimit = param{"limit", aLimit, "at most so many; the answer's Link header, of relation next, leads to those after them (0: all, of invocations 100)"}

// pages are the parameters of a list that may be long, beside others.
func pages(of string, more ...param) []param {
	return append(more, ofLimit, param{"after", aPlace + of, "those after the page that ended there, as its Link header says"})
}

var ofFunction = param{"function", aText, "only this function's"}

// changes are the statuses of what changes a function.
var changes = []int{http.StatusNotFound, http.StatusRequestEntityTooLarge}

// ofStore are the statuses of what is asked of the object store.
var ofStore = []int{http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusBadGateway, http.StatusServiceUnavailable}

// ofResult are the statuses of what experiments left.
var ofResult = []int{http.StatusNotFound, http.StatusUnprocessableEntity}

// table is the API.
func (s *Server) table() []route {
	return []route{
		{method: "GET", path: "/v1/version", id: "getVersion", about: "what the daemon is", handle: s.version, gives: api.Version{}},
		{method: "GET", path: "/v1/openapi.json", id: "getDocument", about: "this document", handle: s.document, gives: json.RawMessage{}},
		{method: "GET", path: "/v1/functions", id: "listFunctions", about: "all functions by name, without values of their environments", handle: s.functions, query: pages(ofFunctions), gives: []api.FunctionStatus{}},
		{method: "PUT", path: "/v1/functions/{name}", id: "deployFunction", about: "deploy: events, then the function or what went wrong, a line each", handle: s.deploy, takes: api.Function{}, gives: api.DeployLine{}, as: ndjson, fails: changes},
		{method: "PATCH", path: "/v1/functions/{name}", id: "setFunction", about: "change what a JSON merge patch names; answers as a deploy", handle: s.set, takes: json.RawMessage{}, gives: api.DeployLine{}, as: ndjson, fails: changes},
		{method: "GET", path: "/v1/functions/{name}", id: "getFunction", about: "one function with its instances, snapshots and newest invocations", handle: s.function,
			query: []param{{"env", aBool, "tell the values of its environment"}}, gives: api.FunctionDetail{}, fails: []int{http.StatusNotFound}},
		{method: "DELETE", path: "/v1/functions/{name}", id: "removeFunction", about: "drain it, and delete it with its snapshots and logs", handle: s.remove, fails: []int{http.StatusNotFound, http.StatusServiceUnavailable}},
		{method: "GET", path: "/v1/functions/{name}/revisions", id: "listRevisions", about: "what is kept of its history, newest first", handle: s.revisions, gives: []api.Revision{}, fails: []int{http.StatusNotFound}},
		{method: "POST", path: "/v1/functions/{name}/rollback", id: "rollbackFunction", about: "put an earlier revision into force; answers as a deploy", handle: s.rollback, takes: api.RollbackRequest{}, gives: api.DeployLine{}, as: ndjson, fails: changes},
		{method: "GET", path: "/v1/functions/{name}/logs", id: "getLogs", about: "what it wrote: time, instance, stream, invocation and text, a line each", handle: s.logs, as: plainText, gives: "",
			query: []param{{"tail", aTail, "the last so many lines (0: all)"}, {"follow", aBool, "go on as more is written"}, {"since", aTime, "not before then"},
				{"instance", aText, "of this one"}, {"invocation", aText, "of this one, where concurrency is 1"}}, fails: []int{http.StatusNotFound}},
		{method: "POST", path: "/v1/functions/{name}/exec", id: "execInFunction", about: "an upgrade to " + api.ExecProtocol + ": the agent of the instance that was used last", handle: s.execFunction, as: upgraded,
			fails: []int{http.StatusNotFound, http.StatusConflict, http.StatusUpgradeRequired, http.StatusServiceUnavailable}},
		{method: "GET", path: "/v1/instances", id: "listInstances", about: "running instances, oldest first", handle: s.instances, query: pages(ofInstances, ofFunction), gives: []api.Instance{}, fails: []int{http.StatusNotFound}},
		{method: "POST", path: "/v1/instances/{id}/exec", id: "execInInstance", about: "an upgrade to " + api.ExecProtocol + ": the agent of this instance", handle: s.execInstance, as: upgraded,
			fails: []int{http.StatusNotFound, http.StatusConflict, http.StatusUpgradeRequired, http.StatusServiceUnavailable}},
		{method: "GET", path: "/v1/snapshots", id: "listSnapshots", about: "published snapshots, newest first", handle: s.snapshots, query: pages(ofSnapshots, ofFunction), gives: []api.Snapshot{}, fails: []int{http.StatusNotFound}},
		{method: "POST", path: "/v1/snapshots", id: "createSnapshot", about: "boot an instance and snapshot it", handle: s.createSnapshot, takes: api.SnapshotRequest{}, gives: api.Snapshot{},
			fails: []int{http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity, http.StatusServiceUnavailable, http.StatusGatewayTimeout}},
		{method: "GET", path: "/v1/snapshots/{id}", id: "getSnapshot", about: "its manifest, as the store has it", handle: s.snapshot, gives: json.RawMessage{}, fails: []int{http.StatusNotFound}},
		{method: "DELETE", path: "/v1/snapshots/{id}", id: "removeSnapshot", about: "delete it; instances that run from it go on", handle: s.removeSnapshot, fails: []int{http.StatusNotFound}},
		{method: "GET", path: "/v1/snapshots/{id}/memory", id: "getSnapshotMemory", about: "what is known of how guests use its memory", handle: s.snapshotMemory,
			query: []param{{"pages", aBool, "with a map of the pages"}}, gives: api.SnapshotMemory{}, fails: []int{http.StatusNotFound}},
		{method: "POST", path: "/v1/snapshots/{id}/verify", id: "verifySnapshot", about: "read all of it and compare digests", handle: s.verifySnapshot, fails: []int{http.StatusNotFound, http.StatusConflict}},
		{method: "POST", path: "/v1/snapshots/{id}/push", id: "pushSnapshot", about: "store it, with its root disk, in the object store", handle: s.pushSnapshot, gives: api.PushedSnapshot{}, fails: ofStore},
		{method: "GET", path: "/v1/store/snapshots", id: "listRemoteSnapshots", about: "those in the object store, newest first, and whether a start here could use them", handle: s.remoteSnapshots,
			query: []param{ofFunction}, gives: []api.RemoteSnapshot{}, fails: ofStore},
		{method: "DELETE", path: "/v1/store/snapshots/{function}/{id}", id: "removeRemoteSnapshot", about: "take it out of the object store", handle: s.removeRemoteSnapshot, fails: ofStore},
		{method: "POST", path: "/v1/store/pull", id: "pullSnapshot", about: "bring one here from the object store", handle: s.pullSnapshot, takes: api.PullRequest{}, gives: api.Snapshot{},
			fails: append([]int{http.StatusRequestEntityTooLarge}, ofStore...)},
		{method: "POST", path: "/v1/store/gc", id: "collectStore", about: "delete from the object store what no snapshot needs", handle: s.collectStore, takes: api.CollectRequest{}, gives: api.Collected{},
			fails: append([]int{http.StatusRequestEntityTooLarge}, ofStore...)},
		{method: "POST", path: "/v1/store/verify", id: "verifyStore", about: "read the snapshots in the object store, and compare digests", handle: s.verifyStore,
			query: []param{ofFunction, {"quick", aBool, "read no content"}}, gives: api.StoreVerified{}, fails: ofStore},
		{method: "GET", path: "/v1/store/usage", id: "getStoreUsage", about: "what the snapshots in the object store take", handle: s.storeUsage, query: []param{ofFunction}, gives: api.StoreUsage{}, fails: ofStore},
		{method: "GET", path: "/v1/events", id: "followEvents", about: "what happens, while it happens: server-sent events, the data of each an Event", handle: s.events, as: eventStream, gives: api.Event{},
			query: []param{ofFunction, {"kind", aKinds, "only of these kinds"}, {"after", aText, "those after the event with this id; a Last-Event-ID header goes before it"}}},
		{method: "GET", path: "/v1/usage", id: "getUsage", about: "memory of the host and of each instance, and who waits", handle: s.usage, gives: api.Usage{}},
		{method: "POST", path: "/v1/sessions", id: "createSession", about: "a ticket with which one browser is let in to the page, once", handle: s.createSession, gives: api.Ticket{}},
		{method: "GET", path: "/v1/images", id: "listImages", about: "root disks in the store", handle: s.images, gives: []api.Image{}},
		{method: "POST", path: "/v1/images/prune", id: "pruneImages", about: "remove, and answer, those that nothing needs", handle: s.pruneImages, gives: []api.Image{}, fails: []int{http.StatusConflict}},
		{method: "GET", path: "/v1/experiments", id: "listExperiments", about: "directories of experiments' results, below results_dir, newest first", handle: s.experiments, query: pages(ofExperiments), gives: []api.Experiment{}},
		{method: "GET", path: "/v1/experiments/{name}/report", id: "getReport", about: "what was made of an experiment's samples: findings, tables, which figures", handle: s.report, gives: api.Report{}, fails: ofResult},
		{method: "GET", path: "/v1/experiments/{name}/figures/{figure}", id: "getFigure", about: "a figure of a report", handle: s.figure, as: svgImage, gives: "",
			query: []param{{"narrow", aBool, "drawn for a narrow page"}}, fails: ofResult},
		{method: "GET", path: "/v1/invocations", id: "listInvocations", about: "records of invocations, newest first", handle: s.invocations, gives: []api.Invocation{},
			query: []param{
				ofLimit, {"after", aRecord, "those older than the record with this id, as the Link header of the page before says"},
				ofFunction, {"since", aTime, "that arrived then or later"}, {"until", aTime, "that arrived before then"},
				{"status", aStatus, "with this HTTP status, or of its class"}, {"failure", aFailure, "whose doing it is that they failed"}, {"start", aStart, "how their instance started"},
				{"instance", aText, "that it answered"}, {"slower_than", aDuration, "that took longer in all"}, {"id", aText, "with this id"},
			}},
		{method: "GET", path: "/v1/invocations/{id}", id: "getInvocation", about: "one record", handle: s.invocation, gives: api.Invocation{}, fails: []int{http.StatusNotFound}},
	}
}

// upgraded marks a call whose success is another protocol.
const upgraded = "101"

// routes registers the table, and what answers beside it.
func (s *Server) routes() {
	methods := map[string][]string{}
	for _, rt := range s.table() {
		s.mux.Handle(rt.method+" "+rt.path, s.wrap(rt.strict))
		methods[rt.path] = append(methods[rt.path], rt.method)
		if rt.method == http.MethodGet {
			methods[rt.path] = append(methods[rt.path], http.MethodHead)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		methods[path] = []string{http.MethodGet, http.MethodHead}
	}
	for path, allowed := range methods {
		if path == "/metrics" && s.o.Metrics == nil {
			continue
		}
		slices.Sort(allowed)
		s.mux.Handle(path, s.wrap(notAllowed(allowed)))
	}
	if s.o.Invoke != nil {
		s.mux.Handle("/v1/functions/{name}/invoke/{path...}", s.wrap(s.invoke))
	}
	if s.o.Metrics != nil {
		s.mux.Handle("GET /metrics", s.o.Metrics)
	}
	s.mux.Handle("GET /healthz", Health(s.o.Node))
	s.mux.Handle("GET /readyz", Health(s.o.Node))
	s.mux.Handle("/", s.wrap(s.unknown))
}

// strict refuses a query that the route does not have, and a body where none is taken.
func (rt route) strict(w http.ResponseWriter, r *http.Request) error {
	names := make([]string, len(rt.query))
	for i, p := range rt.query {
		names[i] = p.name
	}
	if _, err := queryOf(r, names...); err != nil {
		return err
	}
	return rt.handle(w, r)
}
