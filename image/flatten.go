package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// maxEntries bounds the files of an image.
const maxEntries = 4_000_000

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// flatten puts an image's layers on top of each other and writes the result as
// an ext4 disk. The layers lie beside the disk, decompressed and checked, until
// it is done.
func (s *Store) flatten(ctx context.Context, img v1.Image, conf *v1.ConfigFile, dir string, p Progress) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	pull := &counter{p: p, stage: "pull"}
	for _, l := range layers {
		if n, err := l.Size(); err == nil {
			pull.total += n
		}
	}
	left := s.opts.MaxBytes
	files := make([]string, len(layers))
	for i, l := range layers {
		files[i] = filepath.Join(dir, fmt.Sprintf("layer-%d.tar", i))
		n, err := spool(ctx, l, conf.RootFS.DiffIDs[i], files[i], left, pull)
		if err != nil {
			return fmt.Errorf("layer %d of %d: %w (limit %d bytes)", i+1, len(layers), err, s.opts.MaxBytes)
		}
		left -= n
	}
	t := newTree()
	for i, f := range files {
		if err := eachEntry(ctx, f, func(j int, h *tar.Header, _ io.Reader) error { return t.apply(i, j, h) }); err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	build := &counter{p: p, stage: "build", total: s.opts.MaxBytes - left}
	if err := s.writeDisk(filepath.Join(dir, diskFile), func(w *tar.Writer) error { return t.write(ctx, w, files, build) }); err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

// writeDisk makes an ext4 image of the tar stream that f writes.
func (s *Store) writeDisk(path string, f func(*tar.Writer) error) error {
	disk, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer disk.Close()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		tw := tar.NewWriter(w)
		err := f(tw)
		if err == nil {
			err = tw.Close()
		}
		w.CloseWithError(err)
		done <- err
	}()
	err = tar2ext4.ConvertTarToExt4(r, disk, tar2ext4.MaximumDiskSize(2*s.opts.MaxBytes))
	r.CloseWithError(errors.New("the disk could not be written"))
	if werr := <-done; werr != nil && err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("writing the root disk: %w", err)
	}
	return errors.Join(disk.Sync(), disk.Close())
}

// eachEntry calls f for each entry of a tar file, with its index.
func eachEntry(ctx context.Context, file string, f func(i int, h *tar.Header, r io.Reader) error) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	t := tar.NewReader(bufio.NewReaderSize(&countingReader{ctx: ctx, r: in}, 256<<10))
	for i := 0; ; i++ {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if err := f(i, h, t); err != nil {
			return err
		}
	}
}

// inode is a file of the image: where its header and content are.
type inode struct {
	layer, entry int
	dir          bool
	first        string // path that it is written under; the others are links to it
}

// tree is the file system as the layers so far make it.
type tree struct {
	files    map[string]*inode          // by path
	children map[string]map[string]bool // of directories, by path
}

func newTree() *tree {
	return &tree{files: map[string]*inode{"": {layer: -1, dir: true}}, children: map[string]map[string]bool{"": {}}}
}

// apply puts one entry of a layer on top.
func (t *tree) apply(layer, entry int, h *tar.Header) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	parent, base := path.Dir("/" + name)[1:], path.Base("/"+name)
	switch {
	case base == opaque:
		t.hide(parent, layer)
		return nil
	case strings.HasPrefix(base, whiteout):
		hidden := strings.TrimPrefix(base, whiteout)
		if hidden == "" || hidden == "." || hidden == ".." {
			return fmt.Errorf("entry %q hides no file", h.Name)
		}
		t.remove(path.Join(parent, hidden))
		return nil
	}
	if len(t.files) >= maxEntries {
		return fmt.Errorf("the image has more than %d files", maxEntries)
	}
	if name != "" {
		if err := t.makeParents(parent); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		t.setDir(name, layer, entry)
	case tar.TypeLink:
		to, err := cleanName(h.Linkname)
		if err != nil {
			return fmt.Errorf("hard link %q: %w", h.Name, err)
		}
		target, ok := t.files[to]
		if !ok || target.dir {
			return fmt.Errorf("hard link %q: no file %q to link to", h.Name, h.Linkname)
		}
		if to != name {
			t.set(name, target)
		}
	case tar.TypeReg, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeGNUSparse:
		if name == "" {
			return errors.New("the root is not a directory")
		}
		t.set(name, &inode{layer: layer, entry: entry})
	case tar.TypeXGlobalHeader:
	default:
		return fmt.Errorf("entry %q is of unknown type %q", h.Name, h.Typeflag)
	}
	return nil
}

