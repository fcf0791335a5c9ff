package experiment

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/skep-dev/skep/cluster/coldstart"
	"github.com/skep-dev/skep/experiment/chart"
	"github.com/skep-dev/skep/experiment/stat"
)

// storey is a part of the stack, as the figure has it.
type storey struct {
	name  string
	ink   chart.Ink
	parts []string // of a coldstart.Path
	node  []string // phases of the node's own start that are the same
}

var storeys = []storey{
	{"Knative asks for a pod", chart.Sky, []string{"ingress", "activator", "autoscaler"}, nil},
	{"Kubernetes places it", chart.Grey, []string{"controllers", "scheduler", "kubelet"}, nil},
	{"sandbox and network", chart.Purple, []string{"cni", "sandbox"}, nil},
	{"container", chart.Blue, ours, nil},
	{"queue-proxy", chart.Yellow, []string{"sidecar"}, nil},
	{"readiness", chart.Green, []string{"readiness"}, nil},
	{"request", chart.Orange, []string{"function", "answer"}, nil},
}

// ours are the parts of a container's start, from the CRI's create call to its process
// running; of a snapshot's, to its having answered.
var ours = []string{"create", "containerd", "shim", "vmm", "files", "process", "start"}

// containerStoreys are the parts of a container's start and what the node's own has of them.
var containerStoreys = []storey{
	{"containerd", chart.Grey, []string{"create", "containerd"}, nil},
	{"disk, network", chart.Purple, []string{"shim"}, []string{"queue", "slot"}},
	{"VMM and memory", chart.Blue, []string{"vmm"}, []string{"spawn", "load", "install", "resume", "boot"}},
	{"files", chart.Yellow, []string{"files"}, nil},
	{"process goes on", chart.Green, []string{"process", "start"}, []string{"clone", "init", "connect"}},
	{"request", chart.Orange, []string{"function"}, []string{"process", "stream"}},
}

// of is what a storey took in one start, in milliseconds.
func (st storey) of(s Sample) float64 {
	if s.Stack != nil {
		return ms(s.Stack.Of(st.parts...))
	}
	return stageTime(s, stage{phases: st.node})
}

// storeyBar is a bar of medians, scaled to that of the sums.
func storeyBar(label string, all []Sample, of []storey) chart.Bar {
	sums := values(all, func(s Sample) float64 { return sumOf(s, of) })
	b := chart.Bar{Label: label, Summary: stat.Summarize(sums), Samples: sums}
	sum := 0.0
	for _, st := range of {
		v := stat.Median(values(all, st.of))
		b.Parts = append(b.Parts, chart.Part{Name: st.name, Value: v, Ink: st.ink})
		sum += v
	}
	for i := range b.Parts {
		if sum > 0 {
			b.Parts[i].Value *= b.Summary.Median / sum
		}
	}
	return b
}

func sumOf(s Sample, of []storey) (sum float64) {
	for _, st := range of {
		sum += st.of(s)
	}
	return sum
}

func keysOf(all []storey) (keys []chart.Key) {
	for _, st := range all {
		keys = append(keys, chart.Key{Name: st.name, Ink: st.ink})
	}
	return keys
}

