package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// existing is dir, or its nearest ancestor that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func checkSpace(_ context.Context, opts Options) Check {
	const name = "disk space"
	dir := existing(opts.DataDir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fail(name, fmt.Sprintf("%s: %v", dir, err), "choose another data_dir")
	}
	free := st.Bavail * uint64(st.Bsize) >> 20
	detail := fmt.Sprintf("%d MiB free for %s", free, opts.DataDir)
	const cure = "free some, or choose another data_dir: a function takes its image and a few hundred MiB for each snapshot"
	switch {
	case free < 1024:
		return fail(name, detail, cure)
	case free < 8192:
		return warn(name, detail, cure)
	}
	return ok(name, detail)
}

// Sizes of the speed test. Direct reads pass the page cache by; what a storage
// server keeps in its own cache cannot be told apart.
const (
	speedFile  = 32 << 20
	speedBlock = 1 << 20
	pageSize   = 4096
	share      = limit / 4 // of the time, for each of writing and the two kinds of reading
)

// speed of a disk.
type speed struct {
	sequential float64       // MB/s, one reader, 1 MiB at a time
	random     time.Duration // median of a 4 KiB read at depth 1
}

func checkSpeed(ctx context.Context, opts Options) Check {
	const name = "disk speed"
	dir := existing(opts.DataDir)
	s, err := measure(ctx, dir)
	if err != nil {
		return warn(name, fmt.Sprintf("measuring %s: %v", dir, err), "choose a data_dir on a writable file system with direct I/O: ext4, xfs or btrfs")
	}
	detail := fmt.Sprintf("%s: %.0f MB/s sequential, %d µs for a random 4 KiB read (direct)", dir, s.sequential, s.random.Microseconds())
	if s.sequential < 150 || s.random > 2*time.Millisecond {
		return warn(name, detail, "cold starts read the working set from this disk: prefer an SSD")
	}
	return ok(name, detail)
}

// measure writes a file without a name in dir and reads it.
func measure(ctx context.Context, dir string) (speed, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return speed{}, fmt.Errorf("opening a file for direct I/O: %w", err)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(dir, "(speed test)"))
	defer f.Close()
	// Direct I/O wants aligned memory: whole pages of the kernel's.
	buf, err := unix.Mmap(-1, 0, speedBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return speed{}, fmt.Errorf("allocating a buffer: %w", err)
	}
	defer func() { _ = unix.Munmap(buf) }()
	if _, err := rand.Read(buf); err != nil {
		return speed{}, err
	}
	size, err := fill(ctx, f, buf)
	if err != nil {
		return speed{}, err
	}
	var s speed
	if s.sequential, err = readAll(ctx, f, buf, size); err != nil {
		return speed{}, err
	}
	s.random, err = readPages(ctx, f, buf[:pageSize], size)
	return s, err
}

// fill writes until the file has its size or the time is up, at least one block.
func fill(ctx context.Context, f *os.File, buf []byte) (int64, error) {
	var size int64
	for began := time.Now(); size < speedFile && (size == 0 || time.Since(began) < share); size += speedBlock {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if _, err := f.WriteAt(buf, size); err != nil {
			return 0, err
		}
	}
	return size, nil
}

// readAll reads the file from its beginning, again and again, and returns MB/s.
func readAll(ctx context.Context, f *os.File, buf []byte, size int64) (float64, error) {
	var read int64
	began := time.Now()
	for read == 0 || (time.Since(began) < share && read < 8*speedFile) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := f.ReadAt(buf, read%size)
		if err != nil {
			return 0, err
		}
		read += int64(n)
	}
	return float64(read) / 1e6 / time.Since(began).Seconds(), nil
}

// readPages reads single pages here and there and returns the median time.
func readPages(ctx context.Context, f *os.File, page []byte, size int64) (time.Duration, error) {
	var took []time.Duration
	for began := time.Now(); len(took) == 0 || (time.Since(began) < share && len(took) < 2000); {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		at := mrand.Int64N(size/pageSize) * pageSize
		start := time.Now()
		if _, err := f.ReadAt(page, at); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
