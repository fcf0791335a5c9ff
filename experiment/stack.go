package experiment

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/cluster/coldstart"
	"github.com/skep-dev/skep/functions"
)

// Knative is a cluster with Knative Serving on this machine.
type Knative interface {
	// Serve makes a service of one of skep's functions, and has it start until what its
	// starts start from is there.
	Serve(ctx context.Context, s Service) error
	// Ask asks a service for an input when it has no pod, nor any other of these, and its
	// files have left the page cache as the settings say.
	Ask(ctx context.Context, s Service, input int, cold string) (coldstart.Path, *Cache, error)
	// Remove takes all services away.
	Remove(ctx context.Context) error
}

// Service is one of Knative's, made of one of skep's functions.
type Service struct {
	Name        string
	Function    string
	Class       string // its pods' RuntimeClass; "" is runc
	Annotations map[string]string
}

// nodePrefix marks the starts that are skep's node's own, without Kubernetes.
const nodePrefix = "node "

// stack is ours: a cold start through Knative, part by part.
var stack = &Experiment{
	Name: "stack", Figure: "The stack", Title: "A cold start through Knative, part by part",
	Question:    "What share of a cold start through Knative can a snapshot take away at all, and what is next to be taken away?",
	Unavailable: func(set Settings) string { return set.WithoutCluster },
	Functions:   stackFunctions,
	Runs:        5,
	Points: func(set Settings) (points []Point) {
		variants := []string{"runc"}
		if set.GVisor != "" {
			variants = append(variants, "runsc")
		}
		variants = append(variants, "boot")
		policies := stackPolicies(set)
		variants = append(variants, policies...)
		for _, p := range policies {
			variants = append(variants, nodePrefix+p)
		}
		points = turns(set, stackOf(set), variants)
		for i := range points {
			if !strings.HasPrefix(points[i].Variant, nodePrefix) {
				points[i].Seconds += stackSeconds
				if points[i].Run == 0 {
					points[i].Seconds += serveSeconds
				}
			}
		}
		return points
	},
	Measure: measureStack,
	Show:    showStack,
}

const (
	stackSeconds = 20 // of a service to be at zero, and to start
	serveSeconds = 40 // of one to be made
)

func stackPolicies(set Settings) []string {
	if len(set.Policies) > 0 {
		return set.Policies
	}
	return []string{"mmap", "reap", "stream"}
}

// stackFunctions are the least, a small one and a large one.
var stackFunctions = []string{"helloworld", "pyaes", "cnn_serving"}

// stackOf are, of the functions that somebody has named, all but what needs a service of
// the host, which pods do not reach.
func stackOf(set Settings) []string {
	return slices.DeleteFunc(slices.Clone(set.Functions), func(f string) bool {
		if !set.Chosen {
			return !slices.Contains(stackFunctions, f)
		}
		s, err := functions.Settings(f)
		return err == nil && s.Egress == api.EgressHost
	})
}

// serviceOf is the service of a point.
func serviceOf(set Settings, p Point) Service {
	s := Service{Name: "stack-" + nameOf(p.Function) + "-" + p.Variant, Function: p.Function}
	switch p.Variant {
	case "runc":
		return s
	case "runsc":
		s.Class = set.GVisor
		return s
	case "boot":
		s.Annotations = map[string]string{"skep.dev/snapshot": "off"}
	default:
		s.Annotations = map[string]string{"skep.dev/policy": p.Variant}
	}
	s.Class = "skep"
	s.Annotations["skep.dev/memory"] = "256Mi"
	if f, err := functions.Settings(p.Function); err == nil && f.MemoryMiB > 0 {
		s.Annotations["skep.dev/memory"] = fmt.Sprintf("%dMi", f.MemoryMiB)
	}
	return s
}

func measureStack(ctx context.Context, l *Lab, p Point) ([]Sample, error) {
	if policy, ok := strings.CutPrefix(p.Variant, nodePrefix); ok {
		name, err := l.Function(ctx, p.Function, "", nil)
		if err != nil {
			return nil, err
		}
		return one(l.Cold(ctx, name, policy, p.Input))
	}
	return one(l.throughKnative(ctx, serviceOf(l.Set, p), p.Input))
}
