package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/pelletier/go-toml/v2"

	"github.com/skep-dev/skep/api"
)

// maxFunctionFile is in bytes.
const maxFunctionFile = 1 << 20

// readFunction reads a function from a TOML file whose keys are those of the
// wire. What the daemon sets by itself may not be in it.
func readFunction(path string) (api.Function, error) {
	var f api.Function
	st, err := os.Stat(path)
	if err != nil {
		return f, fmt.Errorf("reading the function: %w", err)
	}
	if st.Size() > maxFunctionFile {
		return f, fmt.Errorf("reading the function: %s is larger than %d bytes", path, maxFunctionFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return f, fmt.Errorf("reading the function: %w", err)
	}
	var m map[string]any
	if err := toml.Unmarshal(b, &m); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, col := de.Position()
			return f, fmt.Errorf("function %s, line %d, column %d: %w", path, row, col, err)
		}
		return f, fmt.Errorf("function %s: %w", path, err)
	}
	for _, name := range []string{"created", "image_digest"} {
		if _, ok := m[name]; ok {
			return f, fmt.Errorf("function %s: %s is set by the daemon: leave it out", path, name)
		}
	}
	// By way of JSON, so that the two forms can never have different keys.
	if b, err = json.Marshal(m); err != nil {
		return f, fmt.Errorf("function %s: %w", path, err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return f, fmt.Errorf("function %s: %w", path, err)
	}
	return f, nil
}
