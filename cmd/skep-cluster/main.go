// Command skep-cluster runs a Kubernetes of one node on this machine, with skep as a
// runtime of its containerd: `make cluster`. What it does is in package cluster.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/cluster"
	"github.com/skep-dev/skep/guest/kernel"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "skep-cluster:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var o cluster.Options
	root := &cobra.Command{
		Use:           "skep-cluster",
		Short:         "run a Kubernetes of one node on this machine, with skep as a runtime",
		SilenceErrors: true, SilenceUsage: true,
	}
	root.PersistentFlags().StringVar(&o.Dir, "dir", cluster.DefaultDir, "directory of the cluster's files; two directories are two clusters")
	inNode := func(name string, do func(context.Context, *cluster.Cluster) error) *cobra.Command {
		return &cobra.Command{Use: name, Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := cluster.New(o)
			if err != nil {
				return err
			}
			return do(cmd.Context(), c)
		}}
	}
	root.AddCommand(upCommand(&o), downCommand(&o), runCommand(&o), imageCommand(),
		inNode("init", func(_ context.Context, c *cluster.Cluster) error { return c.Init() }),
		inNode("node", func(ctx context.Context, c *cluster.Cluster) error { return c.Node(ctx) }))
	return root
}

// progress shows each step and how long it took where a person sees it.
func progress(w *os.File) (step func(string), done func()) {
	if !isatty.IsTerminal(w.Fd()) {
		return nil, func() {}
	}
	began := time.Time{}
	done = func() {
		if !began.IsZero() {
			fmt.Fprintf(w, " (%.1f s)\n", time.Since(began).Seconds())
		}
		began = time.Time{}
	}
	return func(s string) {
		done()
		began = time.Now()
		fmt.Fprintf(w, "%s …", s)
	}, done
}

func upCommand(o *cluster.Options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "have the cluster up, and say how to use it",
		Long: `Have the cluster up: etcd, the control plane, containerd with skep, kubelet, kube-proxy
and CoreDNS, in namespaces of their own. They run on in the background. What is there
already is not done again. Programs of Kubernetes are taken from the directory that
SKEP_KUBERNETES names, or built once; containerd's are the host's, or those
in the directory that SKEP_CONTAINERD names. With SKEP_KNATIVE, a directory of Knative's
programs and manifests, Knative Serving runs there too.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			step, done := progress(os.Stderr)
			defer done()
			o.Skep, o.Pause, o.Step = filepath.Dir(self), filepath.Join(filepath.Dir(self), "skep-pause"), step
			if o.Kernels, err = kernels(cmd.Context(), step); err != nil {
				return err
			}
			c, err := cluster.New(*o)
			if err != nil {
				return err
			}
			if err := c.Up(cmd.Context()); err != nil {
				return err
			}
			done()
			return tell(os.Stdout, c, asJSON)
		},
	}
	cmd.Flags().BoolVar(&o.Bare, "bare", false, "leave skep out of the node: to install it as on any other (deploy/)")
	cmd.Flags().BoolVar(&o.Traces, "traces", false, "run a collector on the node, and have kubelet, containerd, skep and Knative send it their spans")
	cmd.Flags().BoolVar(&o.Metrics, "metrics", false, "have metrics-server there, too, for kubectl top")
	cmd.Flags().BoolVar(&asJSON, "json", false, "say it as JSON")
	return cmd
}

// kernels is the directory with the guest kernel, which is fetched when it is not there.
func kernels(ctx context.Context, step func(string)) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache directory: set XDG_CACHE_HOME or HOME: %w", err)
	}
	dir := filepath.Join(cache, "skep", "kernels")
	if _, err := kernel.Default(dir); err == nil {
		return dir, nil
	}
	if step == nil {
		step = func(string) {}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	_, err = kernel.Fetch(ctx, dir, step)
	return dir, err
}

// tell says how to use the cluster: to a person with an example, else line by line.
func tell(w *os.File, c *cluster.Cluster, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(map[string]string{"kubeconfig": c.Kubeconfig(), "kubectl": c.Kubectl()})
	}
	if !isatty.IsTerminal(w.Fd()) {
		_, err := fmt.Fprintf(w, "KUBECONFIG=%s\nKUBECTL=%s\n", c.Kubeconfig(), c.Kubectl())
		return err
	}
	return example(w, c)
}

func example(w io.Writer, c *cluster.Cluster) error {
	_, err := fmt.Fprintf(w, `
The cluster is up. To use it:

  export KUBECONFIG=%s PATH=%s:$PATH
  kubectl run hello --image=%s --overrides='{"spec": {"runtimeClassName": "skep"}}'
  kubectl wait --for=condition=Ready pod/hello --timeout=2m
  kubectl port-forward pod/hello 8080:8080 & sleep 2; curl http://127.0.0.1:8080/

bin/skep-cluster run -- COMMAND runs a command in the node; make cluster-down ends it all.
`, c.Kubeconfig(), filepath.Dir(c.Kubectl()), cluster.HelloImage)
	return err
}

func downCommand(o *cluster.Options) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "end the cluster and remove all that there is of it, but for programs that were built",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			step, done := progress(os.Stderr)
			defer done()
			o.Step = step
			c, err := cluster.New(*o)
			if err != nil {
				return err
			}
			return c.Down(cmd.Context())
		},
	}
}

func runCommand(o *cluster.Options) *cobra.Command {
	return &cobra.Command{
		Use:     "run -- COMMAND [ARGUMENT]...",
		Short:   "run a command in the node: it sees its processes, network, mounts and programs",
		Example: "  skep-cluster run -- crictl ps\n  skep-cluster run -- curl http://10.244.0.7:8080/",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster.New(*o)
			if err != nil {
				return err
			}
			inside := c.Command(cmd.Context(), args...)
			inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, os.Stderr
			return inside.Run()
		},
	}
}

func imageCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "image FILE",
		Short:   "write the image that deploy/ runs on the nodes of a cluster, as an archive",
		Example: "  skep-cluster image node.tar && ctr -n k8s.io images import node.tar",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			step, done := progress(os.Stderr)
			defer done()
			dir, err := kernels(cmd.Context(), step)
			if err != nil {
				return err
			}
			return cluster.WriteNodeImage(cmd.Context(), args[0], filepath.Dir(self), dir)
		},
	}
}
