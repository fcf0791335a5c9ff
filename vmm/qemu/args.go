package qemu

import (
	"fmt"
	"strings"

	"github.com/skep-dev/skep/vmm"
)

// sandbox is the strictest filter that a machine works under. It sets
// no_new_privs too.
const sandbox = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"

// translationMiB is the size of TCG's cache of translated code. It is address
// space until it is used. QEMU's default of 1 GiB would let one guest's cache
// grow far beyond its memory.
const translationMiB = 128

// cpuModel is what the guest sees. Under TCG it depends on QEMU's version
// alone. Five-level paging is left out: every page walk in software would be
// a quarter longer.
func cpuModel(accel string) string {
	if accel == "kvm" {
		return "host"
	}
	return "max,la57=off"
}

// ram says how guest memory is backed.
type ram struct {
	file    string // "" for anonymous memory
	private bool
}

// machineArgs is the command line of every machine. What device state depends
// on is the same for a boot and a restore.
func machineArgs(p *probed, c vmm.Config, h vmm.Host, r ram) []string {
	args := []string{
		"-name", escape("skep-" + h.ID),
		"-no-user-config", "-nodefaults", "-display", "none", "-S",
		"-machine", "q35,memory-backend=ram,usb=off,sata=off,smbus=off,hpet=off,vmport=off,graphics=off,smm=off," +
			"mem-merge=off,dump-guest-core=off,suppress-vmdesc=on",
		"-cpu", cpuModel(p.accel),
		"-smp", fmt.Sprint(c.VCPUs),
		"-m", fmt.Sprintf("%dM", c.MemoryMiB),
		"-object", ramArg(p, c.MemoryMiB, r),
		"-accel", accelArg(p.accel),
		"-rtc", "base=utc",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fdConsole), "-serial", "chardev:console",
		"-no-reboot", "-action", "reboot=shutdown,shutdown=poweroff,panic=shutdown,watchdog=shutdown",
	}
	if c.RootDisk != "" {
		args = append(args,
			"-blockdev", "driver=file,node-name=root-file,read-only=on,locking=off,filename="+escape(c.RootDisk),
			"-blockdev", "driver=raw,node-name=root,read-only=on,file=root-file",
			"-device", "virtio-blk-pci,drive=root,addr=2,disable-legacy=on,disable-modern=off")
	}
	if h.Tap != "" {
		// A restored guest that announces itself sends three packets, to nobody, beside its
		// first request: under emulation a tenth of a start.
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net,fd=%d,vhost=off", fdTap),
			"-device", "virtio-net-pci,netdev=net,addr=3,disable-legacy=on,disable-modern=off,romfile=,guest_announce=off,mac="+h.MAC.String())
	}
	if c.Generation {
		// QEMU writes its new one into a clone's memory when it loads device state,
		// and has ACPI tell the guest.
		args = append(args, "-device", "vmgenid,guid=auto")
	}
	return append(args, confinementArgs(p, h)...)
}

// bootArgs is what a booted machine has in addition. A restored one needs no
// kernel: it is in its memory.
func bootArgs(c vmm.Config) []string {
	// A panic must end the machine: reboot at once, which -no-reboot turns into
	// an exit; by triple fault, since nothing needs to work for that.
	cmdline := "console=ttyS0 panic=-1 reboot=t"
	if c.Cmdline != "" {
		cmdline += " " + c.Cmdline
	}
	args := []string{"-kernel", c.Kernel, "-append", cmdline}
	if c.Initramfs != "" {
		args = append(args, "-initrd", c.Initramfs)
	}
	return args
}

func accelArg(accel string) string {
	if accel == "tcg" {
		return fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationMiB)
	}
	return accel
}

func ramArg(p *probed, mib int, r ram) string {
	if r.file == "" {
		return fmt.Sprintf("memory-backend-ram,id=ram,size=%dM,share=off", mib)
	}
	arg := fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s", mib, escape(r.file))
	if !r.private {
		return arg + ",share=on"
	}
	arg += ",share=off"
	if !p.version.before(version{8, 2, 0, ""}) {
		arg += ",readonly=on,rom=off" // so the descriptor that the process keeps cannot write to the snapshot
	}
	return arg
}

// confinementArgs give up root, when there is a user to change to.
func confinementArgs(p *probed, h vmm.Host) []string {
	filter := sandbox
	if h.UID == 0 {
		filter += ",elevateprivileges=deny"
	} // else it must be able to give up root, after which those calls fail anyway
	var args []string
	if p.sandbox {
		args = append(args, "-sandbox", filter)
	}
	if h.UID == 0 {
		return args
	}
	user, root := fmt.Sprintf("%d:%d", h.UID, h.GID), emptyRoot(h)
	switch {
	case p.version.before(version{8, 1, 0, ""}):
		return append(args, "-runas", user, "-chroot", root)
	case p.version.before(version{9, 1, 0, ""}):
		return append(args, "-runas", user, "-run-with", "chroot="+escape(root))
	}
	return append(args, "-run-with", "user="+user+",chroot="+escape(root))
}

// escape makes a string the value of an option: a comma would end it.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
