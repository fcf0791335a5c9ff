// Package vmm is the contract between skep and a virtual machine monitor:
// start a microVM from a kernel or from a snapshot, pause it, take its
// snapshot, end it. It is the sixth station of a cold invocation; package microvm
// calls it. The backends are vmm/qemu and vmm/firecracker, and every backend
// passes the suite in vmm/vmmtest, which is the rest of this specification.
package vmm

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
)

// VMM starts microVMs. Its methods may be called from many goroutines.
type VMM interface {
	// Info says what this VMM is on this host. A snapshot is only restored by a
	// VMM with an equal Info, but for a Version of the same Line.
	Info(ctx context.Context) (Info, error)
	// Boot starts a machine from its kernel. It returns when the vCPUs run. The
	// guest's memory is backed by spec.MemoryFile, so that a snapshot need not
	// copy it; a VMM that cannot do this makes the file, and writes to it then.
	Boot(ctx context.Context, spec BootSpec) (Machine, error)
	// Restore starts a machine from a snapshot and returns it paused, its device
	// state loaded. With spec.Memory.Attach it hands over guest memory as soon as
	// the process has mapped it, before device state is loaded.
	//
	// When Boot or Restore fail, nothing of the machine is left, and the error
	// holds the last lines that the VMM wrote to stderr.
	Restore(ctx context.Context, spec RestoreSpec) (Machine, error)
}

// Machine is one microVM, owned by the caller who started it, who must Kill it.
type Machine interface {
	// Pause stops the vCPUs. Resume lets them run; it returns when they do.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Snapshot writes device state to the file `state` and puts guest memory at
	// the file `memory` (both new paths; memory on the file system of
	// BootSpec.MemoryFile). The machine must be paused and have been booted, not
	// restored: ErrNotBooted otherwise. Memory is not copied where that can be
	// helped: the machine cannot go on afterwards, Kill is the only call left, and
	// must come before the files are read.
	Snapshot(ctx context.Context, state, memory string) error
	// Done is closed when the VMM process has ended, for whatever reason; Err
	// then says why (nil after Kill).
	Done() <-chan struct{}
	Err() error
	// Kill ends the machine and returns when its process is reaped and all it
	// held is released. It is idempotent and safe at any time.
	Kill() error
	PID() int
	// Timings of the start.
	Timings() Timings
}

// Info identifies a VMM on a host.
type Info struct {
	Name    string `json:"name"`    // "qemu", "firecracker"
	Version string `json:"version"` // "7.2.22"
	Accel   string `json:"accel"`   // "kvm", "tcg"
	// Line is what must be equal instead of Version, where all the versions of a
	// line read each other's device state: "1.16". Empty: Version itself.
	Line string `json:"line,omitempty"`
	// Machine names the virtual hardware (machine type, CPU model, devices):
	// whatever must be equal for device state to be readable.
	Machine string `json:"machine"`
	// Path is the program's file on this host, Overhead what a machine takes beside
	// its guest's memory. No snapshot depends on them.
	Path     string   `json:"-"`
	Overhead Overhead `json:"-"`
}

// Overhead is memory of a machine's process that is not its guest's, in MiB.
type Overhead struct {
	UsedMiB int // of a machine whose guest works, as measured: what to reckon with
	MostMiB int // what it may come to in the worst case: what to allow
}

// Config is the shape of a machine: equal for a boot and every restore of its
// snapshots.
type Config struct {
	VCPUs     int
	MemoryMiB int
	Kernel    string // path: uncompressed vmlinux or bzImage
	Initramfs string // path
	Cmdline   string // added to what the backend itself needs (console)
	RootDisk  string // path of an ext4 image, attached read-only as the first virtio block device
	// Generation says that the guest's kernel has a driver for a VM's generation id,
	// which differs between clones: their random numbers do as soon as the vCPUs run.
	Generation bool
}

