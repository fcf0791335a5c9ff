package vmm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Life is where a machine stands, as far as it decides which calls are left.
type Life struct {
	Booted bool // from its kernel; else it was restored
	Paused bool
	Spent  bool // a snapshot was begun, or it was killed: only Kill is left
}

// MayRun refuses what pauses and resumes; what is the operation's name.
func (l Life) MayRun(what string) error {
	if l.Spent {
		return fmt.Errorf("%s: the machine was snapshotted and can only be killed", what)
	}
	return nil
}

func (l Life) maySnapshot() error {
	switch {
	case !l.Booted:
		return ErrNotBooted
	case l.Spent:
		return errors.New("the machine was snapshotted or killed before")
	case !l.Paused:
		return errors.New("the machine is not paused")
	}
	return nil
}

// MaxState is the size in bytes of the largest device state that is taken.
const MaxState = 64 << 20

// Taking is a snapshot that a VMM takes.
type Taking struct {
	Life          Life
	State, Memory string // the files that are to be made
	MemoryFile    string // the machine's own, which becomes Memory
	MemoryMiB     int
	// Write fills State with device state, after which MemoryFile is complete. A
	// process that a guest has taken over may have a hand in both.
	Write func(state *os.File) error
}

// TakeSnapshot is what VMMs have in common when they take a snapshot, and what
// they refuse. No file is replaced, and none is left after an error, but for
// MemoryFile.
func TakeSnapshot(t Taking) error {
	err := t.Life.maySnapshot()
	if err == nil {
		err = t.take()
	}
	if err != nil {
		return fmt.Errorf("taking a snapshot: %w", err)
	}
	return nil
}

func (t *Taking) take() (err error) {
	f, err := os.OpenFile(t.State, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(t.State))
		}
	}()
	if err := t.Write(f); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > MaxState {
		return fmt.Errorf("device state is %d bytes large, more than %d", st.Size(), MaxState)
	}
	if st, err = os.Lstat(t.MemoryFile); err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	if want := int64(t.MemoryMiB) << 20; !st.Mode().IsRegular() || st.Size() != want {
		return fmt.Errorf("guest memory %s is %d bytes long: the machine has %d", t.MemoryFile, st.Size(), want)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, t.MemoryFile, unix.AT_FDCWD, t.Memory, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("renaming %s to %s: %w", t.MemoryFile, t.Memory, err)
	}
	return nil
}
