package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
)

// Hidden stands for the value of an environment variable, or of a header of the
// rehearsal, where the daemon does not tell it. It cannot be deployed.
const Hidden = "•••"

// Hide returns the function with Hidden for every value of its environment and of
// its rehearsal's header.
func (f Function) Hide() Function {
	f.Env, f.Rehearsal.Header = hide(f.Env), hide(f.Rehearsal.Header)
	return f
}

func hide(values map[string]string) map[string]string {
	if values == nil {
		return nil
	}
	out := make(map[string]string, len(values))
	for k := range values {
		out[k] = Hidden
	}
	return out
}

// Revision is one version of a function, kept so that it can be had back.
type Revision struct {
	Number    int       `json:"number"` // rises with every change, from 1
	Created   time.Time `json:"created"`
	Change    string    `json:"change"` // "deploy", "set timeout, env.LEVEL", "rollback to 3"
	Image     string    `json:"image"`
	Digest    string    `json:"image_digest"`
	Current   bool      `json:"current,omitempty"`
	Snapshots int       `json:"snapshots"` // kept ones that it can start from
	Function  Function  `json:"function"`
}

// RollbackRequest asks for an earlier revision to be in force again.
type RollbackRequest struct {
	Revision int `json:"revision,omitempty"` // 0: the one before
}

// daemonsOwn are the keys of a function that nobody else sets.
var daemonsOwn = []string{"name", "image_digest", "created", "revision"}

// Change returns the function as a JSON merge patch (RFC 7396) makes it: what
// the patch names is changed, null means the default or, of an environment
// variable, that it goes; all else stays. It also returns the names of what the
// patch named, without values.
func (f Function) Change(patch []byte) (Function, []string, error) {
	fail := func(format string, args ...any) (Function, []string, error) {
		return Function{}, nil, fmt.Errorf("changing function %q: "+format, append([]any{f.Name}, args...)...)
	}
	var named map[string]json.RawMessage
	if err := json.Unmarshal(patch, &named); err != nil || named == nil {
		return fail("want a JSON object of settings")
	}
	for _, key := range daemonsOwn {
		if _, ok := named[key]; ok {
			return fail("%s cannot be set", key)
		}
	}
	names, err := namesOf(named)
	if err != nil {
		return fail("%w", err)
	}
	if _, ok := named["disk_mib"]; !ok && f.DiskMiB == f.MemoryMiB/2 {
		f.DiskMiB = 0 // it goes on being its default
	}
	doc, err := json.Marshal(f)
	if err != nil {
		return fail("%w", err)
	}
	if doc, err = jsonpatch.MergePatch(doc, patch); err != nil {
		return fail("%w", err)
	}
	var out Function
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		return fail("%w", withoutValue(err))
	}
	if len(out.Env) == 0 {
		out.Env = nil
	}
	return out.WithDefaults(), names, nil
}

// namesOf lists the settings that a patch names, those of the environment, of the
// snapshot's rule and of the rehearsal one by one, sorted.
func namesOf(named map[string]json.RawMessage) ([]string, error) {
	var names []string
	for _, key := range slices.Sorted(maps.Keys(named)) {
		var inner map[string]json.RawMessage
		if json.Unmarshal(named[key], &inner) != nil || len(inner) == 0 {
			names = append(names, key)
			continue
		}
		for _, k := range slices.Sorted(maps.Keys(inner)) {
			names = append(names, key+"."+k)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("it names nothing to change")
	}
	return names, nil
}

// withoutValue says what is wrong with a setting of the wrong type without
// quoting it.
func withoutValue(err error) error {
	var t *json.UnmarshalTypeError
	if !errors.As(err, &t) {
		return err
	}
	kind, _, _ := strings.Cut(t.Value, " ") // "number 1e99": the value comes behind
	return fmt.Errorf("%s is a %s: want a %s", t.Field, kind, t.Type)
}
