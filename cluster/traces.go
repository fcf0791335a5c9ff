package cluster

import (
	"context"
	"errors"
	"os"
)

// With Options.Traces a collector runs on the node, kubelet and containerd send it
// their spans, and shims do, which have containerd's environment; so do Knative and
// Kourier where they are.

// CollectorEnv names the environment variable with the directory of a collector, otelcol,
// that is used in place of the one that the module cluster/collector builds.
const CollectorEnv = "SKEP_COLLECTOR"

var collector = program{name: "otelcol", module: "collector", pkg: ".", env: CollectorEnv, long: ", which takes a minute or two, once"}

// Where the collector listens, by OTLP over gRPC and over HTTP.
const (
	collectorGRPC = nodeIP + ":4317"
	collectorHTTP = nodeIP + ":4318"
)

// Traces is the path of the file into which the node's collector writes spans, where it
// has one (Options.Traces).
func (c *Cluster) Traces() string { return c.path(nodeVar, "log/traces.json") }

const tracesFile = "traces"

// traces tells a cluster that has a collector, which it stays.
func (c *Cluster) traces() bool {
	_, err := os.Stat(c.path(tracesFile))
	return err == nil
}

// collect places the collector, if there is to be one.
func (c *Cluster) collect(ctx context.Context, paths map[string]string) (err error) {
	if c.opts.Traces {
		if err := os.MkdirAll(c.dir, 0o755); err != nil {
			return err
		}
		if err := write(c.path(tracesFile), nil); err != nil {
			return err
		}
	}
	if c.traces() {
		paths[collector.name], err = collector.get(ctx, c.opts.Step)
	}
	return err
}

// tracing are the services and variables that this takes.
func (c *Cluster) tracing() (services []service, env []string) {
	if !c.traces() {
		return nil, nil
	}
	return []service{{name: collector.name, args: []string{"--config=" + c.path("etc/otelcol.yaml")}, env: []string{"LISTEN=" + nodeIP, "TRACES=/var/log/traces.json"}}},
		[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + collectorHTTP}
}

// traceKnative has Knative's programs send their spans, too.
func (c *Cluster) traceKnative(ctx context.Context) error {
	if !c.traces() {
		return nil
	}
	return errors.Join(
		c.retry(ctx, c.asks("-n", "knative-serving", "patch", "configmap/config-observability", "--type=merge",
			"--patch", `{"data": {"tracing-protocol": "http/protobuf", "tracing-endpoint": "http://`+collectorHTTP+`/v1/traces", "tracing-sampling-rate": "1"}}`)),
		c.retry(ctx, c.asks("-n", "knative-serving", "patch", "configmap/config-kourier", "--type=merge",
			"--patch", `{"data": {"tracing-protocol": "grpc", "tracing-endpoint": "`+collectorGRPC+`", "tracing-sampling-rate": "1.0"}}`)))
}
