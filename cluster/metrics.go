package cluster

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// metricsServer is apart from the others: a cluster has it when somebody asks.
var metricsServer = program{name: "metrics-server", module: "metrics-server", pkg: "sigs.k8s.io/metrics-server/cmd/metrics-server", env: KubernetesEnv, long: ", which takes some minutes, once"}

const metricsFile = "metrics-server.yaml"

// Metrics has metrics-server in a cluster that is up, and returns when it has measured.
func (c *Cluster) Metrics(ctx context.Context) error {
	program, err := metricsServer.get(ctx, c.opts.Step)
	if err != nil {
		return err
	}
	c.opts.Step("importing the image of metrics-server")
	img, err := Image(program, v1.Config{Env: []string{"PATH=/"}})
	if err != nil {
		return fmt.Errorf("making image %s: %w", metricsImage, err)
	}
	if err := c.Import(ctx, metricsImage, img); err != nil {
		return err
	}
	for _, step := range []struct {
		step string
		do   func(context.Context) error
	}{
		{"starting metrics-server", c.asks("apply", "-f", c.path("etc", metricsFile))},
		{"waiting for metrics-server", c.asks("-n", "kube-system", "rollout", "status", "deployment/metrics-server", "--timeout=10s")},
		{"waiting for its API", c.asks("wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io", "--timeout=10s")},
		{"waiting for what it measures", c.asks("top", "node", nodeName)},
	} {
		c.opts.Step(step.step)
		if err := c.retry(ctx, step.do); err != nil {
			return fmt.Errorf("%s: %w", step.step, err)
		}
	}
	return nil
}
