package network

import (
	"os"
	"os/exec"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

// A tap is there for its VMM as soon as it is made, whatever is forked meanwhile.
func TestTapIsFree(t *testing.T) {
	testenv.Need(t, "root", "netns", "tap")
	home, err := os.Open(ownThread)
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	stop := make(chan struct{})
	var forks sync.WaitGroup
	for range 4 {
		forks.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := exec.Command("/bin/true").Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	s := &Slots{home: home}
	err = s.away(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		for range 50 {
			if err := persistentTap(); err != nil {
				return err
			}
			if err := persistentTap(); err != nil { // attaches, as a VMM does
				return err
			}
			if err := removeTap(); err != nil {
				return err
			}
		}
		return nil
	})
	close(stop)
	forks.Wait()
	if err != nil {
		t.Error(err)
	}
}
