// Command testbed runs tests and commands in a host of their own: a virtual
// machine with hardware KVM to its inside, so that Firecracker runs in it, on
// any machine with QEMU. Where the machine itself has KVM, QEMU uses it and the
// tests may run without a virtual machine between; elsewhere QEMU emulates the
// whole, AMD's virtualisation included. It is on no invocation's way: `make
// test-firecracker` and people call it.
//
//	go run ./testbed test                      the default packages' tests
//	go run ./testbed test --run Clones ./vmm/firecracker
//	go run ./testbed paper --out DIR           the paper's experiments, on Firecracker
//	go run ./testbed run -- firecracker --version
//	go run ./testbed shell
//	go run ./testbed up                        a host that the others use while it is there
//
// What is in the host, from below:
//
//	base     ext4, read-only: Debian packages, the guest kernel and its modules,
//	         which the host itself boots too. Made once per list of packages and
//	         kernel, in .cache/testbed.
//	payload  ext4, read-only: compiled tests with the sources' other files, the
//	         programs that tests start, Firecracker, a containerd. Made again when one differs;
//	         a host that is up already is sent those that do.
//	scratch  ext4: what is written. Gone with the host.
//	images   ext4, read-only, for `paper` alone: functions' images and root disks,
//	         made on this machine, since the host has no network and little speed.
//
// The initramfs has testbed/init, which puts the three together, becomes systemd
// and, as its one service, answers the driver on a virtio port (package remote).
// The host has no network. What a command leaves in /out is brought out; output and
// console are kept in .cache/testbed/runs.
package main
