package main

import (
	"context"

	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/node"
	"github.com/skep-dev/skep/vmm/choose"
)

// openKernel finds the guest kernel and makes the initramfs for it in dir.
func (d *daemon) openKernel(_ context.Context, dir string) (node.Kernel, error) {
	k, i, err := choose.Guest(d.cfg, dir)
	if err != nil {
		return node.Kernel{}, err
	}
	return node.Kernel{
		Path: k.Path, Digest: k.Digest, Initramfs: i.Path, InitramfsDigest: i.Digest, Cmdline: kernel.Cmdline(), Agent: i.Agent,
		Generation: i.Generation,
	}, nil
}
