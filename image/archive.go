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
	"strings"
)

// isArchiveName tells a path of an archive from a reference into a registry.
func isArchiveName(ref string) bool {
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst"} {
		if strings.HasSuffix(ref, suffix) {
			return !strings.Contains(ref, "@")
		}
	}
	return false
}

// plainArchive returns the path of an archive decompressed: its own if it is not
// compressed, or that of a copy in the directory dir.
func (s *Store) plainArchive(ctx context.Context, path, dir string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := bufio.NewReaderSize(&countingReader{ctx: ctx, r: f}, 64<<10)
	if head, _ := b.Peek(4); compression(head) == "" {
		return path, nil
	}
	plain, err := decompress(b)
	if err != nil {
		return "", fmt.Errorf("decompressing the archive: %w", err)
	}
	defer plain.Close()
	out, err := os.OpenFile(filepath.Join(dir, "archive.tar"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer out.Close()
	holes := &sparseFile{ctx: ctx, f: out}
	if _, err := io.Copy(&budgetWriter{holes, newBudget(s.opts.MaxBytes)}, struct{ io.Reader }{plain}); err != nil {
		return "", fmt.Errorf("decompressing the archive: %w", err)
	}
	return out.Name(), errors.Join(holes.finish(), out.Close())
}

// archiveForm tells an OCI archive from a docker-save one by what is in it. One
// that is both counts as docker-save.
func archiveForm(ctx context.Context, path string) (form string, err error) {
	err = eachEntry(ctx, path, func(_ int, h *tar.Header, _ io.Reader) error {
		switch filepath.Clean(h.Name) {
		case "manifest.json":
			form = formDockerArchive
			return io.EOF // seen enough
		case "oci-layout":
			form = formOCIArchive
		}
		return nil
	})
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("reading the archive: %w", err)
	}
	if form == "" {
		return "", errors.New("it is neither an OCI archive nor one that docker save wrote")
	}
	return form, nil
}

// untarLayout unpacks an OCI archive: plain files in plain directories.
func (s *Store) untarLayout(ctx context.Context, archive, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	left := newBudget(s.opts.MaxBytes)
	files := 0
	err = eachEntry(ctx, archive, func(_ int, h *tar.Header, r io.Reader) error {
		name, err := cleanName(h.Name)
		if err != nil || h.Typeflag != tar.TypeReg {
			return err
		}
		if files++; files > maxArchiveFiles {
			return as(ErrTooLarge, fmt.Errorf("it has more than %d files", maxArchiveFiles))
		}
		if err := left.take(h.Size); err != nil {
			return err
		}
		return unpack(ctx, root, name, r)
	})
	if err != nil {
		return fmt.Errorf("reading the archive: %w", err)
	}
	return nil
}

// maxArchiveFiles bounds the blobs of an OCI archive.
const maxArchiveFiles = 100_000

func unpack(ctx context.Context, root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	holes := &sparseFile{ctx: ctx, f: out}
	_, err = io.Copy(holes, r)
	return errors.Join(err, holes.finish(), out.Close())
}
