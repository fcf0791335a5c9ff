package functions

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pelletier/go-toml/v2"

	"github.com/skep-dev/skep/api"
)

// Settings are a built-in function's own settings, those of its function.toml;
// one without that file has the defaults. Its name is not among them.
func Settings(name string) (f api.Function, err error) {
	if builders()[name] == nil {
		return f, unknown(name)
	}
	b, err := sources.ReadFile(name + "/function.toml")
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = Decode(b, &f)
	}
	if err != nil {
		return f, fmt.Errorf("settings of function %s: %w", name, err)
	}
	return f, nil
}

// Decode reads a function's TOML file, whose keys are those of the wire, over f.
// What the daemon sets by itself may not be in it.
func Decode(b []byte, f *api.Function) error {
	var m map[string]any
	if err := toml.Unmarshal(b, &m); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, col := de.Position()
			return fmt.Errorf("line %d, column %d: %w", row, col, err)
		}
		return err
	}
	for _, name := range []string{"created", "image_digest", "revision"} {
		if _, ok := m[name]; ok {
			return fmt.Errorf("%s is set by the daemon: leave it out", name)
		}
	}
	// By way of JSON, so that the two forms can never have different keys.
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(f)
}
