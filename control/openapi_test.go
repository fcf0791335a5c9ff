package control

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/skep-dev/skep/api"
)

var update = flag.Bool("update", false, "write openapi.json anew")

// documentVersion is that of the API: the first number is the path's, the second rises
// with what is added.
const documentVersion = "1.4"

// TestOpenAPI compares openapi.json with the table of routes and package api's types.
func TestOpenAPI(t *testing.T) {
	b, err := json.MarshalIndent(describe(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, '\n')
	if *update {
		if err := os.WriteFile("openapi.json", b, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(b, document) {
		t.Errorf("control/openapi.json is not what routes.go and package api say (first difference: %s).\n"+
			"A call or a type of the API was changed: run `go test ./control -run OpenAPI -update` and commit what it writes.\n"+
			"A new call is a line of table() in routes.go; a new type of answers needs nothing else.", difference(b, document))
	}
}

func difference(want, got []byte) string {
	a, b := strings.Split(string(want), "\n"), strings.Split(string(got), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("line %d has %q, want %q", i+1, strings.TrimSpace(b[i]), strings.TrimSpace(a[i]))
		}
	}
	return "one of the two ends early"
}

type object = map[string]any

// describe makes the document.
func describe(t *testing.T) object {
	s := newSchemas(t)
	paths := map[string]object{}
	for _, rt := range (&Server{}).table() {
		if paths[rt.path] == nil {
			paths[rt.path] = object{}
		}
		paths[rt.path][strings.ToLower(rt.method)] = s.operation(rt)
	}
	for path, about := range map[string]string{
		"/healthz": "200 unless the daemon has to be started anew; needs no token",
		"/readyz":  "200 when it takes requests; needs no token",
	} {
		text := object{"content": object{"text/plain": object{"schema": object{"type": "string"}}}}
		paths[path] = object{"get": object{
			"operationId": "get" + strings.ToUpper(path[1:2]) + path[2:], "summary": about, "security": []any{},
			"responses": object{"200": with(text, "it is"), "503": with(text, "it is not, and why")},
		}}
	}
	paths["/metrics"] = object{"get": object{"operationId": "getMetrics", "summary": "Prometheus' text",
		"responses": object{"200": with(object{"content": object{"text/plain": object{"schema": object{"type": "string"}}}}, "metrics"), "401": ref("responses", "Problem")}}}
	paths["/v1/functions/{name}/invoke/{path}"] = s.invoke()
	s.of(reflect.TypeFor[api.Event]())
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title": "skep", "version": documentVersion,
			"description": "The control API of skep's daemon. It is on the daemon's unix socket, and over TCP, where control_listen says, with a bearer token. " +
				"Unknown names in queries and bodies are refused. What a path of /v1 answers may gain fields, and loses none. Times are RFC 3339, fields named _ns, _us are integers of that unit.",
			"license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"security": []any{object{"token": []any{}}},
		"paths":    paths,
		"components": object{
			"schemas":         s.named,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}},
			"responses": object{"Problem": object{"description": "what failed, on which thing, why, and what to do (RFC 9457)",
				"content": object{api.ProblemType: object{"schema": ref("schemas", "Error")}}}},
		},
	}
}

func with(o object, description string) object {
	o = maps.Clone(o)
	o["description"] = description
	return o
}

func ref(kind, name string) object { return object{"$ref": "#/components/" + kind + "/" + name} }

var inPath = regexp.MustCompile(`\{(\w+)\}`)

