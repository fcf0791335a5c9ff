package kernel

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Bounds of what is taken from a package or a directory.
const (
	moduleLimit = 64 << 20 // bytes of one file below lib/modules
	treeLimit   = 2 << 30  // bytes of all
	fileLimit   = 20_000   // files
)

// unpackDeb takes the kernel and its modules from a Debian package: boot/vmlinuz-*
// to dir/boot, and lib/modules (or usr/lib/modules) to dir/modules. Everything
// else is passed over, links too.
func unpackDeb(deb, dir string) error {
	f, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer f.Close()
	r, done, err := debData(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return fmt.Errorf("reading package %s: %w", deb, err)
	}
	defer done()
	if err := unpackTar(r, dir); err != nil {
		return fmt.Errorf("unpacking package %s: %w", deb, err)
	}
	return nil
}

// debData finds a package's data: a member data.tar.* of an ar archive.
func debData(r io.Reader) (io.Reader, func(), error) {
	var magic [8]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil || string(magic[:]) != "!<arch>\n" {
		return nil, nil, errors.New("it is not a Debian package")
	}
	for {
		// Name 16, time 12, uid 6, gid 6, mode 8, size 10, end 2; padded with blanks.
		var h [60]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return nil, nil, fmt.Errorf("it has no data.tar: %w", err)
		}
		size, err := strconv.ParseInt(strings.TrimSpace(string(h[48:58])), 10, 64)
		if err != nil || size < 0 || string(h[58:]) != "`\n" {
			return nil, nil, errors.New("it is damaged: bad header of a member")
		}
		name := strings.TrimSuffix(strings.TrimSpace(string(h[:16])), "/")
		if strings.HasPrefix(name, "data.tar") {
			return decompress(name, io.LimitReader(r, size))
		}
		if _, err := io.CopyN(io.Discard, r, size+size&1); err != nil {
			return nil, nil, fmt.Errorf("it is truncated in %s: %w", name, err)
		}
	}
}

// decompress reads a file by the end of its name.
func decompress(name string, r io.Reader) (io.Reader, func(), error) {
	done := func() {}
	switch path.Ext(name) {
	case ".tar":
		return r, done, nil
	case ".gz":
		z, err := gzip.NewReader(r)
		return z, done, err
	case ".xz":
		z, err := xz.NewReader(r)
		return z, done, err
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(256<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return nil, nil, fmt.Errorf("%s is compressed in an unknown way", name)
}

func unpackTar(r io.Reader, dir string) error {
	t := tar.NewReader(r)
	var sum tally
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		to, limit, ok := destination(h)
		if !ok {
			continue
		}
		if err := sum.add(h.Name, h.Size, limit); err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, to), t); err != nil {
			return err
		}
	}
}

// tally is what was taken until now.
type tally struct {
	bytes int64
	files int
}

// add refuses a file that is over its limit, or with which all are over theirs.
func (t *tally) add(name string, size, limit int64) error {
	t.bytes, t.files = t.bytes+size, t.files+1
	switch {
	case size > limit:
		return fmt.Errorf("%s has %d bytes, more than the %d that a kernel's file may have", name, size, limit)
	case t.bytes > treeLimit:
		return fmt.Errorf("with %s there are %d bytes, more than the %d that a kernel may have with its modules", name, t.bytes, int64(treeLimit))
	case t.files > fileLimit:
		return fmt.Errorf("with %s there are %d files, more than a kernel may have with its modules", name, t.files)
	}
	return nil
}

// destination says where a file goes, and how large it may be.
func destination(h *tar.Header) (to string, limit int64, ok bool) {
	if h.Typeflag != tar.TypeReg {
		return "", 0, false
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/") // so that no ".." is left
	if dir, base := path.Split(name); dir == "boot/" && strings.HasPrefix(base, "vmlinu") {
		return name, imageLimit, true
	}
	for _, prefix := range []string{"lib/modules/", "usr/lib/modules/"} {
		if rest, found := strings.CutPrefix(name, prefix); found && wantedModule(rest) {
			return path.Join("modules", rest), moduleLimit, true
		}
	}
	return "", 0, false
}

// wantedModule tells the modules and their indices from what else is there.
func wantedModule(rest string) bool {
	_, in, ok := strings.Cut(rest, "/")
	return ok && (strings.HasPrefix(in, "kernel/") && strings.Contains(path.Base(in), ".ko") || strings.HasPrefix(in, "modules."))
}

func writeFile(path string, r io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = io.Copy(f, r)
	return err
}
