package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/cluster/coldstart"
	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/image"
)

// stackNamespace is where the experiment has its services.
const stackNamespace = "skep-experiment"

// knative is a cluster of this machine's, as experiment.Knative.
type knative struct {
	c       *cli
	cluster *cluster.Cluster
	node    coldstart.Node
	client  *http.Client
	at      string              // Kourier's address
	images  map[string]string   // of functions
	layers  map[string][]string // services of runc's and the like -> files of their image
	asked   int
}

var _ experiment.Knative = (*knative)(nil)

// findKnative opens the cluster that dir or the environment's KUBECONFIG names, and says
// in the settings what of it experiments have to know, or why there is none.
func (c *cli) findKnative(ctx context.Context, dir string, set *experiment.Settings) (*knative, error) {
	if dir == "" {
		dir = cluster.DefaultDir
		for _, v := range c.environ {
			if path, ok := strings.CutPrefix(v, "KUBECONFIG="); ok && path != "" {
				dir = filepath.Dir(path) // a cluster's own
			}
		}
	}
	k, err := c.openKnative(ctx, dir)
	if err != nil {
		set.WithoutCluster = fmt.Sprintf("%v; it takes a cluster of this machine's that has Knative: SKEP_KNATIVE=DIR make cluster has one up (docs/kubernetes.md), which KUBECONFIG or --cluster names", err)
		return nil, nil
	}
	set.Cluster = k.cluster.Dir()
	out, err := k.kubectl(ctx, nil, "get", "runtimeclasses", "-o", `jsonpath={range .items[?(@.handler=="runsc")]}{.metadata.name}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	set.GVisor, _, _ = strings.Cut(out, "\n")
	return k, nil
}

func (c *cli) openKnative(ctx context.Context, dir string) (*knative, error) {
	// New makes no directory, and none is to be made here.
	if _, err := os.Stat(filepath.Join(dir, "kubeconfig")); err != nil {
		return nil, fmt.Errorf("no cluster of this machine's is at %s: %w", dir, err)
	}
	cl, err := cluster.New(cluster.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	if pid, err := cl.PID(); err != nil || pid == 0 {
		return nil, errors.Join(err, fmt.Errorf("the cluster of %s is not up", dir))
	}
	k := &knative{c: c, cluster: cl, images: map[string]string{}, layers: map[string][]string{},
		node:   coldstart.Node{Audit: cl.Log("audit"), Containerd: cl.Log("containerd"), Var: cl.OnHost("var")},
		client: &http.Client{Transport: &http.Transport{DialContext: cl.Dial, DisableKeepAlives: true}}}
	ip, err := k.kubectl(ctx, nil, "-n", "kourier-system", "get", "service/kourier", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return nil, fmt.Errorf("the cluster of %s has no Knative with Kourier: %w", dir, err)
	}
	k.at = ip + ":80"
	return k, nil
}

func (k *knative) kubectl(ctx context.Context, stdin []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, k.cluster.Kubectl(), append([]string{"--kubeconfig=" + k.cluster.Kubeconfig()}, args...)...)
	cmd.Stdin = strings.NewReader(string(stdin))
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// of are kubectl's arguments for something in the experiment's namespace.
func of(args ...string) []string { return append([]string{"-n", stackNamespace}, args...) }

// Serve implements experiment.Knative. The first start makes a snapshot, the second what
// it is to be restored with.
func (k *knative) Serve(ctx context.Context, s experiment.Service) error {
	ref, err := k.image(ctx, s.Function)
	if err != nil {
		return err
	}
	objects, err := manifestOf(s, ref)
	if err != nil {
		return err
	}
	if _, err := k.kubectl(ctx, objects, "apply", "-f", "-"); err != nil {
		return err
	}
	if _, err := k.kubectl(ctx, nil, of("wait", "--for=condition=Ready", "ksvc/"+s.Name, "--timeout=5m")...); err != nil {
		return err
	}
	_, _, err = k.Ask(ctx, s, 1, experiment.ColdNone)
	return err
}

// manifestOf are the objects of a service, which goes to zero as soon as Knative lets it.
func manifestOf(s experiment.Service, image string) ([]byte, error) {
	annotations := map[string]string{"autoscaling.knative.dev/window": "6s", "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "0s", "autoscaling.knative.dev/max-scale": "1"}
	for name, value := range s.Annotations {
		annotations[name] = value
	}
	pod := map[string]any{"containers": []any{map[string]any{"image": image, "ports": []any{map[string]any{"containerPort": 8080}}}}}
	if s.Class != "" {
		pod["runtimeClassName"] = s.Class
	}
	return json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": []any{
		map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": stackNamespace}},
		map[string]any{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": map[string]any{"name": s.Name, "namespace": stackNamespace},
			"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": annotations}, "spec": pod}}},
	}})
}

// image gives the cluster the image of one of skep's functions, once.
func (k *knative) image(ctx context.Context, function string) (ref string, err error) {
	if k.images[function] != "" {
		return k.images[function], nil
	}
	local, err := k.c.localImage(ctx, "functions/"+function)
	if err != nil {
		return "", err
	}
	ref = "skep.local/function-" + strings.ReplaceAll(function, "_", "-") + ":v1"
	if dir, ok := strings.CutPrefix(local, "oci:"); ok {
		img, ierr := onlyImage(dir)
		if ierr != nil {
			return "", ierr
		}
		err = k.cluster.Import(ctx, ref, img)
	} else {
		err = k.importDir(ctx, strings.TrimPrefix(local, "dir:"), ref)
	}
	if err == nil {
		k.images[function] = ref
	}
	return ref, err
}

// onlyImage is the image of an OCI layout that has one.
func onlyImage(dir string) (v1.Image, error) {
	path, err := layout.FromPath(dir)
	if err != nil {
		return nil, err
	}
	index, err := path.ImageIndex()
	if err != nil {
		return nil, err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(list.Manifests) != 1 {
		return nil, fmt.Errorf("%s has %d images: want one", dir, len(list.Manifests))
	}
	return path.Image(list.Manifests[0].Digest)
}

func (k *knative) importDir(ctx context.Context, dir, ref string) error {
	f, err := os.CreateTemp(k.cluster.Dir(), "image-*.tar") // where the node sees it
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := image.WriteArchive(ctx, f, dir, ref); err != nil {
		return err
	}
	return k.cluster.ImportArchive(ctx, f.Name())
}

const (
	zeroLimit = 3 * time.Minute // for a service to have no pod
	// zeroRest is how long the node is left alone when the last pod has gone: it takes
	// away what it had.
	zeroRest = time.Second
)

// Ask implements experiment.Knative.
func (k *knative) Ask(ctx context.Context, s experiment.Service, input int, cold string) (p coldstart.Path, cache *experiment.Cache, err error) {
	if err := k.zero(ctx); err != nil {
		return p, nil, err
	}
	revision, err := k.kubectl(ctx, nil, of("get", "ksvc/"+s.Name, "-o", "jsonpath={.status.latestReadyRevisionName}")...)
	if err != nil {
		return p, nil, err
	}
	if cache, err = k.chill(s, cold); err != nil {
		return p, nil, err
	}
	marks, err := k.node.Mark()
	if err != nil {
		return p, nil, err
	}
	k.asked++
	r := coldstart.Request{Namespace: stackNamespace, Revision: revision, ID: fmt.Sprintf("skep%d-%d", os.Getpid(), k.asked)}
	if r.Sent, r.Answered, err = k.get(ctx, s, fmt.Sprintf("/?input=%d&id=%s", input, r.ID)); err != nil {
		return p, nil, err
	}
	if p, err = marks.Path(ctx, r); err != nil {
		return p, nil, err
	}
	if s.Annotations["skep.dev/policy"] != "" && cold != experiment.ColdNone && p.Ready != "there" {
		return p, nil, fmt.Errorf("%s did not start from a ready snapshot: %s", s.Name, p.Ready)
	}
	return p, cache, k.findLayers(ctx, s, p.Pod)
}

// get asks the service, and says when.
func (k *knative) get(ctx context.Context, s experiment.Service, uri string) (sent, answered time.Time, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+k.at+uri, nil)
	if err != nil {
		return sent, answered, err
	}
	req.Host = s.Name + "." + stackNamespace + "." + cluster.KnativeDomain
	sent = time.Now()
	resp, err := k.client.Do(req)
	if err != nil {
		return sent, answered, err
	}
	body, err := io.ReadAll(resp.Body)
	answered = time.Now()
	resp.Body.Close()
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s: %.300s", s.Name, resp.Status, body)
	}
	return sent, answered, err
}

// zero waits until the experiment has no pod. Those that Knative has ended are killed:
// what does not hear a SIGTERM would have the revision's timeout for its end.
func (k *knative) zero(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, zeroLimit, fmt.Errorf("there are still pods after %v", zeroLimit))
	defer cancel()
	killed := map[string]bool{}
	for some := false; ; some = true {
		out, err := k.kubectl(ctx, nil, of("get", "pods", "-o", `jsonpath={range .items[*]}pod {.metadata.deletionTimestamp} {.status.containerStatuses[*].containerID}{"\n"}{end}`)...)
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		if out == "" && some {
			return pause(ctx, zeroRest)
		}
		if out == "" {
			return nil
		}
		for line := range strings.Lines(out) {
			_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			ended, containers, _ := strings.Cut(rest, " ")
			for _, id := range strings.Fields(containers) {
				if id = strings.TrimPrefix(id, "containerd://"); ended != "" && !killed[id] {
					killed[id] = true
					_ = k.cluster.Command(ctx, "ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", id).Run() // it may have ended
				}
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// chill drops what a service's pod starts from from the page cache.
func (k *knative) chill(s experiment.Service, cold string) (*experiment.Cache, error) {
	if cold == experiment.ColdNone {
		return &experiment.Cache{Dropped: cold, Before: -1, Left: -1}, nil
	}
	files := k.layers[s.Name]
	if len(s.Annotations) > 0 {
		var err error
		if files, err = filesBelow(k.cluster.OnHost("var/lib/skep-containerd/images"), k.cluster.OnHost("var/lib/skep-containerd/snapshots")); err != nil {
			return nil, err
		}
	}
	c, err := experiment.DropCache(files)
	c.Dropped = cold
	return &c, err
}

// findLayers finds the files of a pod's image, for what starts from them.
func (k *knative) findLayers(ctx context.Context, s experiment.Service, pod string) error {
	if len(s.Annotations) > 0 || k.layers[s.Name] != nil {
		return nil
	}
	id, err := k.kubectl(ctx, nil, of("get", "pod", pod, "-o", `jsonpath={.status.containerStatuses[?(@.name=="user-container")].containerID}`)...)
	if err != nil {
		return err
	}
	id = strings.TrimPrefix(id, "containerd://")
	mounts, err := k.cluster.Command(ctx, "ctr", "-n", "k8s.io", "snapshots", "mounts", "/nowhere", id).Output()
	if err != nil {
		return fmt.Errorf("asking for the layers of %s: %w", pod, err)
	}
	dirs := lowerDirs(string(mounts))
	for i := range dirs {
		dirs[i] = k.cluster.OnHost(dirs[i])
	}
	if k.layers[s.Name], err = filesBelow(dirs...); err == nil && len(k.layers[s.Name]) == 0 {
		err = fmt.Errorf("the image of %s has no files", pod)
	}
	return err
}

// Remove implements experiment.Knative.
func (k *knative) Remove(ctx context.Context) error {
	if _, err := k.kubectl(ctx, nil, of("delete", "ksvc", "--all", "--timeout=3m")...); err != nil {
		return err
	}
	if err := k.zero(ctx); err != nil {
		return err
	}
	_, err := k.kubectl(ctx, nil, "delete", "namespace", stackNamespace, "--ignore-not-found", "--timeout=3m")
	return err
}

// wantsKnative says that an experiment is among those that need a cluster.
func wantsKnative(set experiment.Settings) bool { return slices.Contains(set.Experiments, "stack") }
