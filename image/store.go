package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Options of a store. The zero value is useful.
type Options struct {
	MaxBytes   int64 // of an image, uncompressed; default 16 GiB
	MaxEntries int   // files of an image; default one million
	Logger     *slog.Logger
}

// Store keeps root disks below a directory: <hex of the digest>/rootfs.ext4 and
// image.json. Its methods may be called from many goroutines, and several
// processes may have a store open: an image is made once.
type Store struct {
	dir   string
	opts  Options
	locks *locks
}

const (
	diskFile = "rootfs.ext4"
	metaFile = "image.json"
	staging  = ".staging-"
	maxMeta  = 8 << 20 // bytes of image.json, which holds a Config of maxConfig with white space

	removeWait = 10 * time.Second // for a Fetch of the same image
)

var _ Fetcher = (*Store)(nil)

// Open opens the store in dir, makes it if it is not there, and removes what a
// crash left half made, unless another process has the store open.
func Open(dir string, opts Options) (*Store, error) {
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 16 << 30
	}
	if opts.MaxEntries == 0 {
		opts.MaxEntries = 1_000_000
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("opening the image store: %w", err)
	}
	s := &Store{dir: dir, opts: opts}
	var err error
	if s.locks, err = openLocks(dir, s.clean); err != nil {
		return nil, fmt.Errorf("opening the image store: %w", err)
	}
	return s, nil
}

// Close lets go of the store. Nothing may be under way.
func (s *Store) Close() error {
	if err := s.locks.file.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// clean removes what a crash left half made.
func (s *Store) clean() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), staging) {
			continue
		}
		s.opts.Logger.Info("removing a half-made image", "path", filepath.Join(s.dir, e.Name()))
		if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
			return fmt.Errorf("removing a half-made image: %w", err)
		}
	}
	return nil
}

// meta is image.json.
type meta struct {
	Image
	Ref   string `json:"ref"` // what it was first fetched as
	Stamp stamp  `json:"stamp"`
}

// stamp recognises a file that has not been touched since it was last checked.
type stamp struct {
	Dev   uint64 `json:"dev"`
	Ino   uint64 `json:"ino"`
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime_ns"`
	Ctime int64  `json:"ctime_ns"`
}

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return stamp{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return stamp{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// Get returns an image by digest. Its disk is recognised by its stamp; one that
// was touched is read and its digest compared: ErrDamaged if it differs.
func (s *Store) Get(digest string) (Image, error) {
	dir, err := s.path(digest)
	if err != nil {
		return Image{}, err
	}
	m, err := readMeta(filepath.Join(dir, metaFile))
	if errors.Is(err, os.ErrNotExist) {
		return Image{}, fmt.Errorf("%w: %s", ErrNotFound, digest)
	}
	if err == nil && m.Digest != digest {
		err = fmt.Errorf("%s is about image %s", metaFile, m.Digest)
	}
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w: %w; remove %s and deploy again", digest, ErrDamaged, err, dir)
	}
	m.Disk = filepath.Join(dir, diskFile)
	now, err := stampOf(m.Disk)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w: %w", digest, ErrDamaged, err)
	}
	if now == m.Stamp {
		return m.Image, nil
	}
	sum, err := fileDigest(context.Background(), m.Disk)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", digest, err)
	}
	if sum != m.DiskDigest {
		return Image{}, fmt.Errorf("image %s: %w: %s has digest %s, was made with %s; remove %s and deploy again", digest, ErrDamaged, m.Disk, sum, m.DiskDigest, dir)
	}
	m.Stamp = now
	return m.Image, writeMeta(dir, m)
}

// List returns the digests in the store.
func (s *Store) List() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if _, err := s.path("sha256:" + e.Name()); err == nil && e.IsDir() {
			out = append(out, "sha256:"+e.Name())
		}
	}
	return out, nil
}

