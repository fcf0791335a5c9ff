// Package replay measures the memory path at native speed, without a VM: a
// child process maps memory of the guest's size, hands it over as Firecracker
// does, and touches the pages of a trace in order; the policies of package
// memory serve it as they would a VMM. Beside them, in the same run, stand two
// floors: a bare loop that installs the same runs from memory, and a bare loop
// that serves each fault; and the disk's sequential speed. The command `skep
// replay` calls it.
//
// The child is the same program, re-executed: its main calls ChildMain first.
package replay
