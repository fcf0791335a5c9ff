package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/shim/journal"
)

// A node's metrics count the starts of its containers by revision and policy, from when
// they are served on.
func TestContainerMetrics(t *testing.T) {
	h := containerd.Host{Root: testenv.Dir(t)}
	cfg, err := h.Settings(nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func() {
		t.Helper()
		rec := api.Invocation{ID: "r", Function: "hello-00001", Start: api.StartRestore, Time: time.Now(), Memory: &api.MemoryStats{Policy: "reap", Faults: 7}, Container: &api.Container{ID: "c"}}
		if err := journal.Of(h.Root+cfg.DataDir).Append(t.Context(), journal.Entry{Start: &rec}); err != nil {
			t.Fatal(err)
		}
	}
	write()
	write()
	address := testenv.FreeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&cli{out: io.Discard, err: io.Discard}).countContainers(ctx, h, address) }()
	const want = `skep_memory_faults_total{function="hello-00001",policy="reap"} 14`
	var text string
	for end := time.Now().Add(testenv.Limit(t, 30*time.Second)); !strings.Contains(text, want); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("its metrics are\n%s", text)
		}
		if resp, err := http.Get("http://" + address + "/metrics"); err == nil {
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			text = string(b)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
