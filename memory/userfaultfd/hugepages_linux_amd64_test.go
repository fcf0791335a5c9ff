package userfaultfd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/memory/userfaultfd"
)

const adviseEnv = "SKEP_ADVISE_CHILD"

// adviseMain is the life of a child that gives advice about memory, and says what
// the kernel said to it.
func adviseMain() {
	if os.Getenv(adviseEnv) == "" {
		return
	}
	mem, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("%v, %v, %v\n", unix.Madvise(mem, unix.MADV_HUGEPAGE), unix.Madvise(mem, unix.MADV_DONTNEED), unix.Madvise(mem, unix.MADV_RANDOM))
	os.Exit(0)
}

// The one advice is refused, in children too; nothing else is.
func TestStartUnadvised(t *testing.T) {
	testenv.Need(t, "root") // to trace
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{exe}, {"/bin/sh", "-c", exe + "; true"}} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), adviseEnv+"=1")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := userfaultfd.StartUnadvised(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err, out.String())
		}
		if got, want := out.String(), "invalid argument, <nil>, <nil>\n"; got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
	if err := userfaultfd.StartUnadvised(exec.Command("/nonexistent/vmm")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
}
