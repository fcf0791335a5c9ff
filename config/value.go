package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/api"
)

// Env returns the name of the environment variable that sets the key.
func (k Key) Env() string { return EnvPrefix + strings.ToUpper(k.Name) }

// Flag returns the name of the flag that sets the key, without dashes.
func (k Key) Flag() string { return strings.ReplaceAll(k.Name, "_", "-") }

// IsBool tells whether the key's flag may stand without a value.
func (k Key) IsBool() bool {
	_, ok := k.field(new(Config)).(*bool)
	return ok
}

// Value returns the setting in c as a string, int, bool or []string, the form
// in which JSON and TOML should show it.
func (k Key) Value(c Config) any {
	switch p := k.field(&c).(type) {
	case *int:
		return *p
	case *bool:
		return *p
	case *api.Duration:
		return p.String()
	case *[]string:
		return append([]string{}, *p...)
	case *string:
		return *p
	}
	return nil
}

// setText sets the key from the environment or a flag.
func (k Key) setText(c *Config, s string) error {
	switch p := k.field(c).(type) {
	case *string:
		*p = s
	case *int:
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil {
			return fmt.Errorf("%s is %q: want a whole number", k.Name, s)
		}
		*p = n
	case *bool:
		b, err := strconv.ParseBool(strings.TrimSpace(s))
		if err != nil {
			return fmt.Errorf("%s is %q: want true or false", k.Name, s)
		}
		*p = b
	case *api.Duration:
		if err := p.UnmarshalText([]byte(strings.TrimSpace(s))); err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
	case *[]string:
		*p = strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
	}
	return nil
}

// setTOML sets the key from a decoded TOML value, whose type must fit.
func (k Key) setTOML(c *Config, v any) error {
	wrong := func(want string) error {
		return fmt.Errorf("%s is %v: want %s", k.Name, v, want)
	}
	switch p := k.field(c).(type) {
	case *string:
		s, ok := v.(string)
		if !ok {
			return wrong("a string in quotes")
		}
		*p = s
	case *int:
		n, ok := v.(int64)
		if !ok {
			return wrong("a whole number")
		}
		*p = int(n)
	case *bool:
		b, ok := v.(bool)
		if !ok {
			return wrong("true or false")
		}
		*p = b
	case *api.Duration:
		s, ok := v.(string)
		if !ok {
			return wrong(`a duration in quotes, such as "30s"`)
		}
		return k.setText(c, s)
	case *[]string:
		list, ok := v.([]any)
		if !ok {
			return wrong("a list of strings")
		}
		*p = nil
		for _, e := range list {
			s, ok := e.(string)
			if !ok {
				return wrong("a list of strings")
			}
			*p = append(*p, s)
		}
	}
	return nil
}
