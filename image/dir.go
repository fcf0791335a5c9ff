package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ConfigFile is the file in a directory image that holds its Config. It does
// not get into the disk.
const ConfigFile = "skep-image.json"

// fetchDir makes an image of a root directory on this host. Its digest is of
// its Config and the tar stream that the directory gives: names in their order,
// modes, owners, times, extended attributes, content.
func (s *Store) fetchDir(ctx context.Context, ref, dir string, p Progress) (Image, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Image{}, ofPath(err)
	}
	conf, err := readConfig(dir)
	if err != nil {
		return Image{}, ofPath(err)
	}
	return s.fetchTree(ctx, ref, dir, conf, p)
}

func (s *Store) fetchTree(ctx context.Context, ref, dir string, conf Config, p Progress) (Image, error) {
	h, err := newDirHash(conf)
	if err != nil {
		return Image{}, err
	}
	digesting := &counter{p: p, stage: "pull"}
	tw := tar.NewWriter(h)
	if err := s.writeDir(ctx, tw, dir, digesting); err != nil {
		return Image{}, err
	}
	if err := tw.Close(); err != nil {
		return Image{}, err
	}
	digest := sum(h)
	return s.once(ctx, digest, ref, func(staged string) (Config, error) {
		build := &counter{p: p, stage: "build", total: digesting.done}
		again, err := newDirHash(conf)
		if err != nil {
			return conf, err
		}
		err = s.writeDisk(ctx, filepath.Join(staged, diskFile), again, func(w *tar.Writer) error { return s.writeDir(ctx, w, dir, build) })
		if err == nil && sum(again) != digest {
			err = fmt.Errorf("%s was changed while it was read: try again", dir)
		}
		return conf, err
	})
}

func newDirHash(conf Config) (hash.Hash, error) {
	b, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	h.Write(b)
	return h, nil
}

func sum(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

func readConfig(dir string) (c Config, err error) {
	path := filepath.Join(dir, ConfigFile)
	b, err := readSmall(path, maxMeta)
	if errors.Is(err, os.ErrNotExist) {
		return c, as(ErrMalformed, fmt.Errorf(`%s has no %s: write one with at least {"entrypoint": ["/path/to/server"]}`, dir, ConfigFile))
	}
	if err != nil {
		return c, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("reading %s: %w", path, err)
	}
	if d.More() {
		return c, fmt.Errorf("reading %s: something follows the configuration", path)
	}
	return c, c.check()
}

// writeDir writes a directory as a tar stream, in the order of the names.
func (s *Store) writeDir(ctx context.Context, w *tar.Writer, root string, count *counter) error {
	left, entries := s.opts.MaxBytes, 0
	links := map[[2]uint64]string{}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == ConfigFile {
			return err
		}
		if entries++; entries > s.opts.MaxEntries {
			return as(ErrTooLarge, fmt.Errorf("%s has more than %d files", root, s.opts.MaxEntries))
		}
		if _, err := cleanName(name); err != nil {
			return fmt.Errorf("%s: %w", root, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if left -= st.Size; left < 0 {
			return as(ErrTooLarge, fmt.Errorf("%s is larger than the limit of %d bytes", root, s.opts.MaxBytes))
		}
		h, err := header(path, name, d, &st)
		if err != nil || h == nil {
			return err
		}
		if id := [2]uint64{uint64(st.Dev), st.Ino}; h.Typeflag == tar.TypeReg && st.Nlink > 1 {
			if first, ok := links[id]; ok {
				return w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: h.Name, Linkname: first})
			}
			links[id] = h.Name
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.CopyN(w, f, h.Size); err != nil {
			return fmt.Errorf("%s changed while it was read: %w", path, err)
		}
		count.add(h.Size)
		return nil
	})
}

// header describes a file; nil for a socket, which no disk keeps.
func header(path, name string, d fs.DirEntry, st *unix.Stat_t) (*tar.Header, error) {
	info, err := d.Info()
	if err != nil {
		return nil, err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil, nil
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return nil, err
	}
	if name == "." {
		name = ""
	}
	h.Name = name
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
	h.Mode = int64(st.Mode & 0o7777)
	h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	setTime(h, info.ModTime())
	return h, addXattrs(path, h)
}

func addXattrs(path string, h *tar.Header) error {
	size, err := unix.Llistxattr(path, nil)
	if err != nil || size == 0 {
		return ignoreUnsupported(path, err)
	}
	list := make([]byte, size)
	if size, err = unix.Llistxattr(path, list); err != nil {
		return ignoreUnsupported(path, err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10) // as long as Linux lets one be
		n, err := unix.Lgetxattr(path, name, value)
		if err == nil {
			err = setXattr(h, name, string(value[:n]))
		}
		if err != nil {
			return fmt.Errorf("reading %s of %s: %w", name, path, err)
		}
	}
	return nil
}

func ignoreUnsupported(path string, err error) error {
	if err == nil || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return &os.PathError{Op: "listxattr", Path: path, Err: err}
}
