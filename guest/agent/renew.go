package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// renew gives the machine what no two may share: entropy, time and a name.
func renew(instance string, unixNano int64, entropy []byte) error {
	if err := setClock(unixNano); err != nil {
		return err
	}
	if err := addEntropy(entropy); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(instance)); err != nil {
		return fmt.Errorf("setting the host name to %q: %w", instance, err)
	}
	return nil
}

func setClock(unixNano int64) error {
	ts := unix.NsecToTimespec(unixNano)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("setting the clock to %v: %w", time.Unix(0, unixNano).UTC(), err)
	}
	return nil
}

// advanceClock sets the clock to a time that has been, if it is behind that. It
// never sets it back. It returns what the clock is then.
func advanceClock(unixNano int64) (now int64, err error) {
	return advance(unixNano, func() int64 { return time.Now().UnixNano() }, setClock)
}

func advance(to int64, now func() int64, set func(int64) error) (int64, error) {
	var err error
	if now() < to {
		err = set(to)
	}
	return now(), err
}

// entropyLimit bounds the entropy in a message, in bytes.
const entropyLimit = 256

// addEntropy mixes bytes into the kernel's pool, credits them, and makes every
// CPU's generator start anew from the pool: without that, two clones print the
// same random numbers until the kernel's own next reseed.
func addEntropy(b []byte) error {
	if len(b) < 32 || len(b) > entropyLimit {
		return fmt.Errorf("%d bytes of entropy: want 32 to %d", len(b), entropyLimit)
	}
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info { int entropy_count; int buf_size; __u32 buf[]; }
	var info [8 + entropyLimit]byte
	binary.NativeEndian.PutUint32(info[0:], uint32(len(b)*8))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(b)))
	copy(info[8:], b)
	// Sound: the kernel reads 8+len(b) bytes of info, which lives until after the call.
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); e != 0 {
		return fmt.Errorf("adding entropy: %w", e)
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); e != 0 && !errors.Is(e, unix.ENODATA) {
		return fmt.Errorf("reseeding the random generator: %w", e)
	}
	return nil
}
