// Package export sends spans to a collector, over OTLP. It is for the programs: the
// daemon and the shim have it opened where they begin, and give what it returns to
// who begins traces.
//
// Whatever becomes of the collector, nobody waits for it: spans are sent beside the
// work, those that there is no room for are dropped, and one that does not answer
// is not asked again.
package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Options say where to.
type Options struct {
	// Endpoint is a collector's, such as http://127.0.0.1:4318; "" leaves it to the
	// variables of OpenTelemetry, without which nothing is sent.
	Endpoint string
	Service  string // what spans say that they are of; OTEL_SERVICE_NAME goes over it
	// Inherited says that the environment is another program's: where it names a
	// service, that is not this one.
	Inherited bool
	Version   string
	Log       *slog.Logger // for what cannot be sent, once a minute at most
}

// Provider makes spans and sends them.
type Provider struct {
	trace.TracerProvider
	sdk *sdk.TracerProvider // nil: nothing is sent
}

// Limits of time: of one attempt to send, and of the last one, for which a program
// that ends waits.
const (
	sendLimit  = 2 * time.Second
	closeLimit = 2 * time.Second
)

// Open begins to send spans, if somebody has said where to. It asks nobody.
func Open(ctx context.Context, o Options) (*Provider, error) {
	on, err := wanted(o.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("sending spans: %w", err)
	}
	if !on {
		return None(), nil
	}
	opts := []otlptracehttp.Option{otlptracehttp.WithTimeout(sendLimit), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{})}
	if o.Endpoint != "" {
		opts = append(opts, otlptracehttp.WithEndpointURL(strings.TrimSuffix(o.Endpoint, "/")+"/v1/traces"))
	}
	exporter, err := otlptracehttp.New(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("sending spans: %w", err)
	}
	own := resource.WithAttributes(attribute.String("service.name", o.Service), attribute.String("service.version", o.Version), attribute.Int("process.pid", os.Getpid()))
	named := []resource.Option{resource.WithTelemetrySDK(), resource.WithHost(), own, resource.WithFromEnv()} // the last counts
	if o.Inherited {
		named = append(named, own)
	}
	what, err := resource.New(ctx, named...)
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("sending spans: %w", err)
	}
	otel.SetErrorHandler(&seldom{log: o.Log})
	p := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(what))
	return &Provider{TracerProvider: p, sdk: p}, nil
}

// None sends nothing.
func None() *Provider { return &Provider{TracerProvider: noop.NewTracerProvider()} }

// Requests is for who makes nothing at all of what is not sent: nil then.
func (p *Provider) Requests() trace.TracerProvider {
	if p.sdk == nil {
		return nil
	}
	return p.sdk
}

// Close sends what is left, for a moment.
func (p *Provider) Close() {
	if p == nil || p.sdk == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = p.sdk.Shutdown(ctx) // what was not sent is lost
}

// wanted reads the variables by which OpenTelemetry's programs are told whether to
// send.
func wanted(endpoint string) (bool, error) {
	if v := os.Getenv("OTEL_SDK_DISABLED"); v != "" {
		off, err := strconv.ParseBool(v)
		if err != nil {
			return false, fmt.Errorf("OTEL_SDK_DISABLED is %q: want true or false", v)
		}
		if off {
			return false, nil
		}
	}
	switch v := os.Getenv("OTEL_TRACES_EXPORTER"); v {
	case "none":
		return false, nil
	case "", "otlp":
	default:
		return false, fmt.Errorf("OTEL_TRACES_EXPORTER is %q: want otlp or none", v)
	}
	if endpoint != "" {
		return true, nil
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if v := os.Getenv(name); v != "" && v != "http/protobuf" {
			return false, fmt.Errorf("%s is %q: want http/protobuf", name, v)
		}
	}
	return os.Getenv("OTEL_TRACES_EXPORTER") == "otlp" || os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "", nil
}
