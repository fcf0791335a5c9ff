package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/skep-dev/skep/experiment"
)

// Without a cluster the experiment says how to have one, and measures nothing.
func TestStackWithoutCluster(t *testing.T) {
	code, _, stderr := skep(t, "", "experiment", "stack", "--cluster", t.TempDir(), "--out", t.TempDir())
	if code == 0 || !strings.Contains(stderr, "SKEP_KNATIVE=DIR make cluster") || !strings.Contains(stderr, "docs/kubernetes.md") {
		t.Errorf("%d: %s", code, stderr)
	}
}

// A service's pods are of the class that is wanted, told what their start is, and gone
// as soon as Knative lets them.
func TestManifestOf(t *testing.T) {
	b, err := manifestOf(experiment.Service{Name: "s", Class: "skep", Annotations: map[string]string{"skep.dev/policy": "reap"}}, "img")
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		Items []struct {
			Kind string
			Spec struct {
				Template struct {
					Metadata struct{ Annotations map[string]string }
					Spec     struct {
						RuntimeClassName string
						Containers       []struct{ Image string }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(b, &list); err != nil || len(list.Items) != 2 || list.Items[1].Kind != "Service" {
		t.Fatalf("%v: %s", err, b)
	}
	s := list.Items[1].Spec.Template
	if a := s.Metadata.Annotations; s.Spec.RuntimeClassName != "skep" || s.Spec.Containers[0].Image != "img" || a["skep.dev/policy"] != "reap" || a["autoscaling.knative.dev/max-scale"] != "1" {
		t.Errorf("%s", b)
	}
	if b, err := manifestOf(experiment.Service{Name: "s"}, "img"); err != nil || strings.Contains(string(b), "runtimeClassName") {
		t.Errorf("of runc: %s, %v", b, err)
	}
}
