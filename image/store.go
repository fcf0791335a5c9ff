package image

import (
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
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Errors that callers branch on.
var (
	ErrNotFound = errors.New("no such image in the store")
	ErrDamaged  = errors.New("the root disk is not what it was made as")
)

// Options of a store. The zero value is useful.
type Options struct {
	MaxBytes int64 // of an image, uncompressed; default 16 GiB
	Logger   *slog.Logger
}

// Store keeps root disks below a directory: <hex of the digest>/rootfs.ext4 and
// image.json. It belongs to one process at a time, which the lock of the data
// directory sees to. Its methods may be called from many goroutines.
type Store struct {
	dir  string
	opts Options

	mu   sync.Mutex // guards work
	work map[string]chan struct{}
}

const (
	diskFile  = "rootfs.ext4"
	metaFile  = "image.json"
	staging   = ".staging-"
	metaLimit = 1 << 20
)

var _ Fetcher = (*Store)(nil)

// Open opens the store in dir, makes it if it is not there, and removes what a
// crash left half made.
func Open(dir string, opts Options) (*Store, error) {
	if opts.MaxBytes == 0 {
		opts.MaxBytes = 16 << 30
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("opening the image store: %w", err)
	}
	half, err := filepath.Glob(filepath.Join(dir, staging+"*"))
	if err != nil {
		return nil, err
	}
	for _, d := range half {
		opts.Logger.Info("removing a half-made image", "path", d)
		if err := os.RemoveAll(d); err != nil {
			return nil, fmt.Errorf("removing a half-made image: %w", err)
		}
	}
	return &Store{dir: dir, opts: opts, work: map[string]chan struct{}{}}, nil
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
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", digest, err)
	}
	m.Disk = filepath.Join(dir, diskFile)
	now, err := stampOf(m.Disk)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w: %w", digest, ErrDamaged, err)
	}
	if now == m.Stamp {
		return m.Image, nil
	}
	sum, err := fileDigest(m.Disk)
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
	release, err := s.claim(context.Background(), digest)
	if err != nil {
		return err
	}
	defer release()
	trash, err := os.MkdirTemp(s.dir, staging)
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(trash, "image")); errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("%w: %s", ErrNotFound, digest), os.Remove(trash))
	} else if err != nil {
		return errors.Join(fmt.Errorf("removing image %s: %w", digest, err), os.Remove(trash))
	}
	return os.RemoveAll(trash)
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

// claim waits until no other goroutine works on the digest.
func (s *Store) claim(ctx context.Context, digest string) (release func(), err error) {
	for {
		s.mu.Lock()
		busy, taken := s.work[digest]
		if !taken {
			mine := make(chan struct{})
			s.work[digest] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.work, digest)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// once returns the image with this digest, made by make unless it is there.
// Two callers do the work once.
func (s *Store) once(ctx context.Context, digest, ref string, make func(dir string) (Config, error)) (Image, error) {
	release, err := s.claim(ctx, digest)
	if err != nil {
		return Image{}, err
	}
	defer release()
	img, err := s.Get(digest)
	switch {
	case err == nil, !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged):
		return img, err
	case errors.Is(err, ErrDamaged):
		s.opts.Logger.Warn("making a damaged root disk again", "image", digest, "error", err)
		final, _ := s.path(digest)
		if err := os.RemoveAll(final); err != nil {
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
	if err := s.publish(dir, digest, ref, conf); err != nil {
		return Image{}, fmt.Errorf("publishing image %s: %w", digest, err)
	}
	return s.Get(digest)
}

func (s *Store) publish(dir, digest, ref string, conf Config) error {
	disk := filepath.Join(dir, diskFile)
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(disk, 0o444); err != nil {
		return err
	}
	sum, err := fileDigest(disk)
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
	f, err := os.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, metaLimit))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("reading %s: %w", path, err)
	}
	return m, nil
}

func writeMeta(dir string, m meta) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, metaFile), append(b, '\n'), 0o600)
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
