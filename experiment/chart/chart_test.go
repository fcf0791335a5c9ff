package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/skep-dev/skep/experiment/stat"
)

func charts() map[string]Chart {
	bars := &Bars{Info: Info{Name: "bars", Title: "Bars <&>"}, Unit: "ms", Keys: []Key{{"a", Blue, Box}}, Groups: []Group{
		{Label: "one", Bars: []Bar{NewBar("a", Blue, []float64{1, 2, 3}, 4), NewBar("b", Orange, nil, 0)}},
	}}
	log := *bars
	log.Log, log.Mark = true, 1
	return map[string]Chart{
		"bars": bars, "log": &log, "empty": &Bars{}, "no lines": &Lines{},
		"lines": &Lines{XLog: true, YLog: true, Cut: 1.5, Series: []Series{{Name: "s", Dashed: true, Points: []XY{
			NewXY(1, []float64{10}), NewXY(2, []float64{20, 30}), {X: 4, Summary: stat.Summary{Median: 5}},
		}}}},
	}
}

// Every chart is well-formed SVG without a number that is none, and a PNG.
func TestCharts(t *testing.T) {
	for name, c := range charts() {
		for _, width := range []float64{760, 320} {
			svg := SVG(c, width)
			if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
				t.Errorf("%s: not a number in %s", name, svg)
			}
			for d := xml.NewDecoder(strings.NewReader(svg)); ; {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatalf("%s: %v in %s", name, err, svg)
				}
			}
		}
		var b bytes.Buffer
		if err := PNG(&b, c, 700); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		img, err := png.Decode(&b)
		if err != nil || img.Bounds().Dx() < 1400 {
			t.Errorf("%s: %v, %v", name, err, img)
		}
	}
}

func TestScale(t *testing.T) {
	s, at := newScale(0, 97, false, 0, 100, 5)
	if s.hi != 100 || len(at) != 6 || s.at(50) != 50 {
		t.Errorf("linear: %+v, %v", s, at)
	}
	s, at = newScale(10, 1000, true, 0, 100, 8)
	if len(at) < 3 || s.at(1e-9) != 0 || math.Abs(s.at(math.Sqrt(s.lo*s.hi))-50) > 1e-9 {
		t.Errorf("logarithmic: %+v, %v", s, at)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.123: "0.12", 2: "2", 12.34: "12.3", 123.4: "123", 12345: "12\u202f345", -1234: "-1\u202f234", 1234567: "1\u202f234\u202f567"} {
		if got := Number(v); got != want {
			t.Errorf("%g is %q: want %q", v, got, want)
		}
	}
	if Number(math.NaN()) != "–" {
		t.Error("not a number has no dash")
	}
}

// A caption is broken between words, and none is lost.
func TestWrap(t *testing.T) {
	text := "Pages that one invocation touched after its restore, all served one by one."
	lines := wrap(text, 120, small)
	if len(lines) < 3 || strings.Join(lines, " ") != text {
		t.Errorf("%q", lines)
	}
	for _, l := range lines {
		if strings.Contains(l, " ") && textWidth(l, small) > 120 {
			t.Errorf("%q is wider than it may be", l)
		}
	}
	if wrap("", 120, small) != nil {
		t.Error("a caption that is not there has lines")
	}
}
