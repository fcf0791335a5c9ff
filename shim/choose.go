package shim

import (
	"fmt"
	"path"
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
	knativeServes   = "PORT="
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
//   - without it, in a pod of Knative's, the one that serves: it is told its PORT;
//   - else the only one there is.
//
// A runtime is not told which containers a pod has, only which one comes next.
// So the last two rules take the first that comes, and while that is there refuse one
// of another name: whoever runs such a pod has to say which is meant. When it is
// gone another may follow, unless it is to find files that the first has left in
// an emptyDir: those were in a guest's memory. In a pod of Knative's the others are
// runc's; only an image may give a PORT to one of them, too.
type chooser struct {
	mu     sync.Mutex // guards what follows
	only   string     // name of the container that was taken to be the only one
	id     string     // its id while it is there; else ""
	left   []string   // emptyDirs that it had, and those before it
	named  string     // name that the pod's annotation has
	came   bool       // a container of that name has come
	others []string   // names of those that have come and are another
}

// kindOf says what a container of this id becomes.
func (c *chooser) kindOf(id string, spec *specs.Spec) (kind, error) {
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
	case named != "":
		if name == named {
			return kindMicroVM, nil
		}
		return kindRunc, nil
	case isKnative(spec) && !serves(spec):
		return kindRunc, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	dirs := emptyDirsOf(spec)
	if c.only != "" && c.only != name {
		if c.id != "" {
			return kindRunc, fmt.Errorf("pod %s has more than one container (%s, %s), and nothing says which is to be the microVM: %s", podOf(a), c.only, name, sayWhich)
		}
		if i := slices.IndexFunc(dirs, func(d string) bool { return slices.Contains(c.left, d) }); i >= 0 {
			return kindRunc, fmt.Errorf("container %s of pod %s is to find what %s has left in an emptyDir (%s), which was in the memory of its microVM: %s", name, podOf(a), c.only, path.Base(dirs[i]), sayWhich)
		}
	}
	c.only, c.id = name, id
	c.left = append(c.left, dirs...)
	return kindMicroVM, nil
}

// gone is told that a container of this id is not there any more.
func (c *chooser) gone(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.id == id {
		c.id = ""
	}
}

const sayWhich = "name the one that is to be the microVM in the pod's annotation " + annotationContainer + ", and have containerd hand it over (pod_annotations = [\"skep.dev/*\"] in the runtime's table, as `skep containerd install` writes it)"

// isOnly tells a container of a pod in which nothing names the one that becomes
// the microVM: it is the only one there is while it is there.
func isOnly(spec *specs.Spec) bool {
	return spec.Annotations[annotationType] == "container" && spec.Annotations[annotationContainer] == "" && !isKnative(spec)
}

// isAlone tells a container in whose network namespace nobody else is.
func isAlone(spec *specs.Spec) bool { return spec.Annotations[annotationType] == "" || isOnly(spec) }

// emptyDirsOf are the kubelet's emptyDirs that a container has mounted, or of which
// it has a part.
func emptyDirsOf(spec *specs.Spec) (dirs []string) {
	for _, m := range spec.Mounts {
		if before, after, ok := strings.Cut(path.Clean(m.Source)+"/", emptyDirs); ok {
			name, _, _ := strings.Cut(after, "/")
			dirs = append(dirs, before+emptyDirs+name)
		}
	}
	return dirs
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
	if name := spec.Annotations[annotationName]; name == knativeQueue || name == knativeUser {
		return true
	}
	for k := range spec.Annotations {
		if strings.HasPrefix(k, knativePrefix) {
			return true
		}
	}
	return hasVariable(spec, knativeRevision)
}

// serves tells, of the containers of a pod of Knative's, the one that serves, whatever
// its service's author calls it: without a name it is user-container, and one of
// several is user-container-0.
func serves(spec *specs.Spec) bool {
	name := spec.Annotations[annotationName]
	return name == knativeUser || name != knativeQueue && hasVariable(spec, knativeRevision) && hasVariable(spec, knativeServes)
}

func hasVariable(spec *specs.Spec, begins string) bool {
	return spec.Process != nil && slices.ContainsFunc(spec.Process.Env, func(v string) bool { return strings.HasPrefix(v, begins) })
}

func podOf(a map[string]string) string {
	if a[annotationPod] == "" {
		return a[annotationSandbox]
	}
	return a[annotationNamespace] + "/" + a[annotationPod]
}
