package scale

import (
	"strings"
	"testing"
	"time"
)

func mustNew(t *testing.T, spec string, f Function, g *Group) Policy {
	t.Helper()
	s, err := Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	if g == nil {
		g = &Group{}
	}
	return s.New(f, g)
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{ // "": it is right
		"":                          "",
		"none":                      "",
		"fixed:keep-alive=10m":      "",
		"kpa:stable-window=30s":     "",
		"kpa:target-utilization=1":  "",
		"break-even:price=1e5":      "",
		"fixd":                      "did you mean fixed",
		"none:keep-alive=1s":        "takes no parameters",
		"fixed:keep-alive=ten":      `keep-alive is "ten": want 0s to 720h0m0s`,
		"fixed:keep-alive=-1s":      "want 0s to",
		"fixed:":                    "no parameter",
		"kpa:target-utilization=70": "want 0.01 to 1",
		"kpa:target-utilisation=.7": "did you mean target-utilization",
		"kpa:panic-threshold=NaN":   "want 1.1 to 10",
	} {
		s, err := Parse(text)
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %q", text, err, want)
		case want == "" && text != "" && s.String() != text:
			t.Errorf("%q is written as %q", text, s)
		}
	}
	for _, name := range Names() {
		if !strings.Contains(Describe(), name) {
			t.Errorf("%s is not described", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "fixed:keep-alive=10m", "kpa:stable-window=30s,panic-threshold=3", "hybrid:cv=1", "x", "kpa:=,,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q, then %q: %v", text, s, err)
		}
		p := s.New(Function{KeepAlive: time.Minute, MemoryMiB: 128}, &Group{})
		p.Decide(time.Second, &Load{Waiting: 1, Max: 1})
	})
}

func TestKeepAlive(t *testing.T) {
	f := Function{KeepAlive: time.Minute}
	for spec, want := range map[string]time.Duration{
		"none": 0, "fixed": time.Minute, "fixed:keep-alive=10m": 10 * time.Minute, "fixed:keep-alive=0s": 0, "greedy-dual": Forever,
	} {
		p := mustNew(t, spec, f, nil)
		if d := p.Decide(time.Second, &Load{Idle: 1, Free: 1, Max: 8}); d.Idle != want || d.Start != 0 || d.Keep != 0 {
			t.Errorf("%s: %+v, want to keep for %v", spec, d, want)
		}
		if d := p.Decide(time.Second, &Load{Waiting: 3, Max: 8}); d.Start != 3 {
			t.Errorf("%s: %+v, want 3 starts", spec, d)
		}
		if d := p.Decide(time.Second, &Load{Min: 2, Starting: 1, Max: 8}); d.Start != 1 || d.Keep != 2 {
			t.Errorf("%s: %+v, want one start to the minimum of 2", spec, d)
		}
		if d := p.Decide(time.Second, &Load{Min: 9, Busy: 1, Max: 3}); d.Start != 2 {
			t.Errorf("%s: %+v, want no more than the maximum of 3", spec, d)
		}
	}
}
