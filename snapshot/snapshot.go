// Package snapshot is the store of published snapshots: a directory each, with
// a manifest that says what made it, for what, and the digest of every part.
// Package node asks it for a function's newest usable snapshot at the start of
// a cold invocation, and gives it new ones.
package snapshot

import (
	"time"

	"github.com/skep-dev/skep/vmm"
)

// Manifest describes a snapshot. It is the file manifest.json in its directory.
type Manifest struct {
	Format      int       `json:"format"` // FormatVersion
	ID          string    `json:"id"`
	Function    string    `json:"function"`
	Created     time.Time `json:"created"`
	Reason      string    `json:"reason"`
	VMM         vmm.Info  `json:"vmm"`
	CPU         CPU       `json:"cpu"`
	HostKernel  string    `json:"host_kernel"`  // release of the host's kernel; matched under KVM, informative for TCG
	GuestKernel string    `json:"guest_kernel"` // digest
	Initramfs   string    `json:"initramfs"`    // digest; the agent is in it
	Agent       string    `json:"agent"`        // version of the agent
	ImageDigest string    `json:"image_digest"`
	DiskDigest  string    `json:"disk_digest"`
	// Spec is a digest of the settings of the function that are baked into its
	// memory (args, environment, port, user, disk size …). A function whose
	// settings have changed does not start from it.
	Spec      string          `json:"spec"`
	VCPUs     int             `json:"vcpus"`
	MemoryMiB int             `json:"memory_mib"`
	Parts     map[string]Part `json:"parts"` // "state", "memory"
}

// Part is one file of a snapshot.
type Part struct {
	Size int64 `json:"size"` // bytes, holes included
	// Digest is the SHA-256 of the SHA-256s of the file's pieces of 1 MiB, holes
	// being zeros: so that all cores can check a memory file and its holes cost
	// nothing.
	Digest string `json:"digest"`
}

// CPU is what of the host's processor a snapshot depends on where the guest
// runs on it, that is under hardware virtualisation. An emulated processor is
// part of the VMM (vmm.Info), so for it the host's is not compared.
type CPU struct {
	Vendor   string   `json:"vendor"`
	Model    string   `json:"model"`
	Features []string `json:"features"` // sorted
}

// Want is what a restore needs a snapshot to match.
type Want struct {
	Function, ImageDigest, DiskDigest, GuestKernel, Initramfs, Spec, HostKernel string
	VCPUs, MemoryMiB                                                            int
	VMM                                                                         vmm.Info
	CPU                                                                         CPU
}
