package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// dataLink is how the kubelet changes all files of a volume at once: each is a link
// to ..data/NAME, and ..data one to a directory that is named after the time.
const dataLink = "..data/"

// contentDigest is of the files that are at a path as a container sees them, and not
// of the times and names that differ between two pods with the same files.
func contentDigest(path string) (string, error) { return digester{sha256.New(), true}.of(path) }

// namesDigest is the same without what is in the files.
func namesDigest(path string) (string, error) { return digester{sha256.New(), false}.of(path) }

type digester struct {
	hash.Hash
	contents bool
}

func (h digester) of(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if err := h.at(path, "."); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (h digester) at(path, name string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(target, dataLink) {
			fmt.Fprintf(h, "%q -> %q\n", name, target)
			return nil
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
		if info, err = os.Stat(path); err != nil {
			return err
		}
	}
	var owner [2]uint32
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = [2]uint32{st.Uid, st.Gid}
	}
	fmt.Fprintf(h, "%q %v %v\n", name, info.Mode(), owner)
	switch {
	case info.IsDir():
		return h.dir(path, name)
	case !h.contents:
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(h, f)
	fmt.Fprintf(h, "\n%d\n", n)
	return err
}

func (h digester) dir(path, name string) error {
	entries, err := os.ReadDir(path) // sorted
	for _, e := range entries {
		if err == nil && !strings.HasPrefix(e.Name(), "..") {
			err = h.at(filepath.Join(path, e.Name()), filepath.Join(name, e.Name()))
		}
	}
	return err
}
