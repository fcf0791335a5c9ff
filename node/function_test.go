package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/image"
)

// TestWhatTheGuestIsToldFits: an image within its bounds and a function within
// its own are what the guest takes; what is not is refused by the deploy.
func TestWhatTheGuestIsToldFits(t *testing.T) {
	var env []string
	for i := range 1000 {
		env = append(env, fmt.Sprintf("V%d=%s", i, strings.Repeat("x", 1000)))
	}
	fn := hello(func(f *api.Function) { f.Env = map[string]string{"A": strings.Repeat("<", 65_000)} }).WithDefaults()
	if err := fn.Validate(); err != nil {
		t.Fatal(err)
	}
	d, err := newDeployment(fn, image.Image{Config: image.Config{Entrypoint: []string{"/app"}, Env: env}})
	if err != nil {
		t.Fatal(err)
	}
	start := d.start
	start.Instance, start.Entropy, start.Nameservers = strings.Repeat("i", 64), make([]byte, 64), make([]string, 100)
	if b, err := json.Marshal(start); err != nil || len(b) > guest.FromHost(guest.KindStart) {
		t.Errorf("the start message has %d bytes, %v", len(b), err)
	}
	for _, v := range []string{strings.Repeat("<", 500_000), strings.Repeat("x", 2<<20)} {
		_, err := newDeployment(fn, image.Image{Config: image.Config{Entrypoint: []string{"/app"}, Env: []string{"B=" + v}}})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("an environment of %d bytes: %v", len(v), err)
		}
	}
}

// TestWhatCannotBeMetIsInvalid: these are the caller's to change.
func TestWhatCannotBeMetIsInvalid(t *testing.T) {
	n := newWorld(t).open(t, func(c *Config) { c.MemoryMiB = 128 })
	for name, fn := range map[string]api.Function{
		"settings": hello(func(f *api.Function) { f.Port = -1 }),
		"policy":   hello(func(f *api.Function) { f.MemoryPolicy = "none-such" }),
		"memory":   hello(func(f *api.Function) { f.MemoryMiB = 256 }),
	} {
		if _, err := n.Deploy(t.Context(), fn, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newDeployment(hello(nil).WithDefaults(), image.Image{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no command: %v", err)
	}
	if _, err := n.Deploy(t.Context(), hello(func(f *api.Function) { f.Image = "missing" }), nil); err == nil || errors.Is(err, ErrInvalid) {
		t.Errorf("an image that is missing: %v", err)
	}
}
