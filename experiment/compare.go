package experiment

import (
	"fmt"
	"math"

	"github.com/skep-dev/skep/experiment/stat"
)

// Compared is one kind of point in two runs.
type Compared struct {
	Experiment string       `json:"experiment"`
	Function   string       `json:"function"`
	Variant    string       `json:"variant"`
	N          int          `json:"n,omitempty"`
	A          stat.Summary `json:"a"` // milliseconds
	B          stat.Summary `json:"b"`
	Change     stat.Ratio   `json:"change"`
	P          *float64     `json:"p,omitempty"`
	Verdict    string       `json:"verdict"`
}

// Compare compares the times of all points that both runs have.
func Compare(a, b *Data) []Compared {
	type kind struct {
		experiment, function, variant string
		n                             int
	}
	of := func(s Sample) kind { return kind{s.Experiment, s.Function, s.Variant, s.N} }
	var out []Compared
	for _, k := range distinct(a.Samples, of) {
		same := func(s Sample) bool { return of(s) == k && s.Total() > 0 }
		va, vb := totals(where(a.Samples, same)), totals(where(b.Samples, same))
		if len(va) == 0 || len(vb) == 0 {
			continue
		}
		c := stat.Compare(va, vb)
		row := Compared{k.experiment, k.function, k.variant, k.n, c.A, c.B, c.Change, nil, verdict(c)}
		if !math.IsNaN(c.P) {
			row.P = &c.P
		}
		out = append(out, row)
	}
	return out
}

func verdict(c stat.Comparison) string {
	switch {
	case c.TooFew:
		return "too few samples to tell"
	case !c.Significant:
		return "no difference beyond noise"
	case c.Change.Value < 1:
		return "faster"
	}
	return "slower"
}

// CompareTable is a table of comparisons, with its head.
func CompareTable(rows []Compared) [][]string {
	out := [][]string{{"EXPERIMENT", "FUNCTION", "VARIANT", "A ms", "B ms", "B/A", "95% INTERVAL", "p", "VERDICT"}}
	for _, r := range rows {
		variant := r.Variant
		if r.N > 0 {
			variant = fmt.Sprintf("%s ×%d", variant, r.N)
		}
		p := "–"
		if r.P != nil {
			p = fmt.Sprintf("%.3f", *r.P)
		}
		out = append(out, []string{r.Experiment, r.Function, variant, number(r.A.Median), number(r.B.Median), number(r.Change.Value),
			number(r.Change.Lo) + "–" + number(r.Change.Hi), p, r.Verdict})
	}
	return out
}
