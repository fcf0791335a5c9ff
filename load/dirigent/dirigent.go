// Package dirigent answers what invitro's loader (vhive-serverless/invitro) asks of
// Dirigent's control plane: the registration of a function as a form, and whether it is
// there. Calls go to the gateway then, by a Host that is the function's name.
// `skep dirigent` serves it.
package dirigent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/api"
)

// Handler answers registrations.
type Handler struct {
	// Gateway is the address, host:port, at which registered functions are called.
	Gateway string
	// Deploy deploys a function, and returns when it serves. An error that is an *api.Error
	// is answered with its status, another with 500.
	Deploy func(context.Context, api.Function) error
	// There says whether a function serves.
	There func(ctx context.Context, name string) (bool, error)
}

// maxForm bounds a registration, in bytes.
const maxForm = 1 << 20

// ServeHTTP answers POST / with the endpoints of what was registered, and GET /check with
// 200 or 404.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/" && r.Method == http.MethodPost:
		h.register(w, r)
	case r.URL.Path == "/check" && r.Method == http.MethodGet:
		there, err := h.There(r.Context(), r.FormValue("name"))
		switch {
		case err != nil:
			fail(w, err)
		case !there:
			http.Error(w, "there is no such function", http.StatusNotFound)
		}
	default:
		http.Error(w, "this is Dirigent's form of registration: POST / registers a function, GET /check?name= says whether it is there", http.StatusNotFound)
	}
}

func (h *Handler) register(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "reading the form: "+err.Error(), http.StatusBadRequest)
		return
	}
	f, err := Parse(r.PostForm)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := h.Deploy(r.Context(), f); err != nil {
		fail(w, err)
		return
	}
	fmt.Fprint(w, h.Gateway) // one data plane: without a ;
}

func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var e *api.Error
	if errors.As(err, &e) && e.Status >= 400 {
		status = e.Status
	}
	http.Error(w, err.Error(), status)
}

// guestMiB is what a guest needs beside what its function asks for.
const guestMiB = 96

// Parse reads a registration:
//
//	name, image           as they are
//	port_forwarding       the function's port; and tcp
//	scaling_lower_bound   min_instances
//	scaling_upper_bound   max_instances; 0 or none: the default
//	requested_cpu         thousandths of a vCPU, rounded up to whole ones
//	requested_memory      MiB, to which is added what a guest needs itself
//	env_vars              name=value, each
//	program_args          arguments, each
//
// What only other backends have is passed over: prefetching of images (an image is there
// when a deployment is), node affinity, GPUs, numbers of arguments. A loop that keeps a
// cold start busy is refused: what a start takes here is real.
func Parse(form url.Values) (f api.Function, err error) {
	f = api.Function{Name: form.Get("name"), Image: form.Get("image"), QueueLimit: 100_000}
	number := func(name string, most int) int {
		text := form.Get(name)
		if text == "" || err != nil {
			return 0
		}
		v, bad := strconv.Atoi(text)
		if bad != nil || v < 0 || v > most {
			err = fmt.Errorf("%s is %q: want a number from 0 to %d", name, text, most)
		}
		return v
	}
	if ports := form["port_forwarding"]; len(ports) > 0 {
		f.Port = number("port_forwarding", 65535)
		if len(ports) > 1 && ports[1] != "" && !strings.EqualFold(ports[1], "tcp") {
			err = errors.Join(err, fmt.Errorf("port_forwarding is of %q: want tcp", ports[1]))
		}
	}
	f.MinInstances, f.MaxInstances = number("scaling_lower_bound", 10000), number("scaling_upper_bound", 10000)
	f.VCPUs = max(1, (number("requested_cpu", 64000)+999)/1000)
	f.MemoryMiB = max(128, (number("requested_memory", 32<<10)+guestMiB+63)/64*64)
	if number("cold_start_busy_loop_ms", 1<<30) > 0 {
		err = errors.Join(err, errors.New("cold_start_busy_loop_ms: a start takes what it takes here; set BusyLoopOnSandboxStartup to false"))
	}
	for _, pair := range form["env_vars"] {
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			err = errors.Join(err, fmt.Errorf("env_vars has %q: want name=value", pair))
		}
		if f.Env == nil {
			f.Env = map[string]string{}
		}
		f.Env[key] = value
	}
	f.Args = form["program_args"]
	if err == nil {
		err = f.WithDefaults().Validate()
	}
	return f, err
}
