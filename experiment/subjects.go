package experiment

import (
	"slices"
	"strings"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
)

// subject is a function that experiments measure.
type subject struct {
	name     string
	settings api.Function // what it needs; the rest is the paper's: one vCPU, 256 MiB
	warm     float64      // seconds that a warm call takes about, emulated
}

// Inputs is how many distinct inputs each function has, selected by ?input=N.
const Inputs = 4

// subjects are FunctionBench, in the order of the paper's table.
var subjects = []subject{
	{name: "helloworld", warm: 0.01},
	{name: "chameleon", warm: 0.6},
	{name: "pyaes", warm: 0.1},
	{name: "image_rotate", warm: 0.8},
	{name: "json_serdes", warm: 0.6},
	{name: "lr_serving", warm: 0.1},
	{name: "cnn_serving", warm: 4},
	{name: "rnn_serving", warm: 0.5},
	{name: "lr_training", warm: 30},
	{name: "video_processing", warm: 10},
	// Not the paper's.
	{name: "hello", warm: 0.01, settings: api.Function{Env: map[string]string{"HELLO_TABLE_MIB": "32"}}},
	{name: "hello-python", warm: 0.01},
}

// memoryMiB is the guest memory that it gets.
func (s subject) memoryMiB() int {
	if s.settings.MemoryMiB > 0 {
		return s.settings.MemoryMiB
	}
	return 256
}

func subjectOf(name string) subject {
	for _, s := range subjects {
		if s.name == name {
			return s
		}
	}
	return subject{name: name, warm: 1}
}

// nameOf makes a name that can be a host's.
func nameOf(subject string) string { return strings.ReplaceAll(subject, "_", "-") }

// DefaultFunctions are the paper's functions as far as they are built in.
func DefaultFunctions() []string {
	var out []string
	built := functions.Names()
	for _, s := range subjects {
		if slices.Contains(built, s.name) && !strings.HasPrefix(s.name, "hello") || s.name == "helloworld" && slices.Contains(built, s.name) {
			out = append(out, s.name)
		}
	}
	if len(out) == 0 {
		out = []string{"hello-python"}
	}
	return out
}

// simplest is the function that the paper calls helloworld, where there is it.
func simplest(set Settings) string {
	for _, f := range set.Functions {
		if f == "helloworld" {
			return f
		}
	}
	return set.Functions[0]
}
