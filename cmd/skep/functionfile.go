package main

import (
	"fmt"
	"os"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
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
	if err := functions.Decode(b, &f); err != nil {
		return f, fmt.Errorf("function %s: %w", path, err)
	}
	return f, nil
}
