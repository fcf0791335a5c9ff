package shim

import (
	"fmt"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// inPod is the spec of a container of a pod.
func inPod(name string, more ...string) *specs.Spec {
	s := &specs.Spec{Process: &specs.Process{}, Annotations: map[string]string{
		annotationType: "container", annotationSandbox: "s1", annotationName: name, annotationNamespace: "ns", annotationPod: "p"}}
	for _, m := range more {
		k, v, _ := strings.Cut(m, "=")
		if strings.HasPrefix(m, knativeRevision) || strings.HasPrefix(m, knativeServes) {
			s.Process.Env = append(s.Process.Env, m)
		} else {
			s.Annotations[k] = v
		}
	}
	return s
}

// gone stands for the end of the container before it.
var gone = &specs.Spec{}

func emptyDir(s *specs.Spec, name string) *specs.Spec {
	s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: "/var/lib/kubelet/pods/p" + emptyDirs + name + "/sub", Destination: "/d"})
	return s
}

func TestWhichContainer(t *testing.T) {
	pause := &specs.Spec{Annotations: map[string]string{annotationType: "sandbox", annotationSandbox: "s1"}}
	named := annotationContainer + "=app"
	knative := knativePrefix + "revision=r"
	for _, tt := range []struct {
		name  string
		specs []*specs.Spec
		want  string // a letter each: v microVM, r runc, x refused, - gone
	}{
		{"outside Kubernetes", []*specs.Spec{{}, {Annotations: map[string]string{"a": "b"}}}, "vv"},
		{"pause and one", []*specs.Spec{pause, inPod("app")}, "rv"},
		{"the only one, again after it has ended", []*specs.Spec{pause, inPod("app"), inPod("app")}, "rvv"},
		{"two, and nothing says which", []*specs.Spec{pause, inPod("app"), inPod("side")}, "rvx"},
		{"the refused one changes nothing", []*specs.Spec{pause, inPod("app"), inPod("side"), inPod("app"), inPod("side")}, "rvxvx"},
		{"another, after the first is gone", []*specs.Spec{pause, inPod("init"), gone, inPod("app"), inPod("side")}, "rv-vx"},
		{"another, of one emptyDir", []*specs.Spec{pause, emptyDir(inPod("init"), "a"), gone, emptyDir(inPod("app"), "a"), inPod("app")}, "rv-xv"},
		{"the third, of the first's emptyDir", []*specs.Spec{emptyDir(inPod("init"), "a"), gone, inPod("b"), gone, emptyDir(inPod("app"), "a")}, "v-v-x"},
		{"another, of its own emptyDir", []*specs.Spec{emptyDir(inPod("init"), "a"), gone, emptyDir(inPod("app"), "b")}, "v-v"},
		{"the same, of one emptyDir", []*specs.Spec{emptyDir(inPod("app"), "a"), gone, emptyDir(inPod("app"), "a")}, "v-v"},
		{"named, whenever it comes", []*specs.Spec{pause, inPod("init", named), inPod("app", named), inPod("side", named)}, "rrvr"},
		{"named, and Knative's", []*specs.Spec{inPod(knativeUser, named), inPod("app", named), inPod(knativeQueue, named)}, "rvr"},
		{"Knative", []*specs.Spec{pause, inPod(knativeUser, knativeRevision+"r"), inPod(knativeQueue)}, "rvr"},
		{"Knative, the proxy first", []*specs.Spec{pause, inPod(knativeQueue), inPod(knativeUser)}, "rrv"},
		{"Knative, with a sidecar", []*specs.Spec{inPod("side", knativeRevision+"r"), inPod("init", knative), inPod(knativeUser, knative)}, "rrv"},
		{"Knative, with a name of its own", []*specs.Spec{pause, inPod("shop", knativeRevision+"r", knativeServes+"8080"), inPod(knativeQueue)}, "rvr"},
		{"Knative, of two without names", []*specs.Spec{inPod(knativeUser+"-0", knativeRevision+"r", knativeServes+"8080"), inPod(knativeUser+"-1", knativeRevision+"r"), inPod(knativeQueue)}, "vrr"},
		{"Knative, of two the second serves", []*specs.Spec{inPod(knativeUser+"-0", knativeRevision+"r"), inPod(knativeUser+"-1", knativeServes+"8080", knativeRevision+"r")}, "rv"},
		{"Knative, and an image gives the other a port", []*specs.Spec{inPod("a", knativeServes+"80", knativeRevision+"r"), inPod("b", knativeServes+"8080", knativeRevision+"r"), inPod(knativeQueue)}, "vxr"},
		{"the same, and it is named", []*specs.Spec{inPod("a", knativeServes+"80", knativeRevision+"r", annotationContainer+"=b"), inPod("b", knativeServes+"8080", knativeRevision+"r", annotationContainer+"=b")}, "rv"},
		{"Knative, again after it has ended", []*specs.Spec{inPod("shop", knativeRevision+"r", knativeServes+"8080"), inPod(knativeQueue), inPod("shop", knativeRevision+"r", knativeServes+"8080")}, "vrv"},
		{"without a name", []*specs.Spec{inPod("")}, "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c chooser
			got := ""
			for i, s := range tt.specs {
				if s == gone {
					c.gone(fmt.Sprint(i - 1))
					got += "-"
					continue
				}
				k, err := c.kindOf(fmt.Sprint(i), s)
				switch {
				case err != nil:
					got += "x"
					if !strings.Contains(err.Error(), "pod ns/p") {
						t.Errorf("the refusal does not name the pod: %v", err)
					}
				case k == kindMicroVM:
					got += "v"
				default:
					got += "r"
				}
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// A pod whose annotation names none of its containers says so at its end.
func TestUnmet(t *testing.T) {
	for _, tt := range []struct {
		named string
		came  []string
		want  string
	}{
		{"", []string{"app"}, ""},
		{"app", []string{"init", "app", "side"}, ""},
		{"app", nil, ""}, // nothing of the pod came this far
		{"apo", []string{"init", "app", "app"}, `skep.dev/container says "apo", and those that came were init, app; did you mean app?`},
	} {
		var c chooser
		for _, name := range tt.came {
			spec := &specs.Spec{Annotations: map[string]string{annotationType: "container", annotationName: name}}
			if tt.named != "" {
				spec.Annotations[annotationContainer] = tt.named
			}
			if _, err := c.kindOf("c", spec); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.unmet(); !strings.HasSuffix(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%q and %q: %q, want %q", tt.named, tt.came, got, tt.want)
		}
	}
}
