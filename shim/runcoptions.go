package shim

import (
	"fmt"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// runcOptions are what runc's service is to make a container with, of what containerd
// says of the runtime. What stands in the runtime's table of options comes in a
// general form, which that service does not take; the CRI does not say by it that
// cgroups are systemd's, the cgroup's name does.
func runcOptions(given *anypb.Any, spec *specs.Spec) (*anypb.Any, error) {
	o := &options.Options{}
	switch {
	case given.GetTypeUrl() == "":
	case given.MessageIs(&runtimeoptions.Options{}):
		var general runtimeoptions.Options
		if err := given.UnmarshalTo(&general); err != nil {
			return nil, fmt.Errorf("reading the runtime's options: %w", err)
		}
		if err := toml.Unmarshal(general.ConfigBody, o); err != nil {
			return nil, fmt.Errorf("reading the runtime's options as runc's: %w", err)
		}
	default:
		v, err := typeurl.UnmarshalAny(given)
		if err != nil {
			return nil, fmt.Errorf("reading the runtime's options: %w", err)
		}
		own, ok := v.(*options.Options)
		if !ok {
			return nil, fmt.Errorf("the runtime's options are %s: want runc's", given.TypeUrl)
		}
		o = own
	}
	if spec.Linux != nil && isSystemds(spec.Linux.CgroupsPath) {
		o.SystemdCgroup = true
	}
	return typeurl.MarshalAnyToProto(o)
}