// Host is where and as whom one machine runs.
type Host struct {
	ID string // instance id: letters, digits and '-'
	// Dir is a private directory of this machine, and exists. In it are
	// console.log, what the guest prints, and stderr.log, what the VMM does; both
	// are bounded: when one is full it becomes NAME.1, in place of the one before.
	Dir string
	// ConsoleBytes is how much of the console is kept; 0 is 1 MiB.
	ConsoleBytes int64
	NetNS        string           // path of the network namespace that the process runs in; "" for the caller's
	Tap          string           // name of the tap device in NetNS
	MAC          net.HardwareAddr // of the guest
	// UID and GID that the process runs as; 0 leaves it as the caller (tests only).
	UID, GID int
	// Env is added to the process's environment (the mark by which orphans are found).
	Env    []string
	Limits Limits
	// Started, when set, is called with the process's id before that has any of its
	// guest's memory, such as to put it into a cgroup of the caller's. When it fails
	// the start does, and nothing is left.
	Started func(pid int) error
}

// Limits of a machine's process, beside what its guest was promised. A zero is no
// limit. They hold where the host has cgroup v2 with the controller.
type Limits struct {
	MemoryMiB  int     // guest memory is added to it
	PIDs       int     // a thread for each vCPU is added to it
	CPUs       float64 // the guest's vCPUs are added to it; 1.5 is one and a half
	CgroupRoot string  // directory below which the machine's cgroup is made; "" for none
}

// BootSpec is a machine to be booted.
type BootSpec struct {
	Config
	Host
	MemoryFile string // path of guest memory: created, sparse, MemoryMiB in size; removed by Kill unless a snapshot took it
}

// RestoreSpec is a machine to be restored.
type RestoreSpec struct {
	Config
	Host
	State  string // device state, as Snapshot wrote it
	Memory Memory
}

// Memory says where the guest memory of a restored machine comes from.
type Memory struct {
	// File is the snapshot's memory file. Without Attach the VMM maps it
	// privately and the host's kernel pages it in.
	File string
	// Attach, when set, is called once with the guest's memory, which is empty
	// and whose missing pages raise faults. It takes ownership of the
	// userfaultfd, and must begin to serve faults before it returns: loading
	// device state may touch guest memory. It must not block on the machine.
	Attach func(ctx context.Context, g userfaultfd.Guest) error
}

// Sheller is a VMM whose process can be started before there is a request for
// it, so that a cold start waits neither for its exec nor for its own start.
type Sheller interface {
	// Shell starts the process of a machine that will be restored from
	// spec.State. The memory of such a machine is always attached. Where
	// spec.Memory.Attach is set a VMM that can do so calls it now and loads device
	// state, so that nothing but to resume is left; else it waits for memory and
	// device state.
	Shell(ctx context.Context, spec RestoreSpec) (Shell, error)
}

// Shell is a process that waits to become a machine, owned by the caller.
type Shell interface {
	// Restore does what is left of VMM.Restore, under the same contract. It is
	// called at most once and uses the shell up: when it fails nothing is left,
	// else the machine is all there is. attach is called with the zero Guest where
	// the memory was attached before: who has it hands it over.
	Restore(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) (Machine, error)
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// Kill ends a shell that is not needed, as Machine.Kill does. After Restore it
	// does nothing.
	Kill() error
	PID() int
}

// Timings are the parts of a start.
type Timings struct {
	Spawn time.Duration // exec until the VMM's control channel answers
	Load  time.Duration // device state (restore; 0 where it was loaded ahead) or vCPUs started (boot)
}

// Errors that callers branch on.
var (
	ErrNotBooted   = errors.New("only a machine that was booted can be snapshotted")
	ErrUnsupported = errors.New("not supported by this VMM")
	// ErrState is wrapped by a restore whose process looked at the snapshot's
	// device state and would not have it: the snapshot is to blame, not the host,
	// a limit of time or a signal.
	ErrState = errors.New("the snapshot's device state was refused")
)
