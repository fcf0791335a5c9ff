package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// diskLimit bounds a disk in bytes; it takes what its files need.
const diskLimit = 16 << 30

// cachedDisk opens the disk of that kind and key in the cache. When it is not
// there, it is made of a tar archive, and others of its kind are removed. It is
// open, so that another driver that removes it takes nothing away.
func cachedDisk(kind, key string, archive func(io.Writer) error) (*os.File, error) {
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(cacheDir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	sum := sha256.Sum256([]byte(key))
	path := filepath.Join(cacheDir, kind+"-"+hex.EncodeToString(sum[:8])+".ext4")
	if f, err := os.Open(path); err == nil {
		return f, nil
	}
	if err := atomicfile.Clean(cacheDir); err != nil { // of drivers that were killed
		return nil, err
	}
	old, err := filepath.Glob(filepath.Join(cacheDir, kind+"-*.ext4"))
	if err != nil {
		return nil, err
	}
	if err := atomicfile.WriteAt(path, 0o600, func(f *os.File) error { return fillDisk(f, archive) }); err != nil {
		return nil, fmt.Errorf("making the host's disk: %w", err)
	}
	for _, o := range old {
		err = errors.Join(err, os.Remove(o))
	}
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// fillDisk writes the ext4 image of a tar archive.
func fillDisk(disk *os.File, archive func(io.Writer) error) error {
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := archive(w)
		w.CloseWithError(err)
		ended <- err
	}()
	err := tar2ext4.ConvertTarToExt4(r, disk, tar2ext4.MaximumDiskSize(diskLimit))
	if err == nil {
		_, err = io.Copy(io.Discard, r) // the archive's padding
	}
	r.CloseWithError(errors.New("the disk could not be written"))
	if made := <-ended; err == nil || made != nil {
		return made
	}
	return err
}

// scratchDisk makes an empty disk that is gone when it is closed.
func scratchDisk(ctx context.Context) (*os.File, error) {
	f, err := os.CreateTemp(cacheDir, "scratch-")
	if err != nil {
		return nil, err
	}
	mkfs := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", f.Name(), fmt.Sprint(diskLimit>>10))
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path, err := exec.LookPath("/usr/sbin/mke2fs"); err == nil {
		mkfs.Path = path
	}
	err = f.Truncate(diskLimit)
	if err == nil {
		var out []byte
		if out, err = mkfs.CombinedOutput(); err != nil {
			err = fmt.Errorf("mke2fs: %w: %s", err, out)
		}
	}
	if err := errors.Join(err, os.Remove(f.Name())); err != nil {
		f.Close()
		return nil, fmt.Errorf("making the host's disk: %w", err)
	}
	return f, nil
}

// lock waits for the one driver that changes the cache.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("waiting for another testbed: %w", err)
	}
	return func() { f.Close() }, nil
}
