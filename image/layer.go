package image

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

// spool writes a layer, decompressed, to a file, and compares its digest with
// the one that the image's configuration gives: a truncated or altered layer
// ends here. limit is how many bytes are still allowed.
func spool(ctx context.Context, l v1.Layer, diffID v1.Hash, path string, limit int64, count *counter) (n int64, err error) {
	rc, err := l.Compressed()
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	plain, err := decompress(bufio.NewReaderSize(&countingReader{ctx, rc, count}, 64<<10))
	if err != nil {
		return 0, err
	}
	defer plain.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(plain, limit+1))
	if err != nil {
		return n, fmt.Errorf("reading the layer: %w", err)
	}
	if n > limit {
		return n, fmt.Errorf("the image is larger than the limit")
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != diffID.Hex {
		return n, fmt.Errorf("the layer's content has digest sha256:%s, the configuration says %s", got, diffID)
	}
	return n, f.Close()
}

// decompress looks at the first bytes: a layer's media type is not always right.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return gzip.NewReader(r)
	case string(head) == "\x28\xb5\x2f\xfd":
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// counter tells a Progress about bytes.
type counter struct {
	p     Progress
	stage string
	total int64
	done  atomic.Int64
}

func (c *counter) add(n int64) { c.p(c.stage, c.done.Add(n), c.total) }

type countingReader struct {
	ctx context.Context
	r   io.Reader
	c   *counter
}

func (r *countingReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	if n > 0 && r.c != nil {
		r.c.add(int64(n))
	}
	return n, err
}

// cleanName returns an entry's path without leading and trailing slashes; "" is
// the root. A path that leads out of the root is an error.
func cleanName(name string) (string, error) {
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("entry %q leads out of the root", name)
		}
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("entry %q has a NUL in its name", name)
	}
	return strings.TrimPrefix(filepath.Clean("/"+name), "/"), nil
}

// archiveRef tells an OCI archive from a docker-save one by what is in it.
func archiveRef(path string) (reference, error) {
	f, err := os.Open(path)
	if err != nil {
		return reference{}, err
	}
	defer f.Close()
	form := ""
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return reference{}, fmt.Errorf("reading the archive: %w", err)
		}
		switch filepath.Clean(h.Name) {
		case "manifest.json":
			return reference{form: formDockerArchive, path: path}, nil
		case "oci-layout":
			form = formOCIArchive
		}
	}
	if form == "" {
		return reference{}, errors.New("it is neither an OCI archive nor one that docker save wrote")
	}
	return reference{form: form, path: path}, nil
}

// untarLayout unpacks an OCI archive: plain files in plain directories.
func (s *Store) untarLayout(ctx context.Context, archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	left := s.opts.MaxBytes
	for t := tar.NewReader(&countingReader{ctx: ctx, r: f}); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if left -= h.Size; left < 0 {
			return fmt.Errorf("the archive is larger than %d bytes", s.opts.MaxBytes)
		}
		if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, t)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
