// Package userfaultfd is the kernel's userfaultfd, complete and alone: get one
// inside the address space of an unmodified VMM (Start), or from a VMM that
// hands its own over a socket (Receive), negotiate what the kernel can do,
// register memory, install pages, read events in batches. It decides nothing:
// package memory, which serves guest memory at the fifth station of a cold
// invocation, is its caller, and the VMM backends hand it their processes.
//
// It is, beside internal/sys, the only package with unsafe code: every use is
// the address of a structure that lives on the caller's stack for the length of
// one ioctl, or of a byte slice that the call keeps alive.
//
// The errors of the calls on an FD are bare syscall.Errno values, so that the
// fault path allocates nothing and callers can compare with ==. Which errors
// are ordinary is said at each call.
package userfaultfd
