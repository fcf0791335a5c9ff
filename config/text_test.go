package config

import (
	"maps"
	"regexp"
	"strings"
	"testing"
)

// A file that Text wrote has the same settings, and names a default of each key.
func TestText(t *testing.T) {
	flags := map[string]string{
		"listen": "0.0.0.0:80", "kernel_dir": `/srv/a "b" \c`, "drain_timeout": "90s", "slots": "9",
		"experiments": "true", "nameservers": "9.9.9.9,1.1.1.1", "host_services": "",
	}
	r, err := Load(Input{Environ: []string{"HOME=/home/bee"}, Flags: flags})
	if err != nil {
		t.Fatal(err)
	}
	text := string(r.Text())
	again, err := Load(Input{File: write(t, text), Environ: []string{"HOME=/home/bee"}})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, k := range Keys {
		if k.TOML(r.Config) != k.TOML(again.Config) {
			t.Errorf("%s was %s and is read as %s", k.Name, k.TOML(r.Config), k.TOML(again.Config))
		}
		if _, set := flags[k.Name]; set == (again.From[k.Name] == "default") {
			t.Errorf("%s is set: %v, and read from: %s", k.Name, set, again.From[k.Name])
		}
	}
	for line := range strings.Lines(text) {
		if len(line) > width+1 && strings.HasPrefix(line, "# ") {
			t.Errorf("a line is too long: %s", line)
		}
	}

	// The comments, taken for settings, are the defaults.
	plain, err := Load(Input{Environ: []string{"HOME=/home/bee"}})
	if err != nil {
		t.Fatal(err)
	}
	settings := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(string(plain.Text()), "$1")
	all, err := Load(Input{File: write(t, settings), Environ: []string{"HOME=/home/bee"}})
	if err != nil {
		t.Fatalf("%v\n%s", err, settings)
	}
	for _, k := range Keys {
		if k.TOML(plain.Config) != k.TOML(all.Config) || all.From[k.Name] == "default" {
			t.Errorf("the comment says %s is %s, from %s; it is %s", k.Name, k.TOML(all.Config), all.From[k.Name], k.TOML(plain.Config))
		}
	}
	if len(all.From) != len(Keys) {
		t.Errorf("settings are from %v", maps.Keys(all.From))
	}
}
