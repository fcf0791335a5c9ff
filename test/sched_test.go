package test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/gateway"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestHungInstance has a server that takes one request at a time hang, under a
// request that times out and under one whose client leaves. Nobody else meets
// it, and it ends.
func TestHungInstance(t *testing.T) {
	d := start(t)
	d.hello("serial", "--env", "HELLO_SERIAL=1", "--timeout", "15s", "--max-instances", "3")
	d.mustGet("serial", "/")
	if a := d.get("serial", "/hang"); a.status != 504 {
		t.Fatalf("a request that is never answered: %+v, want 504", a)
	}
	left, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if a := read(d.client.Invoke(left, api.InvokeRequest{Function: "serial", Path: "/hang"})); a.err == nil {
		t.Fatalf("the client that left got %+v", a)
	}
	for range 4 {
		d.mustGet("serial", "/")
	}
	hung := map[string]bool{}
	for _, r := range d.records("serial", 7) {
		if r.Failure != "" {
			hung[r.Instance] = true
		}
	}
	if len(hung) != 2 {
		t.Errorf("instances with requests that failed: %v, want two", hung)
	}
	for _, r := range d.records("serial", 7) {
		if r.Failure == "" && hung[r.Instance] && r.Start == api.StartWarm && r.Phases.Total > 10*time.Second {
			t.Errorf("a request waited for a hung instance: %+v", r)
		}
	}
	d.await("serial", "the hung instances end", time.Minute, func() error {
		is, err := d.client.Instances(d.ctx(5*time.Second), "serial")
		for _, i := range is {
			if hung[i.ID] {
				err = fmt.Errorf("%s is there still: %+v", i.ID, i)
			}
		}
		return err
	})
	d.mustGet("serial", "/")
}

// TestFullNodeIsShared keeps both places of a node busy with one function. One
// request to another, and a deployment, have their turn.
func TestFullNodeIsShared(t *testing.T) {
	d := start(t, "max_instances = 2")
	d.hello("hello", "--timeout", "5m")
	d.hello("echo", "--timeout", testenv.Limit(t, time.Minute).String())
	over := make(chan struct{})
	var clients sync.WaitGroup
	for range 6 {
		clients.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if a := d.get("hello", "/sleep?ms=500"); a.err != nil || a.status != 200 {
					t.Errorf("hello under load: %+v", a)
					return
				}
			}
		})
	}
	d.await("hello", "it has both places", time.Minute, func() error {
		is, err := d.client.Instances(d.ctx(5*time.Second), "hello")
		if err == nil && len(is) < 2 {
			err = fmt.Errorf("it has %d", len(is))
		}
		return err
	})
	began := time.Now()
	d.mustGet("echo", "/")
	t.Logf("the one request to echo took %v", time.Since(began))
	began = time.Now()
	d.hello("third")
	t.Logf("the deployment took %v", time.Since(began))
	close(over)
	clients.Wait()
}

// TestDeployedMeansThatItAnswers deploys servers that become ready and cannot
// serve: either they answer through the gateway afterwards, or the deployment
// fails and says why.
func TestDeployedMeansThatItAnswers(t *testing.T) {
	d := start(t)
	for _, c := range []struct{ name, env, want string }{
		{"loopback", "HELLO_LISTEN=127.0.0.1", "127.0.0.1 only"},
		{"ends", "HELLO_EXIT_AFTER_MS=300", "exit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := d.cli("deploy", "functions/hello", "--name", c.name, "--env", c.env, "--ready-timeout", d.ready().String())
			if err == nil {
				d.mustGet(c.name, "/")
				return
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
			if a := d.get(c.name, "/"); a.status != 404 {
				t.Errorf("afterwards: %+v, want 404", a)
			}
		})
	}
}

// TestServerThatEndsLater has a server end after it was deployed: the client whose
// request it takes along is told, and so is the function's log; each request
// starts an instance and no more, and the snapshot stays.
func TestServerThatEndsLater(t *testing.T) {
	d := start(t)
	d.hello("ends", "--max-instances", "1")
	snaps, err := d.client.Snapshots(d.ctx(5*time.Second), "ends")
	if err != nil || len(snaps) != 1 {
		t.Fatalf("%v, %+v", err, snaps)
	}
	const requests = 2
	// Of its connection or of its process, whichever is known first on this machine.
	const how = "the function's server ended"
	for range requests {
		a := d.get("ends", "/exit?code=7")
		var p gateway.Problem
		if err := json.Unmarshal([]byte(a.body), &p); a.status != 502 || err != nil || !strings.Contains(p.Error, how) {
			t.Errorf("a request to a server that ends: %+v, %v; want 502 and %q", a, err, how)
		}
	}
	d.gone("ends")
	started := map[string]bool{}
	for _, r := range d.records("ends", requests) {
		if r.Start != api.StartRestore || r.Failure != api.FailureFunction {
			t.Errorf("record %+v, want a restore and that the function failed", r)
		}
		started[r.Instance] = true
	}
	if len(started) != requests {
		t.Errorf("%d instances for %d requests", len(started), requests)
	}
	if log := d.mustCLI("logs", "ends"); strings.Count(log, "[the instance ended: ") != requests {
		t.Errorf("its log, which lacks how its instances ended:\n%s", log)
	}
	if after, err := d.client.Snapshots(d.ctx(5*time.Second), "ends"); err != nil || len(after) != 1 || after[0].ID != snaps[0].ID || !after[0].Usable {
		t.Errorf("snapshots %+v, %v; want the one that the deployment made", after, err)
	}
}
