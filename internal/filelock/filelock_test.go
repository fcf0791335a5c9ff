package filelock_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/internal/testenv"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHoldAndOwn(t *testing.T) {
	testenv.NoLeaks(t)
	dir := filepath.Join(t.TempDir(), "dir")
	if _, err := filelock.Hold(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there is held: %v", err)
	}
	must(t, os.Mkdir(dir, 0o700))
	a, err := filelock.Hold(dir)
	must(t, err)
	b, err := filelock.Hold(dir)
	must(t, err)
	moved := dir + "-moved"
	must(t, os.Rename(dir, moved)) // as a directory is that is published
	must(t, a.Release())
	must(t, a.Release()) // must not count twice
	if _, err := filelock.Own(moved); !errors.Is(err, filelock.ErrHeld) {
		t.Errorf("owned while it is held: %v", err)
	}
	must(t, b.Release())
	o, err := filelock.Own(moved)
	must(t, err)
	for name, take := range map[string]func(string) (*filelock.Lock, error){"held": filelock.Hold, "owned": filelock.Own} {
		if _, err := take(moved); !errors.Is(err, filelock.ErrHeld) {
			t.Errorf("%s while it is owned: %v", name, err)
		}
	}
	must(t, o.Release())
}

// A program that is just being started has a copy of every descriptor: that must
// not keep what was released.
func TestReleasedIsFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, nil, 0o600))
	l, err := filelock.Hold(path)
	must(t, err)
	cmd := exec.Command("cat") // inherits the open file itself
	in, err := cmd.StdinPipe()
	must(t, err)
	cmd.ExtraFiles = []*os.File{l.File()}
	must(t, cmd.Start())
	must(t, l.Release())
	o, err := filelock.Own(path)
	if err != nil {
		t.Errorf("released, and not free: %v", err)
	} else {
		must(t, o.Release())
	}
	in.Close()
	must(t, cmd.Wait())
}

func TestClaimIsWaitedFor(t *testing.T) {
	testenv.NoLeaks(t)
	path := filepath.Join(t.TempDir(), "claim")
	first, err := filelock.TryClaim(path)
	must(t, err)
	if _, err := filelock.TryClaim(path); !errors.Is(err, filelock.ErrHeld) {
		t.Errorf("claimed twice: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error)
	go func() {
		_, err := filelock.Claim(ctx, path)
		ended <- err
	}()
	why := errors.New("enough")
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("waiting was cancelled: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			l, err := filelock.Claim(t.Context(), path)
			if err == nil {
				err = l.Release()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	must(t, first.Release())
	wg.Wait()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	must(t, os.WriteFile(path, nil, 0o600))
	if _, err := filelock.Claim(t.Context(), path); err == nil {
		t.Error("claimed an ordinary file")
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	held, err := filelock.Claim(t.Context(), filepath.Join(dir, ".lock-held"))
	must(t, err)
	dead, err := filelock.Claim(t.Context(), filepath.Join(dir, ".lock-dead"))
	must(t, err)
	other, err := filelock.Claim(t.Context(), filepath.Join(dir, "other"))
	must(t, err)
	must(t, errors.Join(dead.File().Close(), other.File().Close())) // as the kernel does
	must(t, filelock.Sweep(dir, ".lock-"))
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 || left[0].Name() != ".lock-held" || left[1].Name() != "other" {
		t.Errorf("left: %v, %v", left, err)
	}
	must(t, held.Release())
}

// TestCrowd has processes claim the same thing over and over, of which some are
// killed while they have it or wait for it.
func TestCrowd(t *testing.T) {
	const dirEnv = "SKEP_TEST_FILELOCK_DIR"
	if m, ok := testenv.CrowdMember(); ok {
		member(t, m, os.Getenv(dirEnv))
		return
	}
	dir := t.TempDir()
	testenv.Crowd{Size: 6, Kills: 30, Within: 50 * time.Millisecond, Env: []string{dirEnv + "=" + dir}}.Run(t)
	must(t, filelock.Sweep(dir, "claim"))
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func member(t *testing.T, m *testenv.Member, dir string) {
	testenv.NoLeaks(t)
	inside := filepath.Join(dir, "inside")
	me := strconv.Itoa(os.Getpid())
	for range 200 {
		ctx, cancel := t.Context(), context.CancelFunc(func() {})
		if m.IntN(4) == 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(m.IntN(1000))*time.Microsecond)
		}
		l, err := filelock.Claim(ctx, filepath.Join(dir, "claim"))
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		must(t, err)
		must(t, os.WriteFile(inside, []byte(me), 0o600))
		time.Sleep(time.Duration(m.IntN(100)) * time.Microsecond)
		if b, err := os.ReadFile(inside); err != nil || string(b) != me {
			t.Fatalf("process %s has the claim, and so has %s (%v)", me, b, err)
		}
		must(t, l.Release())
	}
}
