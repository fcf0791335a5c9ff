package shim

import (
	"fmt"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
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
	mu   sync.Mutex // guards only
	only string     // name of the container that was taken to be the only one
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
