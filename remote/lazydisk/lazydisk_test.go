package lazydisk_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/remote/lazydisk"
)

type server struct {
	*lazydisk.Server
	dir string
}

// open serves disks below a directory until the test ends; nothing is mounted there then.
func open(t testing.TB, dir string) *server {
	t.Helper()
	testenv.Need(t, "fuse")
	s, err := lazydisk.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		if mounted(t, dir) {
			t.Errorf("%s is mounted still", dir)
		}
	})
	return &server{s, dir}
}

func mounted(t testing.TB, dir string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), " "+dir+" ")
}

// disk is one in blocks of 64 KiB, of which those are here that were put there.
type disk struct {
	file    *os.File
	content []byte

	mu    sync.Mutex
	here  map[int64]bool                                     // guarded by mu: by number
	bring func(ctx context.Context, off, length int64) error // nil: it comes at once
	asked int                                                // guarded by mu
	at    int                                                // guarded by mu: who waits
	most  int                                                // guarded by mu
}

const block = 64 << 10

func newDisk(t testing.TB, size int64) *disk {
	t.Helper()
	d := &disk{content: make([]byte, size), here: map[int64]bool{}}
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(d.content) // never fails
	f, err := os.Create(filepath.Join(t.TempDir(), "arriving"))
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	d.file = f
	return d
}

func (d *disk) fill(off, length int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := off / block; b <= (off+length-1)/block; b++ {
		if !d.here[b] {
			if _, err := d.file.WriteAt(d.content[b*block:min((b+1)*block, d.Size())], b*block); err != nil {
				panic(err)
			}
			d.here[b] = true
		}
	}
}

func (d *disk) Size() int64                             { return int64(len(d.content)) }
func (d *disk) ReadAt(b []byte, off int64) (int, error) { return d.file.ReadAt(b, off) }

func (d *disk) Here(off, length int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := off / block; b <= (off+length-1)/block; b++ {
		if !d.here[b] {
			return false
		}
	}
	return true
}

func (d *disk) Bring(ctx context.Context, off, length int64) error {
	d.mu.Lock()
	d.asked++
	d.at++
	d.most = max(d.most, d.at)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.at--
	}()
	if d.bring != nil {
		if err := d.bring(ctx, off, length); err != nil {
			return err
		}
	}
	d.fill(off, length)
	return nil
}

func (d *disk) waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

// asks is how often it was asked to bring something, and by how many at once at most.
func (d *disk) asks() (times, most int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked, d.most
}

// show opens the disk as a file of the server. Where the test expects no failure, failed is nil.
func (d *disk) show(t testing.TB, s *server, failed func(error)) *os.File {
	t.Helper()
	if failed == nil {
		failed = func(err error) { t.Errorf("a read failed: %v", err) }
	}
	path, end, err := s.Show("disk", d, failed)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close(); end() })
	return file
}

// until waits for what other goroutines or processes do.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// TestReadsWhatComes reads a disk of which little is here, in the ways of VMMs, from many threads.
func TestReadsWhatComes(t *testing.T) {
	const size = 5<<20 + 12288 + 512
	s, d := serve(t), newDisk(t, size)
	d.fill(3*block, block)
	d.bring = func(context.Context, int64, int64) error {
		time.Sleep(time.Duration(rand.N(1000)) * time.Microsecond)
		return nil
	}
	f := d.show(t, s, nil)
	if st, err := f.Stat(); err != nil || st.Size() != size || st.Mode() != 0o444 {
		t.Errorf("it is %v, %v", st, err)
	}
	b := make([]byte, 4096)
	if _, err := f.ReadAt(b, 3*block+8192); err != nil || !bytes.Equal(b, d.content[3*block+8192:][:4096]) {
		t.Errorf("what is here: %v", err)
	}
	if n, _ := d.asks(); n != 0 {
		t.Errorf("what is here was asked for %d times", n)
	}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for range 60 {
				b := make([]byte, 1+r.IntN(200<<10))
				off := r.Int64N(size)
				n, err := f.ReadAt(b, off)
				if want := min(int64(len(b)), size-off); int64(n) != want || (err != nil) != (want < int64(len(b))) || err != nil && err != io.EOF {
					t.Errorf("%d bytes of %d at %d: %v", n, len(b), off, err)
				} else if !bytes.Equal(b[:n], d.content[off:][:n]) {
					t.Errorf("wrong bytes at %d", off)
				}
			}
		})
	}
	wg.Wait()
	if _, most := d.asks(); most > 8 {
		t.Errorf("%d waited at once", most)
	}
	direct, err := os.OpenFile(f.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	all, err := io.ReadAll(direct)
	if err != nil || sha256.Sum256(all) != sha256.Sum256(d.content) {
		t.Errorf("all of it: %d bytes, %v", len(all), err)
	}
	if w, err := os.OpenFile(f.Name(), os.O_RDWR, 0); err == nil {
		w.Close()
		t.Error("it can be written to")
	}
}

