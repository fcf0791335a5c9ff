package main

import (
	"strings"
	"testing"
)

// What --only names must be there, and is refused where one experiment is a verb.
func TestExperimentOnly(t *testing.T) {
	for args, want := range map[string]string{
		"all --only nonsense":        `no experiment "nonsense"`,
		"breakdown --keep-alive -1s": "--keep-alive is -1s",
		"all --only steps,":          `no experiment ""`,
		"policies --only steps":      "unknown flag: --only",
		"all --only stack --cluster": "flag needs an argument",
	} {
		code, _, stderr := skep(t, "", append([]string{"experiment"}, strings.Fields(args)...)...)
		if code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d, %s; want %q", args, code, stderr, want)
		}
	}
	// It runs nothing else: stack alone says why it cannot.
	code, _, stderr := skep(t, "", "experiment", "all", "--only", "stack", "--cluster", t.TempDir(), "--out", t.TempDir())
	if code != 1 || !strings.Contains(stderr, "nothing to measure: stack") {
		t.Errorf("%d: %s", code, stderr)
	}
}
