package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A trace is shown by the file that has it, and the id of the trace or of the invocation;
// and a record without any.
func TestTrace(t *testing.T) {
	socket, _ := fakeDaemon(t)
	one := `{"resourceSpans":[{"scopeSpans":[{"scope":{"name":"github.com/skep-dev/skep"},"spans":[{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"000000000000000a","name":"GET shop","startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000100000000","attributes":[{"key":"skep.invocation","value":{"stringValue":"inv1"}}]}]}]}]}`
	file := filepath.Join(t.TempDir(), "one.json")
	both := filepath.Join(t.TempDir(), "both.json")
	picture := filepath.Join(t.TempDir(), "p.svg")
	for path, text := range map[string]string{file: one, both: one + "\n" + strings.ReplaceAll(one, "4bf92f", "ffffff")} {
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"trace " + file, 0, "GET shop      0.000   100.000"},
		{"trace " + both, 0, "ffffff3577b34da6a3ce929d0e0e4736"},
		{"trace " + both + " 4bf92f3577b34da6a3ce929d0e0e4736", 0, "trace 4bf92f"},
		{"trace " + both + " inv1", 0, "GET shop"},
		{"trace r1", 0, "process"},
		{"--json trace r1", 0, `"name": "spawn"`},
		{"trace " + file + " -o " + picture, 0, ""},
		{"trace " + both + " none", 1, "there is no such trace"},
		{"trace " + file + " -o p.gif", 2, "ends in .svg or .png"},
	} {
		code, out, errs := skep(t, socket, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("skep %s: %d\n%s%s", c.args, code, out, errs)
		}
	}
	if b, err := os.ReadFile(picture); err != nil || !strings.HasPrefix(string(b), "<svg ") {
		t.Errorf("the picture: %.100q, %v", b, err)
	}
}
