package shim

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skep-dev/skep/internal/suggest"
)

// Annotations of the CRI's, which every containerd gives to what it makes for
// Kubernetes.
const (
	annotationType      = "io.kubernetes.cri.container-type"
	annotationSandbox   = "io.kubernetes.cri.sandbox-id"
	annotationName      = "io.kubernetes.cri.container-name"
	annotationNamespace = "io.kubernetes.cri.sandbox-namespace"
	annotationPod       = "io.kubernetes.cri.sandbox-name"
)

// annotationContainer names the container of a pod that becomes a microVM.
const annotationContainer = "skep.dev/container"

// Knative's names of containers, and what else tells a pod of its.
const (
	knativeUser     = "user-container"
	knativeQueue    = "queue-proxy"
	knativePrefix   = "serving.knative.dev/"
	knativeRevision = "K_REVISION="
)

// kind is what a container becomes.
type kind int

const (
	kindRunc    kind = iota // one of runc's
	kindMicroVM             // a microVM
)

// chooser says which containers of a shim become microVMs:
//
//   - outside Kubernetes every one;
//   - in a pod never the pause container; and of the others
//   - the one that the annotation skep.dev/container names, and no other;
//   - without it, in a pod of Knative's, the one called user-container;
//   - else the only one there is.
//
// A runtime is not told which containers a pod has, only which one comes next.
// So the last rule takes the first that comes, and refuses the next one of
// another name: whoever runs such a pod has to say which is meant.
type chooser struct {
	mu     sync.Mutex // guards what follows
	only   string     // name of the container that was taken to be the only one
	named  string     // name that the pod's annotation has
	came   bool       // a container of that name has come
	others []string   // names of those that have come and are another
}

func (c *chooser) kindOf(spec *specs.Spec) (kind, error) {
	a := spec.Annotations
	switch a[annotationType] {
	case "":
		return kindMicroVM, nil
	case "sandbox":
		return kindRunc, nil
	}
	name, named := a[annotationName], a[annotationContainer]
	c.note(name, named)
	switch {
	case name == "":
		return kindRunc, fmt.Errorf("container of pod %s: containerd does not say its name (annotation %s), so whether it is to be a microVM is unknown", podOf(a), annotationName)
	case named != "" && name == named, name == knativeUser && named == "":
		return kindMicroVM, nil
	case named != "", isKnative(spec):
		return kindRunc, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.only == "" || c.only == name {
		c.only = name
		return kindMicroVM, nil
	}
	return kindRunc, fmt.Errorf("pod %s has more than one container (%s, %s), and nothing says which is to be the microVM: name it in the pod's annotation %s, and have containerd hand it over (pod_annotations = [\"skep.dev/*\"] in the runtime's table, as `skep containerd install` writes it)",
		podOf(a), c.only, name, annotationContainer)
}

// note remembers who has come, for unmet.
func (c *chooser) note(name, named string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.named = named
	c.came = c.came || name == named
	if name != named && !slices.Contains(c.others, name) {
		c.others = append(c.others, name)
	}
}

// unmet says that the pod's annotation names a container that has never come, if so: a
// misspelt name leaves all of a pod to runc. That is not known before the pod's end.
func (c *chooser) unmet() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.named == "" || c.came || len(c.others) == 0 {
		return ""
	}
	return fmt.Sprintf("no container of this pod was a microVM: its annotation %s says %q, and those that came were %s%s",
		annotationContainer, c.named, strings.Join(c.others, ", "), suggest.Text(c.named, c.others))
}

// isKnative tells a container of a pod of Knative's.
func isKnative(spec *specs.Spec) bool {
	if spec.Annotations[annotationName] == knativeQueue {
		return true
	}
	for k := range spec.Annotations {
		if strings.HasPrefix(k, knativePrefix) {
			return true
		}
	}
	if spec.Process != nil {
		for _, v := range spec.Process.Env {
			if strings.HasPrefix(v, knativeRevision) {
				return true
			}
		}
	}
	return false
}

func podOf(a map[string]string) string {
	if a[annotationPod] == "" {
		return a[annotationSandbox]
	}
	return a[annotationNamespace] + "/" + a[annotationPod]
}
