// Package sys holds the raw kernel interfaces that need unsafe code and have no
// package of their own: every use says why it is sound. Package vmm probes
// /dev/kvm with it before the first microVM is started.
package sys
