// Package sys holds the raw kernel interfaces that have no package of their own,
// those that need unsafe code among them: every use says why it is sound. Package vmm probes
// /dev/kvm with it before the first microVM is started.
package sys
