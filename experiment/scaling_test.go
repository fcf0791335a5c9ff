package experiment

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/skep-dev/skep/scale"
)

// measuredLab is a lab that has the samples of the report's test, and no host.
func measuredLab(t *testing.T) *Lab {
	t.Helper()
	d, err := Load("report/testdata")
	if err != nil {
		t.Fatal(err)
	}
	l := NewLab(nil, Settings{Cold: ColdFiles, Quick: true, Runs: 1}, slog.New(slog.DiscardHandler))
	l.measured = &Store{Data: *d}
	return l
}

// What was run live is simulated call by call, for as long as it was looked at, and comes
// near what it came to.
func TestScalingTwin(t *testing.T) {
	l := measuredLab(t)
	live := outcomes(l.measured.Samples, worldLive, "")
	if len(live) < 2 {
		t.Fatalf("%d live runs", len(live))
	}
	for _, o := range live {
		samples, err := l.scaleTwin(t.Context(), 0, o.policy, o.start)
		if err != nil {
			t.Fatal(err)
		}
		if len(samples) != 2 || samples[0].Scaled.Own || !samples[1].Scaled.Own {
			t.Fatalf("%s: %+v", o.policy, samples)
		}
		for _, s := range samples {
			r := s.Scaled.Result
			if r.Calls != o.calls || r.Lost != 0 || r.Length.Minutes() == float64(int(r.Length.Minutes())) {
				t.Errorf("%s %s: %d calls of %d, %d lost, until %v", o.policy, o.start, r.Calls, o.calls, r.Lost, r.Length)
			}
			if cold := float64(r.Cold) / float64(r.Calls); cold < o.cold-0.1 || cold > o.cold+0.1 {
				t.Errorf("%s %s: %v cold, live %v", o.policy, o.start, cold, o.cold)
			}
		}
	}
	if _, err := l.scaleTwin(t.Context(), 0, "none", "stream"); err == nil {
		t.Error("what was not run live has a twin")
	}
	l.measured = &Store{}
	if _, err := l.scaleLarge(t.Context(), 0, "fixed", "stream"); err == nil || !strings.Contains(err.Error(), "was not measured") {
		t.Errorf("without costs: %v", err)
	}
}

// Every kind of policy has something that is simulated and something that is run live, all
// of which can be parsed, and each a colour of its own.
func TestScalingKinds(t *testing.T) {
	inks := map[any]string{}
	for _, speed := range []float64{1, 30, 1000} {
		kinds := scalingKinds(speed)
		for _, name := range scale.Names() {
			k := kinds[name]
			for _, text := range append([]string{k.live}, k.large...) {
				if spec, err := scale.Parse(text); err != nil || spec.Name() != name || kindOf(text) != name {
					t.Errorf("%s at %v times: %q: %v", name, speed, text, err)
				}
			}
			if other, ok := inks[policyInk(name)]; ok && other != name {
				t.Errorf("%s has the colour of %s", name, other)
			}
			inks[policyInk(name)] = name
		}
	}
}

func TestScalingLarge(t *testing.T) {
	l := measuredLab(t)
	l.Set.Scaling = ScalingLoad{Functions: 50, Minutes: 20}
	for _, kind := range scale.Names() {
		samples, err := l.scaleLarge(t.Context(), 0, kind, "stream")
		if err != nil || len(samples) == 0 {
			t.Fatalf("%s: %d samples, %v", kind, len(samples), err)
		}
		for _, s := range samples {
			if r := s.Scaled.Result; r.Calls == 0 || r.Start != "stream" || r.Memory.MeanMiB <= 0 {
				t.Errorf("%s: %+v", kind, r)
			}
		}
	}
}

func TestScalingLoadIsChecked(t *testing.T) {
	for _, bad := range []ScalingLoad{{Policies: []string{"best"}}, {LiveFunctions: -1}, {Minutes: -5}, {Speed: -1}, {Rate: 1e9}} {
		if bad.Check() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	if err := (ScalingLoad{}).withDefaults(false).Check(); err != nil {
		t.Error(err)
	}
}
