package dirigent

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
)

// form is what invitro's loader sends (pkg/driver/deployment/dirigent.go).
func form() url.Values {
	return url.Values{
		"name": {"trace-func-0-2642643831809466437"}, "image": {"docker.io/cvetkovic/dirigent_grpc_function:latest"}, "port_forwarding": {"80", "tcp"},
		"scaling_upper_bound": {"3"}, "scaling_lower_bound": {"1"}, "requested_cpu": {"1200"}, "requested_memory": {"100"},
		"env_vars": {"A=b=c", "D="}, "program_args": {"-x", "y"}, "prepull_mode": {""}, "num_args": {"0"}, "num_rets": {"0"},
		"requested_gpu": {"0"}, "node_affinity": {""}, "node_port": {"0"},
	}
}

func TestParse(t *testing.T) {
	f, err := Parse(form())
	want := api.Function{Name: "trace-func-0-2642643831809466437", Image: "docker.io/cvetkovic/dirigent_grpc_function:latest", Port: 80, MinInstances: 1, MaxInstances: 3,
		VCPUs: 2, MemoryMiB: 256, Env: map[string]string{"A": "b=c", "D": ""}, Args: []string{"-x", "y"}, QueueLimit: 100_000}
	if err != nil || !reflect.DeepEqual(f, want) {
		t.Errorf("%+v, %v; want %+v", f, err, want)
	}
	if f, err := Parse(url.Values{"name": {"f"}, "image": {"i"}}); err != nil || f.MemoryMiB != 128 || f.VCPUs != 1 || f.MaxInstances != 0 {
		t.Errorf("with nothing said: %+v, %v", f, err)
	}
	for name, value := range map[string]string{
		"name": "F_", "image": "", "port_forwarding": "70000", "scaling_lower_bound": "4", "scaling_upper_bound": "-1", "requested_cpu": "x",
		"requested_memory": "1e9", "env_vars": "A", "cold_start_busy_loop_ms": "5",
	} {
		bad := form()
		bad.Set(name, value)
		if _, err := Parse(bad); err == nil {
			t.Errorf("%s=%s was taken", name, value)
		}
	}
	udp := form()
	udp["port_forwarding"] = []string{"80", "udp"}
	if _, err := Parse(udp); err == nil {
		t.Error("a port of UDP was taken")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(form().Encode())
	f.Add("name=f&image=i&requested_memory=99999999999999999999")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := url.ParseQuery(s)
		if err != nil {
			return
		}
		if fn, err := Parse(v); err == nil && fn.WithDefaults().Validate() != nil {
			t.Errorf("%q: %+v was taken", s, fn)
		}
	})
}

func TestHandler(t *testing.T) {
	there := map[string]bool{}
	h := &Handler{Gateway: "127.0.0.1:7080",
		Deploy: func(_ context.Context, f api.Function) error {
			switch f.Image {
			case "absent":
				return &api.Error{Status: http.StatusNotFound, Message: "no such image"}
			case "broken":
				return errors.New("it broke")
			}
			there[f.Name] = true
			return nil
		},
		There: func(_ context.Context, name string) (bool, error) { return there[name], nil },
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	ask := func(resp *http.Response, err error) (int, string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	check := func() int {
		status, _ := ask(http.Get(srv.URL + "/check?name=trace-func-0-2642643831809466437"))
		return status
	}
	if s := check(); s != http.StatusNotFound {
		t.Errorf("before it is registered: status %d", s)
	}
	if s, body := ask(http.PostForm(srv.URL, form())); s != http.StatusOK || body != "127.0.0.1:7080" {
		t.Errorf("registering: status %d, %q", s, body)
	}
	if s := check(); s != http.StatusOK {
		t.Errorf("after it was registered: status %d", s)
	}
	for image, want := range map[string]int{"absent": http.StatusNotFound, "broken": http.StatusInternalServerError, "": http.StatusBadRequest} {
		bad := form()
		bad.Set("image", image)
		if s, body := ask(http.PostForm(srv.URL, bad)); s != want || body == "" {
			t.Errorf("image %q: status %d, %q", image, s, body)
		}
	}
	if s, _ := ask(http.Get(srv.URL)); s != http.StatusNotFound {
		t.Errorf("GET /: status %d", s)
	}
	if s, _ := ask(http.Post(srv.URL, "application/x-www-form-urlencoded", strings.NewReader("name="+strings.Repeat("x", maxForm)))); s != http.StatusBadRequest {
		t.Errorf("a form without end: status %d", s)
	}
}
