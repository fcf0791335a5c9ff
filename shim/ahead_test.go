package shim

import (
	"context"
	"errors"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What all microVMs share is opened when a pod's sandbox is made, not when its first
// container is; and the end of the shim waits for it.
func TestAhead(t *testing.T) {
	opened := false
	s := &rooms{events: &events{ctx: t.Context()}, all: map[string]*room{}}
	s.opener = func(context.Context) (*opener, error) {
		opened = true
		return nil, errors.New("no VMM")
	}
	s.ahead(&specs.Spec{Linux: &specs.Linux{Sysctl: map[string]string{"net.core.somaxconn": "9"}}})
	s.close()
	if !opened || s.pod["net.core.somaxconn"] != "9" {
		t.Errorf("opened: %v, sysctls: %v", opened, s.pod)
	}
}
