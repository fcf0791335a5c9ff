package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestProperties has calls made up from the document, over a node without machines.
func TestProperties(t *testing.T) {
	n := controltest.New("hello", "other")
	n.SnapshotList = []api.Snapshot{{ID: "s0", Function: "hello", Created: time.Unix(9, 0), Usable: true}}
	n.Records = []api.Invocation{{ID: "r1", Function: "hello", Status: 200}}
	token := strings.Repeat("t", 32)
	m := control.NewMetrics(n, api.Version{}, nil)
	h, err := control.RequireToken(token, nil, control.New(control.Options{Node: n, Metrics: m.Handler(), Version: api.Version{Version: "v1", Go: "go1"}}).Handler())
	if err != nil {
		t.Fatal(err)
	}
	testenv.Schemathesis(t, serveTCP(t, h), token, "--max-examples", "10")
}
