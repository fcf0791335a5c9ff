package kernel

import "strings"

// parameters of Cmdline, each with its reason.
var parameters = []struct{ value, reason string }{
	{"rdinit=/init", "the agent, in the initramfs"},
	{"quiet", "a serial port is slow"},
	{"loglevel=3", "errors all the same: they are what is left of a guest that died"},
	{"nokaslr", "all clones of a snapshot would share the random layout; a bzImage has about 25 MiB less of itself in memory"},
	{"mitigations=off", "one tenant a machine: within the guest there is nobody to protect from another; the host's own stay"},
	{"random.trust_cpu=on", "start without waiting for entropy; the agent adds the host's before the function runs"},
	{"random.trust_bootloader=on", "the same"},
	{"no_timer_check", "virtual timers work"},
	{"tsc=reliable", "no watchdog timer for the clock"},
	{"cryptomgr.notests", "not the place to test ciphers"},
	{"audit=0", "nobody reads it"},
	{"ipv6.disable_ipv6=1", "no addresses, no router solicitations; sockets of the family still work, servers that bind to :: count on that"},
}

// Cmdline is what a guest kernel should be told beyond what the VMM's machine
// needs (console, and an end of the machine on a panic: reboot=t panic=-1 for
// QEMU, reboot=k panic=-1 for Firecracker).
//
// Measured and left out: init_on_free=1, which would leave fewer pages of
// garbage in a snapshot, saved 5 of 70 MiB and made the boot touch all of the
// guest's memory (256 against 88 MiB on the host); rcupdate.rcu_expedited=1 and
// lsm= made no difference; noreplace-smp boots a tenth faster in software
// emulation and makes atomic operations slower on hardware for ever.
func Cmdline() string {
	var values []string
	for _, p := range parameters {
		values = append(values, p.value)
	}
	return strings.Join(values, " ")
}
