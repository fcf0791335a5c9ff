package image

import (
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestExposedPorts(t *testing.T) {
	c := configOf(&v1.ConfigFile{Config: v1.Config{ExposedPorts: map[string]struct{}{"9090/udp": {}, "8080/tcp": {}}}})
	if want := []string{"8080/tcp", "9090/udp"}; !slices.Equal(c.Exposed, want) {
		t.Errorf("it says %q, want %q", c.Exposed, want)
	}
}