func (s *schemas) operation(rt route) object {
	op := object{"operationId": rt.id, "summary": rt.about}
	params := []any{}
	for _, m := range inPath.FindAllStringSubmatch(rt.path, -1) {
		params = append(params, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, p := range rt.query {
		params = append(params, object{"name": p.name, "in": "query", "description": p.about, "schema": paramSchema(p.kind)})
	}
	if rt.id == "followEvents" {
		params = append(params, object{"name": "Last-Event-ID", "in": "header", "schema": object{"type": "string", "maxLength": maxEventID}})
	}
	if len(params) > 0 {
		op["parameters"] = params
	}
	if rt.takes != nil {
		mt := "application/json"
		schema := s.of(reflect.TypeOf(rt.takes))
		if rt.method == http.MethodPatch {
			mt, schema = "application/merge-patch+json", s.change()
		}
		op["requestBody"] = object{"required": true, "content": object{mt: object{"schema": schema}}}
	}
	responses := object{}
	for _, status := range append([]int{400, 401, 500}, rt.fails...) {
		responses[strconv.Itoa(status)] = ref("responses", "Problem")
	}
	if rt.as == upgraded {
		responses["101"] = object{"description": "the connection is " + api.ExecProtocol + " from here on"}
	} else {
		responses["200"] = s.success(rt)
	}
	op["responses"] = responses
	return op
}

func (s *schemas) success(rt route) object {
	var schema any = object{"type": "object", "maxProperties": 0}
	if rt.gives != nil {
		schema = s.of(reflect.TypeOf(rt.gives))
	}
	media := object{"schema": schema}
	mt, _, _ := strings.Cut(rt.as, ";")
	switch rt.as {
	case "":
		mt = "application/json"
	case ndjson, eventStream: // of which a schema describes one item
		media = object{"schema": object{"type": "string"}, "x-item-schema": schema}
	}
	out := object{"description": "it is done", "content": object{mt: media}}
	if slices.ContainsFunc(rt.query, func(p param) bool { return p.kind == aLimit }) {
		out["headers"] = object{"Link": object{"description": "where the next page is, of relation next (RFC 8288)", "schema": object{"type": "string"}}}
	}
	return out
}

// invoke is the call that is every method's, and answers as the function does.
func (s *schemas) invoke() object {
	out := object{}
	for _, method := range []string{"get", "put", "post", "delete", "options", "head", "patch"} {
		op := object{
			"operationId": "invoke" + strings.ToUpper(method[:1]) + method[1:],
			"summary":     "to the function, as the gateway would; the path goes on to the request's end, with its query",
			"parameters": []any{
				object{"name": "name", "in": "path", "required": true, "schema": object{"type": "string"}},
				object{"name": "path", "in": "path", "required": true, "schema": object{"type": "string"}},
				object{"name": api.HeaderStart, "in": "header", "description": "how its instance is to start", "schema": paramSchema(aStart)},
				object{"name": api.HeaderPolicy, "in": "header", "description": "memory policy", "schema": object{"type": "string"}},
			},
			"responses": object{"default": object{"description": "the function's answer, or, with a header Skep-Error, a problem"}},
		}
		if method != "get" && method != "head" && method != "options" && method != "delete" {
			op["requestBody"] = object{"content": object{"*/*": object{}}}
		}
		out[method] = op
	}
	return out
}

func paramSchema(kind string) object {
	if list, ok := strings.CutPrefix(kind, aPlace); ok { // of nanoseconds, as many as fit
		return object{"type": "string", "pattern": "^" + list + ":-?([0-9]{1,18}|[1-8][0-9]{18}):"}
	}
	switch kind {
	case aBool:
		return object{"type": "boolean"}
	case aTime:
		return object{"type": "string", "format": "date-time"}
	case aDuration:
		return object{"type": "string", "pattern": durationPattern}
	case aLimit:
		return object{"type": "integer", "minimum": 0, "maximum": maxPage}
	case aRecord:
		return object{"type": "string", "pattern": "^[^:]+$"}
	case aTail:
		return object{"type": "integer", "minimum": 0, "maximum": maxTail}
	case aStatus:
		return object{"type": "string", "pattern": "^([0-9]{1,3}|[1-9]xx)$"}
	case aFailure:
		return object{"type": "string", "enum": append([]api.Failure{api.AnyFailure}, api.Failures...)}
	case aStart:
		return object{"type": "string", "enum": []api.StartKind{api.StartBoot, api.StartRestore, api.StartWarm}}
	case aKinds:
		var kinds []string
		for _, k := range api.EventKinds {
			kinds = append(kinds, string(k))
		}
		one := "(" + strings.Join(kinds, "|") + ")"
		return object{"type": "string", "pattern": "^" + one + "(," + one + ")*$"}
	}
	return object{"type": "string", "minLength": 1}
}

// durationPattern is what time.ParseDuration reads, without a sign.
const durationPattern = `^(0|([0-9]{1,6}(\.[0-9]{1,9})?(ns|us|µs|ms|s|m|h))+)$`

// schemas makes schemas of package api's types, those that have a name once each.
type schemas struct {
	t        *testing.T
	named    map[string]*jsonschema.Schema
	comments map[string]string // of types and of Type.Field
	special  map[reflect.Type]*jsonschema.Schema
}

func newSchemas(t *testing.T) *schemas {
	text := func(pattern string, enum ...any) *jsonschema.Schema {
		return &jsonschema.Schema{Type: "string", Pattern: pattern, Enum: enum}
	}
	kinds := func(values any) []any {
		var out []any
		for v := range reflect.ValueOf(values).Seq2() {
			out = append(out, reflect.ValueOf(values).Index(int(v.Int())).String())
		}
		return out
	}
	phases := &jsonschema.Schema{Type: "object", AdditionalProperties: &jsonschema.Schema{Not: &jsonschema.Schema{}}, Properties: map[string]*jsonschema.Schema{}, Required: []string{"total_us"}}
	for _, name := range api.PhaseNames {
		phases.Properties[name+"_us"] = &jsonschema.Schema{Type: "integer"}
	}
	two, any32 := 2, &jsonschema.Schema{Type: "integer"}
	return &schemas{t: t, named: map[string]*jsonschema.Schema{}, comments: comments(t), special: map[reflect.Type]*jsonschema.Schema{
		reflect.TypeFor[api.Duration]():              text(durationPattern),
		reflect.TypeFor[time.Duration]():             {Type: "integer"},
		reflect.TypeFor[time.Time]():                 {Type: "string", Format: "date-time"},
		reflect.TypeFor[json.RawMessage]():           {Type: "object"},
		reflect.TypeFor[api.Phases]():                phases,
		reflect.TypeFor[api.PageRuns]():              {Types: []string{"null", "array"}, Items: &jsonschema.Schema{Type: "array", Items: any32, MinItems: &two, MaxItems: &two}},
		reflect.TypeFor[api.StartKind]():             text("", string(api.StartBoot), string(api.StartRestore), string(api.StartWarm), ""),
		reflect.TypeFor[api.InstanceState]():         text("", string(api.InstanceStarting), string(api.InstanceIdle), string(api.InstanceBusy), string(api.InstanceDraining), string(api.InstanceStopped)),
		reflect.TypeFor[api.Failure]():               text("", kinds(api.Failures)...),
		reflect.TypeFor[api.EventKind]():             text("", kinds(api.EventKinds)...),
		reflect.TypeFor[map[api.InstanceState]int](): {Type: "object", AdditionalProperties: &jsonschema.Schema{Type: "integer"}},
		reflect.TypeFor[api.Error](): {Type: "object", Required: []string{"title", "status", "detail"}, AdditionalProperties: &jsonschema.Schema{Not: &jsonschema.Schema{}},
			Properties: map[string]*jsonschema.Schema{
				"title": {Type: "string"}, "status": {Type: "integer"}, "detail": {Type: "string"}, "hint": {Type: "string"},
			}},
	}}
}

// of is a schema of a type, or a reference to it.
func (s *schemas) of(t reflect.Type) any {
	switch {
	case t.Kind() == reflect.Slice && t != reflect.TypeFor[json.RawMessage]() && s.special[t] == nil:
		return object{"type": "array", "items": s.of(t.Elem())}
	case t.Kind() == reflect.Struct && s.isNamed(t):
		s.define(t)
		return ref("schemas", t.Name())
	}
	schema, err := jsonschema.ForType(t, &jsonschema.ForOptions{TypeSchemas: s.special})
	if err != nil {
		s.t.Fatal(err)
	}
	return schema
}

func (s *schemas) isNamed(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t.PkgPath() == reflect.TypeFor[api.Event]().PkgPath() && t.Name() != ""
}

// define adds a named type, and those that it is made of, to the components.
func (s *schemas) define(t reflect.Type) {
	if s.named[t.Name()] != nil {
		return
	}
	if own := s.special[t]; own != nil {
		s.named[t.Name()] = own
	} else {
		s.named[t.Name()] = &jsonschema.Schema{} // of a type within itself
		s.named[t.Name()] = s.structure(t)
	}
	s.named[t.Name()].Description = s.comments[t.Name()]
}

func (s *schemas) structure(t reflect.Type) *jsonschema.Schema {
	inner := maps.Clone(s.special)
	s.refer(inner, t, t)
	schema, err := jsonschema.ForType(t, &jsonschema.ForOptions{TypeSchemas: inner})
	if err != nil {
		s.t.Fatalf("%v: %v", t, err)
	}
	for name, p := range schema.Properties {
		if p.Ref != "" { // a pointer, which is left out rather than null
			p.Types = nil
		}
		if len(p.Types) == 2 && p.Types[0] == "null" && !reflect.DeepEqual(p, s.special[reflect.TypeFor[api.PageRuns]()]) { // lists are never null, and pointers left out
			p.Types, p.Type = nil, p.Types[1]
		}
		if in := p.Items; in != nil && len(in.Types) == 2 && in.Types[0] == "null" { // nor are lists in lists
			in.Types, in.Type = nil, in.Types[1]
		}
		if text := s.comments[s.owner(t, name)+"."+name]; text != "" && p.Ref == "" {
			p.Description = text
		}
		if slices.Contains(setByDaemon, name) && t == reflect.TypeFor[api.Function]() {
			p.ReadOnly = true
		}
	}
	zero, mostRevision := 0.0, float64(maxRevision)
	if t == reflect.TypeFor[api.RollbackRequest]() {
		p := schema.Properties["revision"]
		p.Type, p.Types, p.Minimum, p.Maximum = "", []string{"integer", "null"}, &zero, &mostRevision
	}
	one := 1
	switch t {
	case reflect.TypeFor[api.PullRequest]():
		schema.Properties["function"].MinLength = &one
	case reflect.TypeFor[api.CollectRequest]():
		schema.Properties["keep"].Minimum = &zero
	}
	if strings.HasSuffix(t.Name(), "Request") { // null is as what is left out
		for name, p := range schema.Properties {
			if p.Type != "" && !slices.Contains(schema.Required, name) {
				p.Types, p.Type = []string{p.Type, "null"}, ""
			}
		}
	}
	for name, most := range mostOf {
		if p := schema.Properties[name]; p != nil && t == reflect.TypeFor[api.Function]() {
			p.Minimum, p.Maximum = &zero, &most // 0 is the default
		}
	}
	if t == reflect.TypeFor[api.Function]() { // whose defaults stand for what is left out
		schema.Required = []string{"name", "image"}
	}
	return schema
}

// mostOf are limits of a function's settings, as its Validate has them.
var mostOf = map[string]float64{
	"memory_mib": 64 << 10, "vcpus": 64, "port": 65535, "concurrency": 10000, "max_instances": 10000, "queue_limit": 1000000, "disk_mib": 64 << 10,
}

// change is a merge patch of a function: its settings without what the daemon sets, each
// of which may be null.
func (s *schemas) change() object {
	s.define(reflect.TypeFor[api.Function]())
	properties := object{}
	for name, p := range s.named["Function"].Properties {
		if name == "name" || slices.Contains(setByDaemon, name) {
			continue
		}
		if p.Ref != "" {
			properties[name] = object{"type": []string{"object", "null"}}
			continue
		}
		p = p.CloneSchemas()
		if p.Type != "" {
			p.Types, p.Type = []string{p.Type, "null"}, ""
		}
		properties[name] = p
	}
	return object{"type": "object", "minProperties": 1, "properties": properties, "additionalProperties": false,
		"description": "those settings of a Function that are to change; null is the default"}
}

var setByDaemon = []string{"image_digest", "created", "revision"}

// refer makes references of the named types of t's fields.
func (s *schemas) refer(to map[reflect.Type]*jsonschema.Schema, t, top reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		ft := f.Type
		for ft.Kind() == reflect.Pointer || ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		switch {
		case f.Anonymous:
			s.refer(to, ft, top)
		case s.isNamed(ft) && ft != top:
			s.define(ft)
			to[ft] = &jsonschema.Schema{Ref: "#/components/schemas/" + ft.Name()}
		}
	}
}

// owner is the name of the struct, t or one that it embeds, which has the field of that
// name in JSON.
func (s *schemas) owner(t reflect.Type, name string) string {
	for i := range t.NumField() {
		f := t.Field(i)
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
			return t.Name()
		}
		if f.Anonymous {
			if own := s.owner(f.Type, name); own != "" {
				return own
			}
		}
	}
	return ""
}

// comments are what package api says of its types and their fields, by the names that
// these have in JSON.
func comments(t *testing.T) map[string]string {
	fset := token.NewFileSet()
	var files []*ast.File
	entries, err := os.ReadDir("../api")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, "../api/"+e.Name(), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	p, err := doc.NewFromFiles(fset, files, "github.com/skep-dev/skep/api")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, typ := range p.Types {
		out[typ.Name] = oneLine(typ.Doc)
		for _, spec := range typ.Decl.Specs {
			if st, ok := spec.(*ast.TypeSpec).Type.(*ast.StructType); ok {
				for _, f := range st.Fields.List {
					if f.Tag == nil {
						continue
					}
					tag, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
					out[typ.Name+"."+tag] = oneLine(f.Doc.Text() + f.Comment.Text())
				}
			}
		}
	}
	return out
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
