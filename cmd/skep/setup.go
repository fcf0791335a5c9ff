package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/vmm/choose"
	"github.com/skep-dev/skep/vmm/firecracker"
)

func (c *cli) setupCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "fetch the guest kernel",
		Long: `Fetch the guest kernel: the distribution's own for virtual machines, taken from
its package into kernel_dir and not installed on this host. When one is there,
nothing is done. With kernel and kernel_modules set, those are checked instead.`,
		Example: `  skep setup
  skep setup --kernel-dir /srv/skep/kernels`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := c.settings()
			if err != nil {
				return err
			}
			k, err := c.guestKernel(cmd.Context(), r.Config)
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(map[string]string{"kernel": k.Path, "modules": k.Modules, "release": k.Release, "digest": k.Digest})
			}
			_, err = fmt.Fprintf(c.out, "guest kernel %s (%s)\n", k.Path, short(k.Digest))
			return err
		},
	}
	c.keyFlags(cmd.Flags(), "kernel_dir", "kernel", "kernel_modules")
	cmd.AddCommand(c.setupFirecrackerCmd())
	return cmd
}

func (c *cli) setupFirecrackerCmd() *cobra.Command {
	opts := firecracker.FetchOptions{Progress: func(step string, a ...any) { c.say(step+" …", a...) }}
	cmd := &cobra.Command{
		Use:   "firecracker",
		Short: "fetch Firecracker and its jailer",
		Long: `Fetch Firecracker and its jailer: an official release for this machine, verified
by the SHA-256 that is published with it, into the directory firecracker beside
kernel_dir. When it is there, nothing is done. A firecracker on the PATH goes
before it. It is used where the hardware backs KVM; everywhere else QEMU is.`,
		Example: `  skep setup firecracker
  skep setup firecracker --from https://mirror.example.com/firecracker/releases`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := c.settings()
			if err != nil {
				return err
			}
			h, err := firecracker.Fetch(cmd.Context(), choose.FirecrackerDir(r.Config), opts)
			if err != nil {
				return err
			}
			if c.json {
				return c.writeJSON(map[string]string{"firecracker": h.Path, "jailer": h.Jailer, "version": h.Version})
			}
			_, err = fmt.Fprintf(c.out, "Firecracker %s at %s\n", h.Version, h.Path)
			return err
		},
	}
	cmd.Flags().StringVar(&opts.Release, "release", firecracker.Release, "which release")
	cmd.Flags().StringVar(&opts.From, "from", "", "URL below which releases lie, as v1.2.3/firecracker-v1.2.3-x86_64.tgz (default: the project's own)")
	c.keyFlags(cmd.Flags(), "kernel_dir")
	return cmd
}

// guestKernel returns the kernel that is set, or else the one in kernel_dir,
// which is fetched if there is none.
func (c *cli) guestKernel(ctx context.Context, cfg config.Config) (kernel.Kernel, error) {
	if cfg.Kernel != "" {
		return kernel.Load(cfg.Kernel, cfg.Modules)
	}
	return kernel.Fetch(ctx, cfg.KernelDir, func(step string) { c.say("%s …", step) })
}
