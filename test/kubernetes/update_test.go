package kubernetes

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func deployment(version string) string {
	return strings.NewReplacer("IMAGE", image, "NUMBER", version).Replace(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: rolls}
spec:
  replicas: 2
  selector: {matchLabels: {app: rolls}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: rolls}}
    spec:
      runtimeClassName: skep
      terminationGracePeriodSeconds: 30
      containers:
      - name: app
        image: IMAGE
        args: [serve, "8080"]
        env: [{name: VERSION, value: NUMBER}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
        # Until nobody is sent here any more, as with any server that ends at once.
        lifecycle: {preStop: {sleep: {seconds: 5}}}
---
apiVersion: v1
kind: Service
metadata: {name: rolls}
spec:
  selector: {app: rolls}
  ports: [{port: 80, targetPort: 8080}]
`)
}

// A Deployment is updated pod by pod while requests come: each is answered, by the old
// version or the new one.
func TestRollingUpdate(t *testing.T) {
	n := onNodeOfAll(t)
	n.apply(deployment("one"))
	n.rolledOut("rolls")
	url := "http://" + n.get("service/rolls", ".spec.clusterIP") + "/env/VERSION"
	n.answers(url, "one")
	load := n.load(url)
	n.change(deployment("two"))
	n.rolledOut("rolls")
	n.eventually("how many pods there are", "2", func() (string, error) {
		out, err := n.try("", "get", "pods", "-l", "app=rolls", "-o", "name")
		return fmt.Sprint(strings.Count(out, "pod/")), err
	})
	answers := load()
	t.Logf("answers: %v", answers)
	for answer := range answers {
		if answer != "one" && answer != "two" {
			t.Errorf("%d requests had %q", answers[answer], answer)
		}
	}
	if answers["one"] == 0 || answers["two"] == 0 {
		t.Errorf("the answers are %v: want some of both versions", answers)
	}
}

// load asks all the time, by new connections, two at once, until it is stopped, and
// counts the answers; an error is one.
func (n *node) load(url string) (stop func() map[string]int) {
	ctx, cancel := context.WithCancel(n.Context())
	answers := map[string]int{}
	var mu sync.Mutex // guards answers
	var clients sync.WaitGroup
	for range 2 {
		client := n.client()
		clients.Go(func() {
			for ctx.Err() == nil {
				answer := ask(client, url)
				mu.Lock()
				answers[answer]++
				mu.Unlock()
				select { // a processor is left to the guests
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	return func() map[string]int {
		cancel()
		clients.Wait()
		return answers
	}
}

func ask(client *http.Client, url string) string {
	out, err := fetch(client, url)
	if err != nil {
		return err.Error()
	}
	return out
}
