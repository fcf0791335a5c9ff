package experiment

import (
	"slices"
	"strings"

	"github.com/skep-dev/skep/functions"
)

// Inputs is how many distinct inputs each function has at least, selected by
// ?input=N.
const Inputs = 4

// warmSeconds is about how long a warm call of a function takes under emulation:
// for saying how long a run will take.
var warmSeconds = map[string]float64{
	"chameleon": 0.05, "pyaes": 0.1, "image_rotate": 0.8, "json_serdes": 2.5, "lr_serving": 0.05,
	"cnn_serving": 1.1, "rnn_serving": 0.5, "lr_training": 3.5, "video_processing": 1.2,
}

// nameOf makes a name that can be a host's.
func nameOf(subject string) string { return strings.ReplaceAll(subject, "_", "-") }

// DefaultFunctions are the paper's.
func DefaultFunctions() []string { return functions.Bench() }

// simplest is the function that the paper calls helloworld, where it is measured.
func simplest(set Settings) string {
	if slices.Contains(set.Functions, "helloworld") {
		return "helloworld"
	}
	return set.Functions[0]
}
