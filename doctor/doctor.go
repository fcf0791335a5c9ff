// Package doctor finds out what this host can do for skep, by trying: it opens
// a userfaultfd, makes a tap, loads firewall rules, runs a self-test guest,
// reads from the disk. Whatever it makes is gone when it is done. `skep doctor`
// prints what it finds; it stands beside the way of an invocation.
package doctor

import (
	"context"
	"sync"
	"time"
)

// Status is the verdict of a check.
type Status string

const (
	OK   Status = "ok"
	Warn Status = "warn" // skep runs, but without something or slower
	Fail Status = "fail" // skep does not run
)

// Check is one thing that was tried.
type Check struct {
	Name   string `json:"name"` // stable: "hardware kvm"
	Status Status `json:"status"`
	Detail string `json:"detail"`         // what was found
	Cure   string `json:"cure,omitempty"` // what to do about it, unless OK
}

// Options say what to look at. A zero value is the default of the setting.
type Options struct {
	DataDir     string // its disk is measured; it need not exist yet; "" is /var/lib/skep
	KernelDir   string // where `skep setup` puts guest kernels
	Kernel      string // path of a guest kernel instead
	Modules     string // of that kernel
	QEMU        string // path or name
	Firecracker string // path or name
	Confine     bool   // machines are to run as users of their own
	CgroupRoot  string // "auto", "none" or a path; "" is "auto"
}

// limit is what each check may take.
const limit = time.Second

// Run makes all checks, in the order in which people should read them. The
// result is complete also when ctx ends; what was not tried then says so.
func Run(ctx context.Context, opts Options) []Check {
	if opts.DataDir == "" {
		opts.DataDir = "/var/lib/skep"
	}
	quick := []func(context.Context, Options) Check{
		checkRoot, checkKVM, checkUserfaultfd, checkTap, checkNAT,
		checkQEMU, checkFirecracker, checkKernel, checkCgroup, checkMemory, checkSpace, checkContainerd,
	}
	checks := make([]Check, len(quick), len(quick)+1)
	var wg sync.WaitGroup
	for i, try := range quick {
		wg.Go(func() { checks[i] = within(ctx, opts, try) })
	}
	wg.Wait()
	weigh(checks)
	// Alone: nothing else is reading meanwhile.
	return append(checks, within(ctx, opts, checkSpeed))
}

// weigh settles what depends on more than one check: either VMM will do, and
// Firecracker is of no use without hardware KVM.
func weigh(checks []Check) {
	by := make(map[string]*Check)
	for i := range checks {
		by[checks[i].Name] = &checks[i]
	}
	kvm, firecracker, qemu := by["hardware kvm"], by["firecracker"], by["qemu"]
	if kvm.Status != OK {
		if firecracker.Status != OK {
			*firecracker = ok(firecracker.Name, "not here; without hardware KVM it would be of no use")
		}
		return
	}
	if firecracker.Status == OK && qemu.Status == Fail {
		qemu.Status = Warn
	}
}

func within(ctx context.Context, opts Options, try func(context.Context, Options) Check) Check {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return try(ctx, opts)
}

// OKAll reports whether no check failed.
func OKAll(checks []Check) bool {
	for _, c := range checks {
		if c.Status == Fail {
			return false
		}
	}
	return true
}

func ok(name, detail string) Check { return Check{Name: name, Status: OK, Detail: detail} }

func warn(name, detail, cure string) Check {
	return Check{Name: name, Status: Warn, Detail: detail, Cure: cure}
}

func fail(name, detail, cure string) Check {
	return Check{Name: name, Status: Fail, Detail: detail, Cure: cure}
}
