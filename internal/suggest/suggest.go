// Package suggest finds what a mistyped name was meant to be. It stands beside
// the way of an invocation: the control API and the CLI say it with their errors.
package suggest

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Names returns those of the known names that are nearest to what was typed, and
// near enough to be meant: two letters off, one in short names.
func Names(typed string, known []string) (near []string) {
	if len(typed) > 64 {
		return nil
	}
	least := 2
	if len(typed) < 4 {
		least = 1
	}
	for _, k := range known {
		d := levenshtein.ComputeDistance(strings.ToLower(typed), k)
		switch {
		case d < least:
			least, near = d, []string{k}
		case d == least:
			near = append(near, k)
		}
	}
	slices.Sort(near)
	return near[:min(len(near), 3)]
}

// Text is a question to end a message with, "" if no name is near.
func Text(typed string, known []string) string {
	if near := Names(typed, known); len(near) > 0 {
		return "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return ""
}