func showStack(all []Sample) Section {
	whole := &chart.Bars{Info: chart.Info{Name: "stack-parts", Title: "From zero through Knative, by runtime",
		Caption: "From the client's request at a service without a pod to its answer. " + stageCaption}, Unit: "ms", Keys: keysOf(storeys)}
	own := &chart.Bars{Info: chart.Info{Name: "stack-container", Title: "A microVM's start under Kubernetes, and the same without",
		Caption: "From the CRI's create call to the container's having started, and its answer to the request; beside it the same restore by skep's node. " + stageCaption},
		Unit: "ms", Keys: keysOf(containerStoreys)}
	parts := Table{Name: "stack-parts", Head: []string{"function", "runtime", "total ms"}}
	parts.Head = append(parts.Head, coldstart.Names...)
	goal := Table{Name: "stack-container", Head: []string{"function", "policy", "under Kubernetes ms", "by the node ms", "ratio"}}
	sec := Section{}
	for _, f := range functionsOf(all) {
		w, o := chart.Group{Label: f}, chart.Group{Label: f}
		for _, v := range variantsOf(pick(all, f, "")) {
			of := pick(all, f, v)
			if policy, ok := strings.CutPrefix(v, nodePrefix); ok {
				under := pick(all, f, policy)
				o.Bars = append(o.Bars, storeyBar(policy, under, containerStoreys), storeyBar(v, of, containerStoreys))
				r := containerRatio(under, of)
				goal.Rows = append(goal.Rows, []string{f, policy, span(stat.Summarize(values(under, containerTime))), span(summary(of)), fmt.Sprintf("%s [%s–%s]", number(r.Value), number(r.Lo), number(r.Hi))})
				continue
			}
			w.Bars = append(w.Bars, storeyBar(v, of, storeys))
			row := []string{f, v, span(summary(of))}
			for _, name := range coldstart.Names {
				row = append(row, number(partTime(of, name)))
			}
			parts.Rows = append(parts.Rows, row)
		}
		whole.Groups, own.Groups = append(whole.Groups, w), append(own.Groups, o)
		sec.Findings = append(sec.Findings, stackFindings(f, pick(all, f, ""))...)
	}
	sec.Charts, sec.Tables = []chart.Chart{whole, own}, []Table{parts, goal}
	sec.Caveats = []string{"What a boundary between parts is, and which log tells it, is in docs/kubernetes.md. A part ends when the next one can begin, so what goes on beside it is in none."}
	return sec
}

// partTime is the median of a part, in milliseconds.
func partTime(of []Sample, names ...string) float64 {
	return stat.Median(values(of, func(s Sample) float64 {
		if s.Stack == nil {
			return 0
		}
		return ms(s.Stack.Of(names...))
	}))
}

// containerTime is what is ours of a cold start, or all of the node's own.
func containerTime(s Sample) float64 {
	if s.Stack == nil {
		return s.Total()
	}
	return sumOf(s, containerStoreys)
}

// containerRatio is how much longer a container's start takes than the node's own, in
// pairs of one run.
func containerRatio(under, node []Sample) stat.Ratio {
	var x, y []float64
	for _, a := range under {
		for _, b := range node {
			if a.Run == b.Run {
				x, y = append(x, containerTime(a)), append(y, containerTime(b))
			}
		}
	}
	return stat.Paired(x, y)
}

// takeable are the parts that depend on what the container starts from: the others are
// the same for every runtime.
var takeable = append([]string{"readiness", "function"}, ours...)

// stackFindings say of a function what a snapshot takes away, and what is left.
func stackFindings(f string, all []Sample) (out []string) {
	boot := pick(all, f, "boot")
	var best []Sample
	for _, v := range variantsOf(all) {
		of := pick(all, f, v)
		if v == "runc" || v == "runsc" || v == "boot" || strings.HasPrefix(v, nodePrefix) {
			continue
		}
		if best == nil || summary(of).Median < summary(best).Median {
			best = of
		}
	}
	if len(boot) == 0 || len(best) == 0 {
		return nil
	}
	all0, own0 := summary(boot).Median, partTime(boot, takeable...)
	all1, own1 := summary(best).Median, partTime(best, takeable...)
	name := best[0].Variant
	out = append(out, fmt.Sprintf("%s: of %s ms from zero with a microVM that boots, %s are its container's start, its readiness and its answer (%s): all that a snapshot can take away. Under %s %s ms of %s are left of it (%s).",
		f, number(all0), number(own0), percent(own0/all0), name, number(own1), number(all1), percent(own1/all1)))
	if runc := pick(all, f, "runc"); len(runc) > 0 {
		out = append(out, fmt.Sprintf("%s: with runc it takes %s ms, %s as long as under %s.", f, number(summary(runc).Median), times(summary(runc).Median/all1), name))
	}
	type left struct {
		name string
		ms   float64
	}
	var next []left
	for _, part := range coldstart.Names {
		next = append(next, left{part, partTime(best, part)})
	}
	slices.SortFunc(next, func(a, b left) int { return cmp.Compare(b.ms, a.ms) })
	var largest []string
	for _, l := range next[:4] {
		largest = append(largest, fmt.Sprintf("%s %s", l.name, number(l.ms)))
	}
	out = append(out, fmt.Sprintf("%s: next to be taken away under %s are, in ms: %s.", f, name, strings.Join(largest, ", ")))
	return out
}
