package gateway

import (
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/skep-dev/skep/api"
)

// TestGRPC has a real gRPC client call a real gRPC server: a call, an error that
// travels in the trailers, and a stream.
func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, checks := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, checks)
	go srv.Serve(l)
	defer srv.Stop()
	checks.SetServingStatus("bees", grpc_health_v1.HealthCheckResponse_SERVING)

	f := newFake(t, l.Addr().String())
	f.fn.Timeout, f.fn.ResponseTimeout, f.fn.IdleTimeout = api.Duration(total), api.Duration(time.Minute), api.Duration(time.Minute)
	base := before(t, f, Options{})
	conn, err := grpc.NewClient("passthrough:///"+base[len("http://"):], grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("fn.localhost"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)
	r, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "bees"})
	if err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("%v %v", r, err)
	}
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "wasps"}); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown service: %v", err)
	}
	stream, err := client.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "bees"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{grpc_health_v1.HealthCheckResponse_SERVING, grpc_health_v1.HealthCheckResponse_NOT_SERVING} {
		if r, err := stream.Recv(); err != nil || r.Status != want {
			t.Fatalf("the stream: %v %v, want %v", r, err, want)
		}
		time.Sleep(2 * total) // beyond the limit of ordinary answers
		checks.SetServingStatus("bees", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	}
}
