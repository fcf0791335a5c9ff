package main

import (
	"context"
	"fmt"
	"net"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/guest/initramfs"
	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/microvm"
	"github.com/skep-dev/skep/node"
)

// openKernel finds the guest kernel and makes the initramfs for it in dir.
func (d *daemon) openKernel(_ context.Context, dir string) (node.Kernel, error) {
	var k kernel.Kernel
	var err error
	if d.cfg.Kernel != "" {
		k, err = kernel.Load(d.cfg.Kernel, d.cfg.Modules)
	} else {
		k, err = kernel.Default(d.cfg.KernelDir)
	}
	if err != nil {
		return node.Kernel{}, err
	}
	agent, err := initramfs.FindAgent()
	if err != nil {
		return node.Kernel{}, fmt.Errorf("finding the guest's agent: %w", err)
	}
	i, err := initramfs.Build(dir, agent, k)
	if err != nil {
		return node.Kernel{}, err
	}
	return node.Kernel{
		Path: k.Path, Digest: k.Digest, Initramfs: i.Path, InitramfsDigest: i.Digest, Cmdline: kernel.Cmdline(), Agent: i.Agent,
		Generation: i.Generation,
	}, nil
}

// connect greets a guest's agent. An error must not become a non-nil Agent.
func connect(ctx context.Context, conn net.Conn, logs microvm.LogFunc) (microvm.Agent, error) {
	s, err := guest.Connect(ctx, conn, logs)
	if err != nil {
		return nil, err
	}
	return s, nil
}
