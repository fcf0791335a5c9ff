package stat

import (
	"math"
	"testing"
)

func TestSummarize(t *testing.T) {
	for name, c := range map[string]struct {
		in          []float64
		median, p25 float64
		outliers    int
		weak        bool
	}{
		"none":    {nil, 0, 0, 0, true},
		"one":     {[]float64{3}, 3, 3, 0, true},
		"even":    {[]float64{4, 1, 3, 2}, 2.5, 1.75, 0, true},
		"outlier": {[]float64{10, 11, 12, 11, 10, 100}, 11, 10.25, 1, false},
	} {
		s := Summarize(c.in)
		if s.N != len(c.in) || s.Median != c.median || s.P25 != c.p25 || s.Outliers != c.outliers || s.Weak != c.weak {
			t.Errorf("%s: %+v", name, s)
		}
		if s.N > 0 && (s.Lo > s.Median || s.Hi < s.Median || s.Lo < s.Min || s.Hi > s.Max) {
			t.Errorf("%s: the interval is %g–%g", name, s.Lo, s.Hi)
		}
		if again := Summarize(c.in); again != s {
			t.Errorf("%s: a second time it is %+v", name, again)
		}
	}
}

// The interval of the median of 1…99 is known: about ±10 at 95%.
func TestBootstrapWidth(t *testing.T) {
	var v []float64
	for i := 1; i < 100; i++ {
		v = append(v, float64(i))
	}
	if s := Summarize(v); s.Median != 50 || math.Abs(s.Lo-40) > 4 || math.Abs(s.Hi-60) > 4 {
		t.Errorf("median %g, interval %g–%g: want about 40–60", s.Median, s.Lo, s.Hi)
	}
}

// Pairs that differ by far from each other, and within by the same.
func TestPaired(t *testing.T) {
	r := Paired([]float64{2, 20, 200, 2000, 3}, []float64{1, 10, 100, 1000, 2})
	if r.Value != 2 || r.Lo < 1.5 || r.Hi != 2 || r.Weak {
		t.Errorf("%+v", r)
	}
	if r := Paired([]float64{3, 1}, []float64{2, 0}); r.Value != 1.5 || !r.Weak {
		t.Errorf("a pair that has no ratio: %+v", r)
	}
	if r := Paired(nil, nil); !math.IsNaN(r.Value) {
		t.Errorf("nothing: %+v", r)
	}
}

func TestCompare(t *testing.T) {
	slow, fast := []float64{20, 21, 22, 20.5, 21.5}, []float64{10, 11, 10.5, 10.2, 11.2}
	c := Compare(slow, fast)
	if !c.Significant || c.P > 0.02 || math.Abs(c.Change.Value-0.5) > 0.05 || c.Change.Lo > c.Change.Value || c.Change.Hi < c.Change.Value {
		t.Errorf("half the time: %+v", c)
	}
	if c := Compare(slow, slow); c.Significant {
		t.Errorf("the same: %+v", c)
	}
	if c := Compare(slow[:2], fast[:2]); c.Significant || !c.TooFew {
		t.Errorf("two samples each: %+v", c)
	}
	if c := Compare(nil, fast); !math.IsNaN(c.Change.Value) || !c.TooFew {
		t.Errorf("none: %+v", c)
	}
}

func TestGeoMean(t *testing.T) {
	if g := GeoMean([]float64{1, 4, 16}); math.Abs(g-4) > 1e-9 {
		t.Errorf("of 1, 4 and 16: %g", g)
	}
	if g := GeoMean(nil); !math.IsNaN(g) {
		t.Errorf("of none: %g", g)
	}
}
