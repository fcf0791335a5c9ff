package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// readSpec reads the specification of a container from its bundle.
func readSpec(bundle string) (*specs.Spec, error) {
	path := filepath.Join(bundle, "config.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	spec, err := parseSpec(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return spec, nil
}

func parseSpec(b []byte) (*specs.Spec, error) {
	spec := &specs.Spec{}
	return spec, json.Unmarshal(b, spec)
}
