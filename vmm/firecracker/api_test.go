package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// serve answers API requests on a unix socket, and returns a client of it.
func serve(t *testing.T, h http.HandlerFunc) *client {
	t.Helper()
	testenv.NoLeaks(t)
	path := filepath.Join(testenv.Dir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	c := newClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
	t.Cleanup(c.close)
	return c
}

func TestRequestHasALengthAndKnownFields(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.ContentLength != int64(len(body)) || len(r.TransferEncoding) > 0 {
			t.Errorf("length %d, encoding %v, %v", r.ContentLength, r.TransferEncoding, err)
		}
		want := `{"snapshot_path":"state","mem_backend":{"backend_type":"Uffd","backend_path":"run/faults.sock"},` +
			`"network_overrides":[{"iface_id":"eth0","host_dev_name":"tap0"}]}`
		if r.Method != "PUT" || r.URL.Path != "/snapshot/load" || string(body) != want {
			t.Errorf("%s %s %s", r.Method, r.URL.Path, body)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	err := c.put(t.Context(), "/snapshot/load", snapshotLoad{
		State: "state", Memory: memoryBackend{"Uffd", "run/faults.sock"}, Networks: []networkOverride{{"eth0", "tap0"}},
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		status     int
		body, want string
	}{
		{400, `{"fault_message":"Load snapshot error: it is raining"}`, "PUT /actions: Load snapshot error: it is raining"},
		{400, `no json`, "PUT /actions: status 400"},
		{500, "", "PUT /actions: status 500"},
		{400, strings.Repeat("x", 10*maxAnswer), "PUT /actions: status 400"},
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(test.status)
			_, _ = io.WriteString(w, test.body)
		})
		err := c.put(t.Context(), "/actions", action{"InstanceStart"})
		var refusal *Error
		if !errors.As(err, &refusal) || refusal.Status != test.status || err.Error() != test.want {
			t.Errorf("%d %.60q: %v; want %s", test.status, test.body, err, test.want)
		}
	}
}

func TestRequestsAreBoundedInTime(t *testing.T) {
	done := make(chan struct{})
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-done
	})
	t.Cleanup(func() { close(done) })
	c.limit = time.Millisecond
	if err := c.patch(t.Context(), "/vm", vmState{"Paused"}); !errors.Is(err, errTooSlow) {
		t.Errorf("a server that is silent: %v", err)
	}
	c.limit = 0
	why := errors.New("the reason")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(time.Millisecond, func() { cancel(why) })
	if err := c.patch(ctx, "/vm", vmState{"Paused"}); !errors.Is(err, why) {
		t.Errorf("a cancelled request: %v", err)
	}
}

func TestOneConnectionServesAllRequests(t *testing.T) {
	from := map[string]bool{}
	var states []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var s vmState
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			t.Error(err)
		}
		states = append(states, s.State)
		from[r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()+r.RemoteAddr] = true
		w.WriteHeader(http.StatusNoContent)
	})
	for _, s := range []string{"Paused", "Resumed", "Paused"} {
		if err := c.patch(t.Context(), "/vm", vmState{s}); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Join(states, " ") != "Paused Resumed Paused" || len(from) != 1 {
		t.Errorf("%v over %d connections", states, len(from))
	}
}
