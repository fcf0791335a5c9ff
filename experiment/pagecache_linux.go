package experiment

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// dropTries is how often files are dropped until nothing of them is left: pages
// under writeback stay the first time.
const dropTries = 5

// DropCache takes files out of the page cache and asks the kernel what is left.
// Pages that another process has mapped stay; they are counted in Left.
func DropCache(files []string) (Cache, error) {
	c := Cache{Files: len(files)}
	for _, path := range files {
		before, left, err := dropFile(path)
		if err != nil {
			return c, fmt.Errorf("dropping %s from the page cache: %w", path, err)
		}
		c.Before, c.Left = add(c.Before, before), add(c.Left, left)
	}
	return c, nil
}

// add keeps what is not known unknown.
func add(sum, n int64) int64 {
	if sum < 0 || n < 0 {
		return -1
	}
	return sum + n
}

func dropFile(path string) (before, left int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	fd := int(f.Fd())
	if before, err = cached(fd); err != nil {
		return 0, 0, err
	}
	for range dropTries {
		// Only clean pages can be dropped.
		if err := unix.Fdatasync(fd); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EROFS) {
			return 0, 0, err
		}
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			return 0, 0, err
		}
		if left, err = cached(fd); err != nil || left <= 0 {
			return before, left, err
		}
	}
	return before, left, nil
}

// cached is how many pages of a file the page cache holds; -1 where the kernel
// cannot say (before Linux 6.5).
func cached(fd int) (int64, error) {
	var st unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &unix.CachestatRange{}, &st, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		return -1, nil
	}
	return int64(st.Cache), err
}
