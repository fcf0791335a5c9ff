package clients

import (
	"context"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// InvitroEnv names a directory with invitro's loader, and its trace of four functions as
// "example" (data/traces/example).
const InvitroEnv = "SKEP_INVITRO"

// Trace is an experiment of invitro's loader on Dirigent.
type Trace struct {
	Loader  string // the program
	Dir     string // of the trace
	Control string // host:port at which functions are registered
	Minutes int
	HTTP2   bool // functions are called by HTTP/2, else by HTTP/1.1
}

// Loaded is what the loader wrote of its calls.
type Loaded struct {
	Calls  int // that it made
	Failed int // of those
	Ran    int // of those, with an answer that says for how long they ran
}

// Load runs it and counts what it wrote of its calls.
func (p Place) Load(ctx context.Context, t Trace) (l Loaded, err error) {
	protocol := "http1"
	if t.HTTP2 {
		protocol = "http2"
	}
	err = p.write("dirigent.json", map[string]any{"Backend": "containerd", "DirigentControlPlaneIP": t.Control, "PrepullMode": "all_sync"})
	if err == nil {
		err = p.write("config.json", map[string]any{
			"Seed": 42, "Platform": "Dirigent", "DirigentConfigPath": "dirigent.json", "InvokeProtocol": protocol, "TracePath": t.Dir, "Granularity": "minute",
			"OutputPathPrefix": "out/experiment", "IATDistribution": "exponential", "ExperimentDuration": t.Minutes, "GRPCConnectionTimeoutSeconds": 15, "GRPCFunctionTimeoutSeconds": 300,
		})
	}
	if err == nil {
		err = os.MkdirAll(filepath.Join(p.Dir, "out"), 0o755)
	}
	if err != nil {
		return l, err
	}
	out, err := p.run(ctx, t.Loader, "-config", "config.json")
	if err != nil {
		return l, err
	}
	found, err := filepath.Glob(filepath.Join(p.Dir, "out", "experiment_duration_*.csv"))
	if err != nil || len(found) != 1 {
		return l, fmt.Errorf("the loader has left %d files of calls, %v: %s", len(found), err, out)
	}
	f, err := os.Open(found[0])
	if err != nil {
		return l, err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil || len(rows) == 0 {
		return l, fmt.Errorf("reading %s: %d lines, %v", found[0], len(rows), err)
	}
	column := func(name string) int { return slices.Index(rows[0], name) }
	connection, function, ran := column("connectionTimeout"), column("functionTimeout"), column("actualDuration")
	if min(connection, function, ran) < 0 {
		return l, fmt.Errorf("%s has the columns %v", found[0], rows[0])
	}
	for _, row := range rows[1:] {
		l.Calls++
		switch {
		case row[connection] != "false" || row[function] != "false":
			l.Failed++
		case row[ran] != "0":
			l.Ran++
		}
	}
	return l, nil
}
