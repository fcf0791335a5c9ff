package rootdisk

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	ggcr "github.com/google/go-containerregistry/pkg/v1/types"
	digests "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxJSON bounds indexes, manifests and configurations, which are read into memory.
const maxJSON = 8 << 20

// blobs is an image in containerd's content store.
type blobs struct {
	ctx      context.Context
	store    content.Provider
	kind     ggcr.MediaType
	manifest []byte
	config   []byte
	layers   map[v1.Hash]v1.Descriptor
}

var _ partial.CompressedImageCore = (*blobs)(nil)

// open finds the image for this host's platform below target.
func open(ctx context.Context, store content.Provider, target *types.Descriptor) (v1.Image, error) {
	kind, digest := ggcr.MediaType(target.MediaType), target.Digest
	for depth := 0; kind.IsIndex(); depth++ {
		if depth > 4 {
			return nil, fmt.Errorf("index images are nested too deep")
		}
		b, err := read(ctx, store, digest)
		if err != nil {
			return nil, err
		}
		found, err := pick(b)
		if err != nil {
			return nil, err
		}
		kind, digest = found.MediaType, found.Digest.String()
	}
	b := &blobs{ctx: ctx, store: store, kind: kind, layers: map[v1.Hash]v1.Descriptor{}}
	var err error
	if b.manifest, err = read(ctx, store, digest); err != nil {
		return nil, err
	}
	m, err := partial.Manifest(b)
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", digest, err)
	}
	if b.config, err = read(ctx, store, m.Config.Digest.String()); err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		b.layers[l.Digest] = l
	}
	return partial.CompressedToImage(b)
}

// pick finds the image for this host in an index.
func pick(index []byte) (v1.Descriptor, error) {
	m, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading an index image: %w", err)
	}
	want := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	for _, d := range m.Manifests {
		if (d.Platform == nil || d.Platform.Satisfies(want)) && (d.MediaType.IsImage() || d.MediaType.IsIndex()) {
			return d, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("there is no image for %s", want)
}

func (b *blobs) MediaType() (ggcr.MediaType, error) { return b.kind, nil }
func (b *blobs) RawManifest() ([]byte, error)       { return b.manifest, nil }
func (b *blobs) RawConfigFile() ([]byte, error)     { return b.config, nil }

func (b *blobs) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	d, ok := b.layers[h]
	if !ok {
		return nil, fmt.Errorf("layer %s: %w", h, errdefs.ErrNotFound)
	}
	return layer{b, d}, nil
}

// layer is one that containerd may have decompressed already, but keeps as it was
// pulled.
type layer struct {
	of *blobs
	d  v1.Descriptor
}

func (l layer) Digest() (v1.Hash, error)           { return l.d.Digest, nil }
func (l layer) Size() (int64, error)               { return l.d.Size, nil }
func (l layer) MediaType() (ggcr.MediaType, error) { return l.d.MediaType, nil }
func (l layer) Compressed() (io.ReadCloser, error) {
	r, err := l.of.store.ReaderAt(l.of.ctx, ocispec.Descriptor{Digest: digests.Digest(l.d.Digest.String()), Size: l.d.Size})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.d.Digest, err)
	}
	return &closer{content.NewReader(r), r}, nil
}

type closer struct {
	io.Reader
	io.Closer
}

// read reads a small blob.
func read(ctx context.Context, store content.Provider, digest string) ([]byte, error) {
	r, err := store.ReaderAt(ctx, ocispec.Descriptor{Digest: digests.Digest(digest)})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", digest, err)
	}
	defer r.Close()
	if r.Size() > maxJSON {
		return nil, fmt.Errorf("%s has %d bytes: %d are allowed", digest, r.Size(), maxJSON)
	}
	b := make([]byte, r.Size())
	if _, err := r.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading %s: %w", digest, err)
	}
	return b, nil
}