// TestReadFails has what a reader waits for not come: it is told of once, and nobody reads anything else for it.
func TestReadFails(t *testing.T) {
	s, d := serve(t), newDisk(t, 1<<20)
	d.fill(0, block)
	gone := errors.New("the store is gone")
	d.bring = func(context.Context, int64, int64) error { return gone }
	told, closes := make(chan error, 2), make(chan func(), 1)
	path, end, err := s.Show("disk", d, func(err error) {
		told <- err
		go (<-closes)() // as the end of its reader does
	})
	if err != nil {
		t.Fatal(err)
	}
	closes <- end
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b := make([]byte, 4096)
	if _, err := file.ReadAt(b, 5*block); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v", err)
	}
	if err := <-told; !errors.Is(err, gone) {
		t.Errorf("told of %v", err)
	}
	if _, err := file.ReadAt(b, 6*block); !errors.Is(err, syscall.EIO) || len(told) > 0 {
		t.Errorf("another: %v, told of %d more", err, len(told))
	}
	if _, err := file.ReadAt(b, 0); err != nil || !bytes.Equal(b, d.content[:4096]) {
		t.Errorf("what is here: %v", err)
	}
}

// TestKilledReader has a process wait for a block that does not come: it ends when it is killed.
func TestKilledReader(t *testing.T) {
	s, d := serve(t), newDisk(t, 1<<20)
	d.bring = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
	f := d.show(t, s, nil)
	cmd := exec.Command("dd", "if="+f.Name(), "of=/dev/null", "bs=4096", "count=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "a read", func() bool { return d.waiting() == 1 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Error(err)
	}
	until(t, "its end", func() bool { return d.waiting() == 0 })
}

// TestClosedUnderReader closes a file, and the file system, that somebody reads.
func TestClosedUnderReader(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "disks")
	s, d := open(t, dir), newDisk(t, 1<<20)
	d.bring = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
	one, endOne, err := s.Show("one", d, func(err error) { t.Errorf("one: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Show("one", d, nil); err == nil {
		t.Error("there are two of a name")
	}
	two, endTwo, err := s.Show("two", d, func(err error) { t.Errorf("two: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) (*os.File, chan error) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		over := make(chan error, 1)
		go func() {
			_, err := f.ReadAt(make([]byte, 4096), 0)
			over <- err
		}()
		return f, over
	}
	f, over := read(one)
	until(t, "a read", func() bool { return d.waiting() == 1 })
	endOne()
	if err := <-over; !errors.Is(err, syscall.EIO) {
		t.Errorf("of a closed file: %v", err)
	}
	if _, err := os.Stat(one); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a closed file: %v", err)
	}
	d.fill(block, block)
	if _, err := f.ReadAt(make([]byte, 4096), block); err != nil {
		t.Errorf("what is here, of a file that was closed under its reader: %v", err)
	}
	_, over = read(two)
	until(t, "a read", func() bool { return d.waiting() == 1 })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-over; err == nil {
		t.Error("a read of what was unmounted")
	}
	endTwo()
	until(t, "the end of all reads", func() bool { return d.waiting() == 0 })
}

// TestKilledServer has a process that serves a disk killed: who has it open gets errors, and the next to
// open the directory finds nothing mounted.
func TestKilledServer(t *testing.T) {
	if dir := os.Getenv("LAZYDISK_SERVE"); dir != "" {
		s, err := lazydisk.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		d := newDisk(t, 1<<20)
		d.bring = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
		if _, _, err := s.Show("disk", d, func(error) {}); err != nil {
			t.Fatal(err)
		}
		// What it starts must not keep its file system alive.
		child := exec.Command("sleep", "60")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		defer child.Process.Kill()
		os.Stdout.WriteString("serving\n")
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	dir := filepath.Join(t.TempDir(), "disks")
	open(t, dir).Close() // skips where there is none
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$")
	cmd.Env = append(os.Environ(), "LAZYDISK_SERVE="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it started
	if _, err := io.ReadFull(out, make([]byte, len("serving\n"))); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	over := make(chan error, 1)
	go func() {
		_, err := f.ReadAt(make([]byte, 4096), 0)
		over <- err
	}()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-over; err == nil {
		t.Error("a read without a server")
	}
	_ = cmd.Wait()
	if !mounted(t, dir) {
		t.Error("it is not mounted any more: nothing is left to test")
	}
	s, d := open(t, dir), newDisk(t, 1<<20)
	g := d.show(t, s, nil)
	b := make([]byte, 4096)
	if _, err := g.ReadAt(b, 4096); err != nil || !bytes.Equal(b, d.content[4096:8192]) {
		t.Errorf("of the next server: %v", err)
	}
}

// TestNothingIsMounted unmounts where nothing is.
func TestNothingIsMounted(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(lazydisk.Unmount(dir), lazydisk.Unmount(filepath.Join(dir, "none"))); err != nil {
		t.Error(err)
	}
}
