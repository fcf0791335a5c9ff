package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultIsValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, `
slots = 7
listen = "127.0.0.1:1"
domain = "file.example"
drain_timeout = "5s"
experiments = true
nameservers = ["9.9.9.9"]
`)
	r, err := Load(Input{
		File:    file,
		Environ: []string{"SKEP_LISTEN=127.0.0.1:2", "SKEP_DOMAIN=env.example", "SKEP_NOSUCH=1", "SKEP_REQUIRE=all", "SKEP_TEST_X=1", "PATH=/bin", "HOME=/home/bee"},
		Flags:   map[string]string{"domain": "flag.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := r.Config
	if c.Slots != 7 || c.Listen != "127.0.0.1:2" || c.Domain != "flag.example" || !c.Experiments || c.VMM != "auto" {
		t.Errorf("merged to %+v", c)
	}
	if c.DrainTimeout != api.Duration(5*time.Second) || !slices.Equal(c.Nameservers, []string{"9.9.9.9"}) {
		t.Errorf("merged to %+v", c)
	}
	if c.Socket != "/run/skep/skep.sock" {
		t.Errorf("socket is %q", c.Socket)
	}
	if r.CacheDir != "/home/bee/.cache/skep" || c.KernelDir != "/home/bee/.cache/skep/kernels" {
		t.Errorf("cache is %q, kernels in %q", r.CacheDir, c.KernelDir)
	}
	for key, want := range map[string]string{
		"slots": "file " + file, "listen": "environment SKEP_LISTEN", "domain": "flag --domain", "vmm": "default",
	} {
		if r.From[key] != want {
			t.Errorf("%s comes from %q, want %q", key, r.From[key], want)
		}
	}
	if !slices.Equal(r.Ignored, []string{"SKEP_NOSUCH"}) {
		t.Errorf("ignored %v", r.Ignored)
	}
}

func TestFileFromEnvironment(t *testing.T) {
	file := write(t, "slots = 9\n")
	r, err := Load(Input{Environ: []string{"SKEP_CONFIG=" + file}})
	if err != nil || r.Config.Slots != 9 || r.File != file {
		t.Fatalf("got %d slots of %q, %v", r.Config.Slots, r.File, err)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, file string
		env        []string
		flags      map[string]string
		want       []string
	}{
		{"unknown key", "data_dri = \"/x\"", nil, nil, []string{`"data_dri"`, `did you mean "data_dir"`}},
		{"unknown table", "[gateway]\nlisten = 1", nil, nil, []string{`"gateway"`}},
		{"two unknown keys", "b = 1\na = 2", nil, nil, []string{`"a", "b"`}},
		{"syntax", "slots = ", nil, nil, []string{"line 1"}},
		{"twice", "slots = 1\nslots = 2", nil, nil, []string{"slots"}},
		{"type", "slots = \"four\"", nil, nil, []string{"slots", "whole number"}},
		{"bool type", "experiments = 1", nil, nil, []string{"true or false"}},
		{"list type", "nameservers = [1]", nil, nil, []string{"list of strings"}},
		{"duration", "drain_timeout = \"5\"", nil, nil, []string{"drain_timeout", "unit"}},
		{"environment", "", []string{"SKEP_SLOTS=x"}, nil, []string{"SKEP_SLOTS", "whole number"}},
		{"flag", "", nil, map[string]string{"slots": "x"}, []string{"--slots"}},
		{"flag of no key", "", nil, map[string]string{"nosuch": "x"}, []string{"nosuch"}},
		{"choice", "vmm = \"xen\"", nil, nil, []string{"vmm", "firecracker"}},
		{"several", "vmm = \"xen\"\nslots = -1", nil, nil, []string{"vmm", "slots is -1"}},
		{"relative", "data_dir = \"x\"", nil, nil, []string{"data_dir", "absolute"}},
		{"no token", "control_listen = \"127.0.0.1:1\"", nil, nil, []string{"control_token_file"}},
		{"address", "listen = \"8080\"", nil, nil, []string{"listen", "host:port"}},
		{"domain", "domain = \"Has Space\"", nil, nil, []string{"domain"}},
		{"long domain", "domain = \"" + strings.Repeat("x", 183) + "\"", nil, nil, []string{"domain"}},
		{"long policy", "memory_policy = \"" + strings.Repeat("x", 33) + "\"", nil, nil, []string{"memory_policy"}},
		{"pool", "nat_pool = \"10.0.0.0\"", nil, nil, []string{"nat_pool"}},
		{"service", "host_services = [\"7090\"]", nil, nil, []string{"host_services", "7090=127.0.0.1:7090"}},
		{"service by name", "host_services = [\"1=localhost:1\"]", nil, nil, []string{"host_services", "IPv4"}},
		{"services at one port", "host_services = [\"1=127.0.0.1:1\", \"1=127.0.0.1:2\"]", nil, nil, []string{"port 1 twice"}},
		{"proxies", "trust_forwarded = [\"proxy\"]", nil, nil, []string{"trust_forwarded", "10.0.0.0/8"}},
		{"list", "list_functions = \"maybe\"", nil, nil, []string{"list_functions", "auto, yes, no"}},
		{"nameserver", "nameservers = [\"dns\"]", nil, nil, []string{"nameservers"}},
		{"long socket", "socket = \"/" + strings.Repeat("x", 120) + "\"", nil, nil, []string{"socket", "107"}},
		{"two keys of a store", "store_bucket = \"b\"\nstore_key_file = \"/k\"\nstore_key_command = \"cat /k\"", nil, nil, []string{"store_key_file and store_key_command", "one of them"}},
		{"a key of no store", "store_key_command = \"cat /k\"", nil, nil, []string{"store_bucket"}},
		{"a key somewhere", "store_bucket = \"b\"\nstore_key_file = \"k\"", nil, nil, []string{"store_key_file", "absolute"}},
		{"modules alone", "kernel_modules = \"/lib/modules\"", nil, nil, []string{"kernel_modules"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(Input{File: write(t, c.file), Environ: c.env, Flags: c.flags})
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

func TestNamedFileMustExist(t *testing.T) {
	if _, err := Load(Input{File: filepath.Join(t.TempDir(), "none.toml")}); err == nil {
		t.Fatal("a file that is not there was accepted")
	}
}

// Every key can be set to its own default through all three ways.
func TestEveryKeyRoundTrips(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Keys {
		if seen[k.Name] || k.Help == "" {
			t.Errorf("%s: twice in the table, or without help", k.Name)
		}
		seen[k.Name] = true
		c := Default()
		text, ok := k.Value(c).(string)
		if !ok {
			continue
		}
		if err := k.setText(&c, text); err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
		if err := k.setTOML(&c, text); err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("slots = 3\n"))
	f.Add([]byte("data_dir = [1, {a = 2}]\n"))
	f.Add([]byte("[a]\nb=1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := Result{Config: Default(), From: map[string]string{}}
		if r.decode("fuzz", b) == nil {
			_ = r.Config.Validate()
		}
	})
}

func TestTrustedProxies(t *testing.T) {
	c := Default()
	c.TrustForwarded = []string{"10.1.2.3/8", "127.0.0.1", "::1"}
	got, err := c.TrustedProxies()
	if err != nil || len(got) != 3 || got[0].String() != "10.0.0.0/8" || got[1].String() != "127.0.0.1/32" || got[2].String() != "::1/128" {
		t.Errorf("%v, %v", got, err)
	}
}

// Strangers are not told what functions there are, unless that is asked for.
func TestListsFunctions(t *testing.T) {
	for _, c := range []struct {
		listen, set string
		want        bool
	}{
		{"127.0.0.1:7080", "auto", true}, {"[::1]:7080", "auto", true}, {"localhost:7080", "auto", true},
		{"0.0.0.0:7080", "auto", false}, {":7080", "auto", false}, {"192.0.2.1:80", "auto", false}, {"fn.example.com:80", "auto", false},
		{"0.0.0.0:7080", "yes", true}, {"127.0.0.1:7080", "no", false},
	} {
		if got := (Config{Listen: c.listen, ListFunctions: c.set}).ListsFunctions(); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