// makeParents adds the directories above an entry that no layer has. A parent
// that is no directory is replaced: the upper layer is right.
func (t *tree) makeParents(dir string) error {
	if f, ok := t.files[dir]; ok && f.dir {
		return nil
	}
	if dir != "" {
		if err := t.makeParents(path.Dir("/" + dir)[1:]); err != nil {
			return err
		}
	}
	t.set(dir, &inode{layer: -1, dir: true})
	t.children[dir] = map[string]bool{}
	return nil
}

func (t *tree) setDir(name string, layer, entry int) {
	if f, ok := t.files[name]; ok && f.dir {
		f.layer, f.entry = layer, entry
		return
	}
	t.set(name, &inode{layer: layer, entry: entry, dir: true})
	t.children[name] = map[string]bool{}
}

func (t *tree) set(name string, f *inode) {
	t.remove(name)
	t.files[name] = f
	t.children[path.Dir("/" + name)[1:]][path.Base("/"+name)] = true
}

// remove deletes a path and all below it.
func (t *tree) remove(name string) {
	f, ok := t.files[name]
	if !ok || name == "" {
		return
	}
	if f.dir {
		for c := range t.children[name] {
			t.remove(path.Join(name, c))
		}
		delete(t.children, name)
	}
	delete(t.files, name)
	delete(t.children[path.Dir("/" + name)[1:]], path.Base("/"+name))
}

// hide removes what lower layers have put below a directory.
func (t *tree) hide(dir string, layer int) {
	for c := range t.children[dir] {
		name := path.Join(dir, c)
		f := t.files[name]
		switch {
		case f.dir:
			t.hide(name, layer)
			if f.layer < layer && len(t.children[name]) == 0 {
				t.remove(name)
			}
		case f.layer < layer:
			t.remove(name)
		}
	}
}

// write writes the tree as a tar stream: directories, then files in the order of
// their layers, then hard links, since a link's target must be there.
func (t *tree) write(ctx context.Context, w *tar.Writer, layers []string, count *counter) error {
	names := make([]string, 0, len(t.files))
	for n := range t.files {
		names = append(names, n)
	}
	sort.Strings(names)
	byEntry := map[[2]int]string{} // where each entry goes
	var links []string
	for _, n := range names {
		f := t.files[n]
		switch {
		case f.dir && f.layer >= 0:
			byEntry[[2]int{f.layer, f.entry}] = n
		case f.dir:
		case f.first == "":
			f.first = n
			byEntry[[2]int{f.layer, f.entry}] = n
		default:
			links = append(links, n)
		}
	}
	if err := t.writeDirs(ctx, w, names, layers, byEntry); err != nil {
		return err
	}
	for i, l := range layers {
		err := eachEntry(ctx, l, func(j int, h *tar.Header, r io.Reader) error {
			n, ok := byEntry[[2]int{i, j}]
			if !ok || t.files[n].dir {
				return nil
			}
			count.add(h.Size)
			return copyEntry(w, n, h, r)
		})
		if err != nil {
			return err
		}
	}
	for _, n := range links {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: n, Linkname: t.files[n].first}); err != nil {
			return err
		}
	}
	return nil
}

// writeDirs writes all directories, parents first, with the headers that the
// topmost layer gives them.
func (t *tree) writeDirs(ctx context.Context, w *tar.Writer, names, layers []string, byEntry map[[2]int]string) error {
	headers := map[string]*tar.Header{}
	for i, l := range layers {
		err := eachEntry(ctx, l, func(j int, h *tar.Header, _ io.Reader) error {
			if n, ok := byEntry[[2]int{i, j}]; ok && t.files[n].dir {
				headers[n] = h
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, n := range names {
		if !t.files[n].dir {
			continue
		}
		h := headers[n]
		if h == nil {
			h = &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}
		}
		if err := copyEntry(w, n+"/", h, nil); err != nil {
			return err
		}
	}
	return nil
}

// copyEntry writes an entry under a path, with what of its header a disk keeps.
func copyEntry(w *tar.Writer, name string, h *tar.Header, r io.Reader) error {
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor, Format: tar.FormatPAX,
	}
	if h.Typeflag == tar.TypeGNUSparse {
		out.Typeflag = tar.TypeReg
	}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.") {
			if out.PAXRecords == nil {
				out.PAXRecords = map[string]string{}
			}
			out.PAXRecords[k] = v
		}
	}
	if out.Typeflag == tar.TypeReg {
		out.Size = h.Size
	}
	if err := w.WriteHeader(out); err != nil {
		return fmt.Errorf("entry %q: %w", name, err)
	}
	if out.Typeflag != tar.TypeReg {
		return nil
	}
	if _, err := io.Copy(w, r); err != nil {
		return fmt.Errorf("entry %q: %w", name, err)
	}
	return nil
}
