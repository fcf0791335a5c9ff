package shim

import "github.com/opencontainers/runtime-spec/specs-go"

// ahead is told what the pod is that the containers to come are of: its pause container,
// which the CRI makes long before it asks for a container. Meanwhile what no container
// is needed for is opened; what is wrong with it, the first container is told.
func (s *rooms) ahead(pause *specs.Spec) {
	s.inPod(pause)
	s.collecting.Go(func() { _, _ = s.opener(s.events.ctx) })
}
