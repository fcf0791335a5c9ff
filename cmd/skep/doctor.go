package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/doctor"
	"github.com/skep-dev/skep/vmm/choose"
)

func (c *cli) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "report what this host can do, and how to mend what it can't",
		Long: `Report, line by line, what this host can do for skep and how to mend what it
can't. Everything is tried out, and nothing of it is left. Lines marked ok are
fine, those marked warn make skep slower or poorer, those marked fail keep it
from running; the exit code is 1 if there is one of these.`,
		Example: `  skep doctor
  sudo skep doctor --json | jq '.[] | select(.status != "ok")'`,
		Args: nArgs(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := c.settings()
			if err != nil {
				return err
			}
			return c.printChecks(doctor.Run(cmd.Context(), doctorOptions(r.Config)))
		},
	}
	c.keyFlags(cmd.Flags(), "data_dir", "kernel_dir", "kernel", "kernel_modules", "qemu", "firecracker", "confine_user", "cgroup_root")
	return cmd
}

func doctorOptions(cfg config.Config) doctor.Options {
	return doctor.Options{
		DataDir: cfg.DataDir, KernelDir: cfg.KernelDir, Kernel: cfg.Kernel, Modules: cfg.Modules,
		QEMU: cfg.QEMU, Firecracker: choose.Firecracker(cfg), Confine: cfg.ConfineUser, CgroupRoot: cfg.CgroupRoot,
	}
}

func (c *cli) printChecks(checks []doctor.Check) error {
	if c.json {
		if err := c.writeJSON(checks); err != nil {
			return err
		}
	} else {
		for _, k := range checks {
			fmt.Fprintf(c.out, "%-4s  %-14s  %s\n", k.Status, k.Name, k.Detail)
			if k.Cure != "" {
				fmt.Fprintf(c.out, "%24s%s\n", "→ ", k.Cure)
			}
		}
	}
	if doctor.OKAll(checks) {
		return nil
	}
	if c.json {
		return errSilent
	}
	return errors.New("this host is not ready: see the lines marked fail")
}