// Remove deletes an image. A machine that has its disk open keeps it.
func (s *Store) Remove(digest string) error {
	dir, err := s.path(digest)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeWait)
	defer cancel()
	release, err := s.locks.claim(ctx, digest)
	if err != nil {
		return fmt.Errorf("removing image %s: somebody works on it: %w", digest, err)
	}
	defer release()
	if err := s.discard(dir); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotFound, digest)
	} else if err != nil {
		return fmt.Errorf("removing image %s: %w", digest, err)
	}
	return nil
}

// discard removes an image's directory, at once as others see it.
func (s *Store) discard(dir string) error {
	trash, err := os.MkdirTemp(s.dir, staging)
	if err != nil {
		return err
	}
	return errors.Join(os.Rename(dir, filepath.Join(trash, "image")), os.RemoveAll(trash))
}

// path is the directory of an image; the digest is checked, as it may come from
// a client.
func (s *Store) path(digest string) (string, error) {
	hexPart, ok := strings.CutPrefix(digest, "sha256:")
	if b, err := hex.DecodeString(hexPart); !ok || err != nil || len(b) != sha256.Size || strings.ToLower(hexPart) != hexPart {
		return "", fmt.Errorf("image digest %q: want sha256: and 64 hexadecimal digits", digest)
	}
	return filepath.Join(s.dir, hexPart), nil
}

// once returns the image with this digest, made by make unless it is there.
// Two callers do the work once.
func (s *Store) once(ctx context.Context, digest, ref string, make func(dir string) (Config, error)) (Image, error) {
	release, err := s.locks.claim(ctx, digest)
	if err != nil {
		return Image{}, err
	}
	defer release()
	img, err := s.Get(digest)
	switch {
	case err == nil:
		return img, s.Use(digest)
	case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged):
		return img, err
	case errors.Is(err, ErrDamaged):
		s.opts.Logger.Warn("making a damaged root disk again", "image", digest, "error", err)
		final, _ := s.path(digest)
		if err := s.discard(final); err != nil {
			return Image{}, fmt.Errorf("removing a damaged image: %w", err)
		}
	}
	dir, err := os.MkdirTemp(s.dir, staging)
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(dir)
	conf, err := make(dir)
	if err != nil {
		return Image{}, err
	}
	if err := s.publish(ctx, dir, digest, ref, conf); err != nil {
		return Image{}, fmt.Errorf("publishing image %s: %w", digest, err)
	}
	return s.Get(digest)
}

func (s *Store) publish(ctx context.Context, dir, digest, ref string, conf Config) error {
	disk := filepath.Join(dir, diskFile)
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(disk, 0o444); err != nil {
		return err
	}
	sum, err := fileDigest(ctx, disk)
	if err != nil {
		return err
	}
	st, err := stampOf(disk)
	if err != nil {
		return err
	}
	m := meta{Image: Image{Digest: digest, DiskBytes: st.Size, DiskDigest: sum, Config: conf}, Ref: ref, Stamp: st}
	if err := writeMeta(dir, m); err != nil {
		return err
	}
	final, err := s.path(digest)
	if err != nil {
		return err
	}
	return atomicfile.Publish(dir, final)
}

func readMeta(path string) (m meta, err error) {
	b, err := readSmall(path, maxMeta)
	if err != nil {
		return m, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("reading %s: %w", path, err)
	}
	return m, nil
}

// readSmall reads a file that has at most so many bytes.
func readSmall(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(b) > most {
		err = as(ErrTooLarge, fmt.Errorf("%s has more than %d bytes", path, most))
	}
	return b, err
}

func writeMeta(dir string, m meta) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, metaFile)
	if b = append(b, '\n'); len(b) > maxMeta {
		return as(ErrTooLarge, fmt.Errorf("%s would have %d bytes: %d are allowed", path, len(b), maxMeta))
	}
	return atomicfile.WriteFile(path, b, 0o600)
}

func fileDigest(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, &countingReader{ctx: ctx, r: f}, make([]byte, 256<<10)); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
