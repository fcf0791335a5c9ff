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
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/filelock"
)

// Options of a store. The zero value is useful.
type Options struct {
	MaxBytes   int64 // of an image, uncompressed; default 16 GiB
	MaxEntries int   // files of an image; default one million
	Logger     *slog.Logger
}

// Store keeps root disks below a directory: <hex of the digest>/rootfs.ext4 and
// image.json. Its methods may be called from many goroutines, and any number of
// processes may have a store open.
//
// An image is made once: who makes or removes it has a claim to it, which others
// wait for, and which passes on when its owner dies. Whoever uses an image holds its
// directory, and what is held is not removed (package filelock).
type Store struct {
	dir  string
	opts Options

	mu    sync.Mutex // guards what follows
	used  map[string]*filelock.Lock
	metas map[string]readMetaFile // by path
}

// readMetaFile is an image.json that was read, and what it was then. Every start asks for it.
type readMetaFile struct {
	stamp stamp
	meta  meta
}

const (
	diskFile    = "rootfs.ext4"
	metaFile    = "image.json"
	claimPrefix = ".lock-"
	maxMeta     = 8 << 20 // bytes of image.json, which holds a Config of maxConfig with white space

	removeWait = 10 * time.Second // for a Fetch of the same image
)

var _ Fetcher = (*Store)(nil)

// Open opens the store in dir, makes it if it is not there, and removes what dead
// processes left half made.
func Open(dir string, opts Options) (*Store, error) {
	s := &Store{dir: dir, opts: opts.withDefaults(), used: map[string]*filelock.Lock{}, metas: map[string]readMetaFile{}}
	if err := errors.Join(os.MkdirAll(dir, 0o711), s.clean()); err != nil {
		return nil, fmt.Errorf("opening the image store: %w", err)
	}
	return s, nil
}

func (o Options) withDefaults() Options {
	if o.MaxBytes == 0 {
		o.MaxBytes = 16 << 30
	}
	if o.MaxEntries == 0 {
		o.MaxEntries = 1_000_000
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Close lets go of the store and of the images that are in use. Nothing may be
// under way. It is idempotent.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range s.used {
		errs = append(errs, l.Release())
	}
	clear(s.used)
	return errors.Join(errs...)
}

// clean removes what dead processes left half made.
func (s *Store) clean() error {
	digests, err := s.List()
	if err != nil {
		return err
	}
	errs := []error{atomicfile.Clean(s.dir), filelock.Sweep(s.dir, claimPrefix)}
	for _, digest := range digests {
		if dir, err := s.path(digest); err == nil {
			errs = append(errs, atomicfile.Clean(dir))
		}
	}
	return errors.Join(errs...)
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
	m, err := s.meta(filepath.Join(dir, metaFile))
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

// Remove deletes an image, whether or not this store uses it: a machine that has
// its disk open keeps it. ErrInUse when another process uses it.
func (s *Store) Remove(digest string) error {
	dir, err := s.path(digest)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeWait)
	defer cancel()
	claim, err := s.claim(ctx, dir)
	if err != nil {
		return fmt.Errorf("removing image %s: somebody works on it: %w", digest, err)
	}
	defer claim.Release()
	s.unuse(digest)
	own, err := filelock.Own(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s", ErrNotFound, digest)
	case errors.Is(err, filelock.ErrHeld):
		return fmt.Errorf("removing image %s: %w", digest, ErrInUse)
	case err != nil:
		return fmt.Errorf("removing image %s: %w", digest, err)
	}
	defer own.Release()
	if err := atomicfile.Remove(dir); err != nil {
		return fmt.Errorf("removing image %s: %w", digest, err)
	}
	return nil
}

// claim waits for the right to make or remove the image in dir.
func (s *Store) claim(ctx context.Context, dir string) (*filelock.Lock, error) {
	return filelock.Claim(ctx, filepath.Join(s.dir, claimPrefix+filepath.Base(dir)))
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

// once returns the image with this digest, made by make unless it is there, and
// uses it. Of callers in whatever processes one does the work.
func (s *Store) once(ctx context.Context, digest, ref string, make func(dir string) (Config, error)) (Image, error) {
	final, err := s.path(digest)
	if err != nil {
		return Image{}, err
	}
	claim, err := s.claim(ctx, final)
	if err != nil {
		return Image{}, err
	}
	defer claim.Release()
	img, err := s.Get(digest)
	switch {
	case err == nil:
		return img, s.Use(digest)
	case !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged):
		return img, err
	case errors.Is(err, ErrDamaged):
		// Even if somebody uses it: what they get in its place is what it was.
		s.opts.Logger.Warn("making a damaged root disk again", "image", digest, "error", err)
		if err := atomicfile.Remove(final); err != nil {
			return Image{}, fmt.Errorf("removing a damaged image: %w", err)
		}
	}
	staged, err := atomicfile.Stage(s.dir, "image")
	if err != nil {
		return Image{}, err
	}
	defer staged.Close()
	conf, err := make(staged.Dir)
	if err != nil {
		return Image{}, err
	}
	if err := publish(ctx, staged, final, meta{Image: Image{Digest: digest, Config: conf}, Ref: ref}); err != nil {
		return Image{}, fmt.Errorf("publishing image %s: %w", digest, err)
	}
	if err := s.Use(digest); err != nil {
		return Image{}, err
	}
	return s.Get(digest)
}

// Import puts an image into the store whose root disk was made elsewhere, unless it is there: fill
// writes the disk into an empty file, which must then have img's digest.
func (s *Store) Import(ctx context.Context, img Image, fill func(disk *os.File) error) (Image, error) {
	if err := img.Config.check(); err != nil {
		return Image{}, fmt.Errorf("image %s: %w", img.Digest, err)
	}
	return s.once(ctx, img.Digest, "an object store", func(dir string) (Config, error) {
		path := filepath.Join(dir, diskFile)
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return Config{}, err
		}
		if err = f.Truncate(img.DiskBytes); err == nil {
			err = fill(f)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return Config{}, err
		}
		return img.Config, isDisk(ctx, path, img)
	})
}

func publish(ctx context.Context, staged *atomicfile.Staged, final string, m meta) (err error) {
	disk := filepath.Join(staged.Dir, diskFile)
	if err := os.Chmod(staged.Dir, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(disk, 0o444); err != nil {
		return err
	}
	if m.DiskDigest, err = fileDigest(ctx, disk); err != nil {
		return err
	}
	if m.Stamp, err = stampOf(disk); err != nil {
		return err
	}
	m.DiskBytes = m.Stamp.Size
	if err := writeMeta(staged.Dir, m); err != nil {
		return err
	}
	return staged.Publish(final)
}

// meta reads an image.json, unless it is the file that was read last: it is replaced by
// another, never changed. What it returns shares memory, and is not to be changed.
func (s *Store) meta(path string) (meta, error) {
	now, err := stampOf(path)
	if err != nil {
		return meta{}, err
	}
	s.mu.Lock()
	known, ok := s.metas[path]
	s.mu.Unlock()
	if ok && known.stamp == now {
		return known.meta, nil
	}
	m, err := readMeta(path)
	if err != nil {
		return meta{}, err
	}
	if again, err := stampOf(path); err == nil && again == now { // else it is not known which was read
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.metas) >= maxMetas {
			clear(s.metas)
		}
		s.metas[path] = readMetaFile{now, m}
	}
	return m, nil
}

// maxMetas bounds what is remembered.
const maxMetas = 256

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
