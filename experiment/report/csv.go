package report

import (
	"encoding/csv"
	"io"
	"regexp"
	"strings"

	"github.com/skep-dev/skep/experiment"
)

// interval is a value with its interval, as tables show it.
var interval = regexp.MustCompile(`^(\S+) \[(\S+)–(\S+)\](.*)$`)

// writeCSV writes a table for machines: numbers without spaces in them, and an
// interval as two columns of its own.
func writeCSV(w io.Writer, t experiment.Table) error {
	out := csv.NewWriter(w)
	wide := make([]bool, len(t.Head))
	for _, row := range t.Rows {
		for i, cell := range row {
			wide[i] = wide[i] || interval.MatchString(cell)
		}
	}
	var head []string
	for i, h := range t.Head {
		if head = append(head, h); wide[i] {
			head = append(head, h+" low", h+" high")
		}
	}
	rows := [][]string{head}
	for _, row := range t.Rows {
		var cells []string
		for i, cell := range row {
			cell = strings.ReplaceAll(cell, "\u202f", "")
			m := interval.FindStringSubmatch(cell)
			switch {
			case m != nil:
				cells = append(cells, m[1]+m[4], m[2], m[3])
			case wide[i]:
				cells = append(cells, cell, "", "")
			default:
				cells = append(cells, cell)
			}
		}
		rows = append(rows, cells)
	}
	return out.WriteAll(rows)
}
