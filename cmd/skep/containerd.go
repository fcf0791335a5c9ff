package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/guest/kernel"
)

func (c *cli) containerdCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "make skep a runtime of this host's containerd",
		Example: `  skep containerd install
  skep containerd status
  skep containerd uninstall`,
	}
	onlyVerbs(cmd)
	var h containerd.Host
	var noKernel bool
	hostFlags := func(fs *pflag.FlagSet) {
		fs.StringVar(&h.Root, "root", "", "directory that is taken for /")
		fs.StringVar(&h.BinDir, "bin-dir", "/usr/local/bin", "directory of programs; it must be on the PATH of containerd")
		fs.StringVar(&h.Config, "containerd-config", "/etc/containerd/config.toml", "containerd's configuration")
		fs.StringVar(&h.Containerd, "containerd", "containerd", "containerd's program, which is asked for its version")
		fs.StringVar(&h.Version, "containerd-version", "", "its version, where the program is not here (1.7.28)")
	}
	settings := func(fs *pflag.FlagSet) {
		fs.StringVar(&h.SettingsFrom, "settings", "", "install settings from this `DIR`: of containerd.toml, credentials (of the object store, as AWS's) and store.key what is there, into /etc/skep")
	}
	install := &cobra.Command{
		Use:   "install",
		Short: "install the shim, and write the runtime into containerd's configuration",
		Long: `Install the shim containerd-shim-skep-v2, the guest's agent and skep-store, which
talks to the object store, where one is set; fetch the guest kernel into /var/lib/skep-containerd, where shims keep what they share, and write the
runtime io.containerd.skep.v2 into containerd's configuration, as the runtime
"skep" of the CRI: into a file of its own in conf.d where that imports it
(since 2.2), else to the end of config.toml, between two comments. containerd is
asked whether it takes the result; if not, all stays as it was. A second time
nothing is done. containerd reads its configuration when it starts.`,
		Example: `  skep containerd install && systemctl restart containerd
  skep containerd install --root /mnt/image --containerd-version 1.7.28`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := programsDir()
			if err != nil {
				return err
			}
			if !noKernel {
				h.Kernel = c.shimKernel
			}
			steps, err := h.Install(cmd.Context(), from)
			if err := c.told(steps, err); err != nil {
				return err
			}
			if len(steps) > 0 && h.Root == "" && !c.json {
				fmt.Fprintln(c.out, "restart containerd to have it see the runtime: systemctl restart containerd")
			}
			return nil
		},
	}
	settings(install.Flags())
	install.Flags().BoolVar(&noKernel, "no-kernel", false, "leave the guest kernel out: it is put into the data directory's kernels by other means")
	uninstall := &cobra.Command{
		Use:     "uninstall",
		Short:   "undo what install did; what else is in containerd's configuration stays",
		Example: `  skep containerd uninstall && systemctl restart containerd`,
		Args:    nArgs(0, 0),
		RunE: func(*cobra.Command, []string) error {
			steps, err := h.Uninstall()
			return c.told(steps, err)
		},
	}
	status := &cobra.Command{
		Use:     "status",
		Short:   "show what of an installation is there",
		Example: `  skep containerd status --json`,
		Args:    nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := programsDir()
			if err != nil {
				return err
			}
			parts := h.Status(cmd.Context(), from)
			all := true
			for _, p := range parts {
				all = all && p.OK
			}
			if c.json {
				if err := c.writeJSON(parts); err != nil || all {
					return err
				}
				return errSilent
			}
			for _, p := range parts {
				mark := "ok"
				if !p.OK {
					mark = "no"
				}
				fmt.Fprintf(c.out, "%-2s  %-23s  %s\n", mark, p.Name, p.Detail)
			}
			if !all {
				return errors.New("skep is not a runtime of this host's containerd: `skep containerd install` makes it one")
			}
			return nil
		},
	}
	var remove bool
	var metrics string
	node := &cobra.Command{
		Use:   "node",
		Short: "install on a node of a cluster from within a pod, and keep it so",
		Long: `Do as install does on the host whose root directory is mounted at --root, and have
containerd read its configuration anew, by ending it: what supervises it starts it
again, and containers go on. Then look every five minutes whether all is still there,
until SIGTERM, which leaves the installation. The guest kernel is the one beside this
program (the directory kernels). With --remove it does as uninstall instead.

With --metrics it keeps the records of the node's containers, which skep records
--containers shows, serves metrics of them, by revision, and removes snapshots that
nobody uses any more.

deploy/ has the DaemonSet that runs it, and says which rights it needs.`,
		Example: `  skep containerd node --root /host`,
		Args:    nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := programsDir()
			if err != nil {
				return err
			}
			h.Kernel = func(_ context.Context, dir string) (string, error) {
				return copyKernels(filepath.Join(from, containerd.KernelDir), dir)
			}
			g, ctx := errgroup.WithContext(cmd.Context())
			g.Go(func() error { return c.equipNode(ctx, h, from, remove) })
			if metrics != "" && !remove {
				g.Go(func() error { return c.countContainers(ctx, h, metrics) })
			}
			return g.Wait()
		},
	}
	settings(node.Flags())
	node.Flags().StringVar(&metrics, "metrics", "", "serve metrics at `ADDRESS`, such as :9464, at the path /metrics")
	node.Flags().BoolVar(&remove, "remove", false, "uninstall instead")
	for _, v := range []*cobra.Command{install, uninstall, status, node} {
		hostFlags(v.Flags())
		cmd.AddCommand(v)
	}
	return cmd
}

// shimKernel fetches the guest kernel of shims, unless there is one.
func (c *cli) shimKernel(ctx context.Context, dir string) (string, error) {
	if _, err := kernel.Default(dir); err == nil {
		return "", nil
	}
	k, err := kernel.Fetch(ctx, dir, func(step string) { c.say("%s …", step) })
	if err != nil {
		return "", err
	}
	return "fetched guest kernel " + k.Path, nil
}

// told shows what was done, also when the rest of it failed.
func (c *cli) told(steps []string, err error) error {
	if c.json {
		if steps == nil {
			steps = []string{}
		}
		return errors.Join(c.writeJSON(map[string][]string{"steps": steps}), err)
	}
	for _, s := range steps {
		fmt.Fprintln(c.out, s)
	}
	if len(steps) == 0 && err == nil {
		fmt.Fprintln(c.out, "there is nothing to do")
	}
	return err
}

// programsDir is where this program is: the others are beside it.
func programsDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Dir(self), nil
}
