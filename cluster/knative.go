package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skep-dev/skep/deploy"
)

// KnativeEnv names the environment variable with a directory of Knative Serving, which
// the cluster then has: programs by their names (knativePrograms, and whichever else the
// manifests want), and manifests as a release has them: files *.yaml of Serving's
// custom resources, of Serving itself, and of Kourier, applied in the order of their
// names. Images of which the directory has the program are made from that.
const KnativeEnv = "SKEP_KNATIVE"

// knativePrograms are what a Knative with Kourier does not work without.
var knativePrograms = []string{"activator", "autoscaler", "controller", "envoy", "kourier", "queue", "webhook"}

// knativeDir is the directory; "" is none.
func knativeDir() (string, error) {
	dir := os.Getenv(KnativeEnv)
	if dir == "" {
		return "", nil
	}
	var lacks []string
	for _, p := range knativePrograms {
		if !executable(filepath.Join(dir, p)) {
			lacks = append(lacks, p)
		}
	}
	if lacks != nil {
		return "", fmt.Errorf("%s is %s, which lacks the programs %s", KnativeEnv, dir, strings.Join(lacks, ", "))
	}
	return dir, nil
}

// knative has Knative Serving run in the cluster, with what is there of it.
func (c *Cluster) knative(ctx context.Context, dir string) error {
	c.opts.Step("importing Knative's images")
	ours, err := c.importKnative(ctx, dir)
	if err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s has no manifests (*.yaml)", dir)
	}
	if err != nil {
		return err
	}
	slices.Sort(found)
	for _, file := range found {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		to := c.path("etc/knative", filepath.Base(file))
		if err := write(to, []byte(withImages(string(b), ours))); err != nil {
			return err
		}
		c.opts.Step("applying " + filepath.Base(file))
		// A resource's definition may be in the same file, and takes a moment.
		if err := c.retry(ctx, c.asks("apply", "--server-side", "--force-conflicts", "-f", to)); err != nil {
			return err
		}
	}
	for _, name := range []string{"controller", "webhook", "autoscaler", "activator", "net-kourier-controller"} {
		c.opts.Step("waiting for Knative's " + name)
		if err := c.retry(ctx, c.asks("-n", "knative-serving", "rollout", "status", "deployment/"+name, "--timeout=10s")); err != nil {
			return err
		}
	}
	c.opts.Step("waiting for Kourier's gateway")
	if err := c.retry(ctx, c.asks("-n", "kourier-system", "rollout", "status", "deployment/3scale-kourier-gateway", "--timeout=10s")); err != nil {
		return err
	}
	features := c.path("etc/knative-features.yaml")
	if err := write(features, deploy.KnativeFeatures); err != nil {
		return err
	}
	if err := c.retry(ctx, c.asks("-n", "knative-serving", "patch", "configmap/config-features", "--patch-file", features)); err != nil {
		return err
	}
	for config, data := range map[string]string{
		"network":    `{"ingress-class": "kourier.ingress.networking.knative.dev"}`,
		"deployment": `{"registries-skipping-tag-resolving": "kind.local,ko.local,dev.local,skep.local"}`, // no registry has them: Knative's own, and ours
		"domain":     `{"` + KnativeDomain + `": ""}`,
		// What measures a cold start reads them: when a request came to activator and
		// queue-proxy, and when the autoscaler heard of it.
		"observability": `{"logging.enable-request-log": "true"}`,
		"logging":       `{"loglevel.autoscaler": "debug"}`,
	} {
		if err := c.retry(ctx, c.asks("-n", "knative-serving", "patch", "configmap/config-"+config, "--type=merge", "--patch", `{"data": `+data+`}`)); err != nil {
			return err
		}
	}
	return c.traceKnative(ctx)
}

// KnativeDomain is that of services: NAME.NAMESPACE.KnativeDomain is in the Host of
// requests to Kourier.
const KnativeDomain = "knative.test"

func knativeImage(program string) string { return "skep.local/knative-" + program + ":v1" }

// importKnative makes images of the directory's programs, and returns their names by
// the program's.
func (c *Cluster) importKnative(ctx context.Context, dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	images := map[string]string{}
	for _, e := range entries {
		program := filepath.Join(dir, e.Name())
		if !executable(program) {
			continue
		}
		files, err := withLibraries(program, "/usr/local/bin/"+e.Name())
		if err != nil {
			return nil, err
		}
		// Their pods are to run as somebody else than root, and the images say as whom.
		img, err := imageOf(files, v1.Config{Env: []string{"PATH=/usr/local/bin"}, User: "65532", Entrypoint: []string{"/usr/local/bin/" + e.Name()}})
		if err == nil {
			err = c.Import(ctx, knativeImage(e.Name()), img)
		}
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", program, err)
		}
		images[e.Name()] = knativeImage(e.Name())
	}
	return images, nil
}

// imageLine is one that names an image: of a container, of the sidecar that Knative
// adds, of those that are fetched ahead.
var imageLine = regexp.MustCompile(`(?m)^(\s*(?:- )?(?:image|queue-sidecar-image):\s*)["']?([^\s"']+)["']?[ \t]*$`)

// withImages puts our images into a manifest: where the last part of a reference's path
// is the name of a program.
func withImages(manifest string, ours map[string]string) string {
	return imageLine.ReplaceAllStringFunc(manifest, func(line string) string {
		m := imageLine.FindStringSubmatch(line)
		ref, _, _ := strings.Cut(m[2], "@")
		name, _, _ := strings.Cut(path.Base(ref), ":")
		if image := ours[name]; image != "" {
			return m[1] + image
		}
		return line
	})
}

// withLibraries are the files that a program needs to run elsewhere: itself, and the
// host's libraries that it is linked with.
func withLibraries(program, at string) ([]file, error) {
	files := []file{{from: program, to: at}}
	out, err := exec.Command("ldd", program).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return files, nil // it is linked with none
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(out)) {
		// "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)"
		for _, word := range strings.Fields(line) {
			if filepath.IsAbs(word) {
				if _, err := os.Stat(word); errors.Is(err, fs.ErrNotExist) {
					return nil, fmt.Errorf("%s needs %s, which is not here", program, word)
				}
				files = append(files, file{from: word, to: word})
			}
		}
	}
	return files, nil
}
