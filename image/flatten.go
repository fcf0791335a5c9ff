package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"golang.org/x/sync/errgroup"
)

// parallelLayers is how many layers are read at once: enough to hide a
// registry's latency.
const parallelLayers = 3

// flatten puts an image's layers on top of each other and writes the result as
// an ext4 disk. The layers lie beside the disk, decompressed and checked, until
// it is done.
func (s *Store) flatten(ctx context.Context, src source, dir string, p Progress) error {
	files, total, err := s.spoolAll(ctx, src, dir, p)
	if err != nil {
		return err
	}
	t := newTree(s.opts.MaxEntries, s.opts.MaxBytes)
	for i, f := range files {
		err := eachEntry(ctx, f, func(_ int, h *tar.Header, _ io.Reader) error { return t.hide(h) })
		if err == nil {
			err = eachEntry(ctx, f, func(j int, h *tar.Header, _ io.Reader) error { return t.apply(i, j, h) })
		}
		if err != nil {
			return malformed(fmt.Errorf("layer %d of %d: %w", i+1, len(files), err))
		}
	}
	build := &counter{p: p, stage: "build", total: total}
	if err := s.writeDisk(ctx, filepath.Join(dir, diskFile), nil, func(w *tar.Writer) error { return t.write(newEntryWriter(ctx, w, build), files) }); err != nil {
		return err
	}
	p(build.stage, total, total)
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

// spoolAll brings the layers into dir, some of them at once. total is their size
// decompressed.
func (s *Store) spoolAll(ctx context.Context, src source, dir string, p Progress) (files []string, total int64, err error) {
	layers, err := src.img.Layers()
	if err != nil {
		return nil, 0, err
	}
	pull := &counter{p: p, stage: "pull"}
	for _, l := range layers {
		if n, err := src.size(l); err == nil {
			pull.total += n
		}
	}
	left := newBudget(s.opts.MaxBytes)
	files = make([]string, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for i, l := range layers {
		files[i] = filepath.Join(dir, fmt.Sprintf("layer-%d.tar", i))
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			if err := spool(gctx, src, l, src.conf.RootFS.DiffIDs[i], files[i], left, pull); err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
			}
			return nil
		})
	}
	err = g.Wait()
	return files, s.opts.MaxBytes - left.left.Load(), err
}

// writeDisk makes an ext4 image of the tar stream that f writes; tee, if it is
// not nil, gets the stream too.
func (s *Store) writeDisk(ctx context.Context, path string, tee io.Writer, f func(*tar.Writer) error) error {
	disk, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer disk.Close()
	r, w := io.Pipe()
	out := io.Writer(w)
	if tee != nil {
		out = io.MultiWriter(w, tee)
	}
	done := make(chan error, 1)
	go func() {
		b := bufio.NewWriterSize(out, 256<<10)
		tw := tar.NewWriter(b)
		err := f(tw)
		if err == nil {
			err = tw.Close()
		}
		if err == nil {
			err = b.Flush()
		}
		w.CloseWithError(err)
		done <- err
	}()
	// Small files take a block each, so a disk may be larger than its files. That
	// it is too large is for the sparse file to say.
	most := 2 * s.opts.MaxBytes
	holes := &sparseFile{ctx: ctx, f: disk, most: most}
	err = tar2ext4.ConvertTarToExt4(r, holes, tar2ext4.MaximumDiskSize(most+1<<20))
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what follows the end of the archive
	}
	r.CloseWithError(errors.New("the disk could not be written"))
	if werr := <-done; werr != nil && err == nil {
		err = werr
	}
	if err == nil {
		err = holes.finish()
	}
	if err == nil {
		err = padInodeBitmaps(disk)
	}
	if err != nil {
		return malformed(fmt.Errorf("writing the root disk: %w", err))
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
	t := tar.NewReader(newSkipper(in))
	for i := 0; ; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
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

// write writes the tree as a tar stream: directories, then files in the order of
// their layers, then hard links, since a link's target must be there.
func (t *tree) write(w *entryWriter, layers []string) error {
	byEntry := map[[2]int]*node{} // where each entry goes
	var links []*node
	for _, n := range t.all() {
		at := [2]int{n.layer, n.entry}
		switch {
		case n.dir && n.layer < 0:
		case n.dir, byEntry[at] == nil:
			byEntry[at] = n
		default:
			links = append(links, n)
		}
	}
	if err := t.writeDirs(w, layers, byEntry); err != nil {
		return err
	}
	for i, l := range layers {
		err := eachEntry(w.ctx, l, func(j int, h *tar.Header, r io.Reader) error {
			n := byEntry[[2]int{i, j}]
			if n == nil || n.dir {
				return nil
			}
			return w.copy(n.path(), h, r)
		})
		if err != nil {
			return err
		}
	}
	for _, n := range links {
		to := byEntry[[2]int{n.layer, n.entry}]
		if err := w.link(n.path(), to.path()); err != nil {
			return err
		}
	}
	return nil
}

// writeDirs writes all directories, parents first, with the headers that the
// topmost layer gives them.
func (t *tree) writeDirs(w *entryWriter, layers []string, byEntry map[[2]int]*node) error {
	headers := map[*node]*tar.Header{}
	for i, l := range layers {
		err := eachEntry(w.ctx, l, func(j int, h *tar.Header, _ io.Reader) error {
			if n := byEntry[[2]int{i, j}]; n != nil && n.dir {
				headers[n] = h
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for name, n := range t.all() {
		if !n.dir {
			continue
		}
		h := headers[n]
		if h == nil {
			h = &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}
		}
		if err := w.copy(name+"/", h, nil); err != nil {
			return err
		}
	}
	return nil
}
