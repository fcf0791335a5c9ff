package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Resolve says which image a reference means now, by its digest, without making its root disk. Only a registry is
// asked; "" is any other reference, whose image Fetch reads as fast.
func (s *Store) Resolve(ctx context.Context, ref string) (string, error) {
	r, err := parseRef(ref)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", ref, as(ErrReference, err))
	}
	if r.form != formRegistry {
		return "", nil
	}
	img, err := remote.Image(r.name, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithPlatform(platform()))
	if err != nil {
		return "", fmt.Errorf("image %s: %w", ref, ofRegistry(err))
	}
	h, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("image %s: %w", ref, err)
	}
	return h.String(), nil
}

// Pinned is a reference to just the image of that digest, where another names an image of a registry; "" where not.
func Pinned(ref, digest string) string {
	r, err := parseRef(ref)
	if err != nil || r.form != formRegistry {
		return ""
	}
	return r.name.Context().Digest(digest).String()
}

// Incoming is an image whose root disk is on its way. It is not in the store before it is complete, and goes with
// its process.
type Incoming struct {
	// Disk is the root disk: of holes at first, and as long as it is to be.
	Disk *os.File

	store  *Store
	image  Image
	staged *atomicfile.Staged
	once   sync.Once // Complete or Abort, whichever comes first
}

// Receive begins to have an image whose root disk was made elsewhere. The caller fills the disk and then calls
// Complete, or else Abort. Neither may come before everybody who reads or writes Disk is done with it.
func (s *Store) Receive(img Image) (*Incoming, error) {
	fail := func(err error) (*Incoming, error) { return nil, fmt.Errorf("receiving image %s: %w", img.Digest, err) }
	if err := img.Config.check(); err != nil {
		return fail(err)
	}
	if _, err := s.path(img.Digest); err != nil {
		return fail(err)
	}
	if img.DiskBytes <= 0 {
		return fail(fmt.Errorf("%w: its root disk has %d bytes", ErrDamaged, img.DiskBytes))
	}
	if most := 2 * s.opts.MaxBytes; img.DiskBytes > most { // as for one that is made here
		return fail(as(ErrTooLarge, fmt.Errorf("its root disk has %d bytes: %d are allowed", img.DiskBytes, most)))
	}
	staged, err := atomicfile.Stage(s.dir, "incoming")
	if err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(filepath.Join(staged.Dir, diskFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		if err = f.Truncate(img.DiskBytes); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return fail(errors.Join(err, staged.Close()))
	}
	return &Incoming{Disk: f, store: s, image: img, staged: staged}, nil
}

// Complete puts the image into the store, if its disk is what it should be, unless it has come there in another
// way; and uses it. Disk stays open.
func (in *Incoming) Complete(ctx context.Context) (img Image, err error) {
	err = fmt.Errorf("publishing image %s: it is published or aborted already", in.image.Digest)
	in.once.Do(func() {
		defer in.staged.Close()
		img, err = in.store.once(ctx, in.image.Digest, "an object store", func(dir string) (Config, error) {
			path := filepath.Join(dir, diskFile)
			if err := os.Rename(filepath.Join(in.staged.Dir, diskFile), path); err != nil {
				return Config{}, err
			}
			return in.image.Config, isDisk(ctx, path, in.image)
		})
	})
	return img, err
}

// Abort gives the image up. After Complete it does nothing.
func (in *Incoming) Abort() { in.once.Do(func() { _ = in.staged.Close() }) }

// isDisk compares a root disk that was made elsewhere with the digest that it should have.
func isDisk(ctx context.Context, path string, img Image) error {
	sum, err := fileDigest(ctx, path)
	if err == nil && sum != img.DiskDigest {
		err = fmt.Errorf("%w: its root disk has digest %s, want %s", ErrDamaged, sum, img.DiskDigest)
	}
	return err
}
