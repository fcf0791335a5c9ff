package remote

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/skep-dev/skep/remote/seal"
)

// ErrKey is wrapped when a snapshot in the store is encrypted and this node has no key, or
// another, or when it has a key and the snapshot is not encrypted.
var ErrKey = errors.New("not for this node's key")

// ErrNoKey is wrapped when the key of the store was not to be had from where it is kept.
var ErrNoKey = errors.New("the key of the object store is not to be had")

const (
	sealedVersion = 2
	sealedHeader  = 32
	// maxStored is the length of the largest object that is read as a manifest, in bytes.
	maxStored = MaxManifest + MaxManifest/2
)

// sealing returns the key that all is encrypted with; nil: nothing is.
func (s *Store) sealing(ctx context.Context) (*seal.Key, error) {
	if s.o.Key == nil {
		return nil, nil
	}
	if k := s.sealer.Load(); k != nil {
		return k, nil
	}
	select {
	case s.getting <- struct{}{}:
		defer func() { <-s.getting }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if k := s.sealer.Load(); k != nil {
		return k, nil
	}
	k, err := s.o.Key(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	s.o.Log.Info("what goes to the object store is encrypted", "key", k.ID().String())
	s.sealer.Store(k)
	return k, nil
}

// Fit is what stands in the store for what a snapshot fits: keyed, if there is a key. Errors wrap
// ErrNoKey.
func (s *Store) Fit(ctx context.Context, fit string) (string, error) {
	k, err := s.sealing(ctx)
	if err != nil || k == nil {
		return fit, err
	}
	return k.Label(fit), nil
}

// digest names a content: with the key, if there is one.
func digest(k *seal.Key, content []byte) Digest {
	if k == nil {
		return sha256.Sum256(content)
	}
	return k.Name(content)
}

// place says where a manifest is, for what it is sealed.
func (e Entry) place() string { return e.Function + "/" + e.ID + "/" + e.Fit }

// sealManifest encodes a manifest for its place, with the packs to be seen: who collects needs no key.
func sealManifest(k *seal.Key, place string, m *Manifest) ([]byte, error) {
	plain, err := m.Encode()
	if err != nil || k == nil {
		return plain, err
	}
	id := k.ID()
	b := []byte(manifestMagic)
	b = binary.LittleEndian.AppendUint32(b, sealedVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.Packs)))
	b = append(b, id[:]...)
	for _, p := range m.Packs {
		b = append(b, p[:]...)
	}
	sealed, err := k.Manifest(slices.Concat(b, []byte(place)), plain)
	if err != nil {
		return nil, fmt.Errorf("encrypting a manifest: %w", err)
	}
	return append(b, sealed...), nil
}

// openManifest reads what sealManifest has made for that place. Errors wrap ErrFormat or ErrKey.
func openManifest(k *seal.Key, place string, b []byte) (*Manifest, error) {
	head, err := readSealed(b)
	switch {
	case err != nil:
		return nil, err
	case head == nil && k != nil:
		return nil, fmt.Errorf("%w: it is not encrypted, which what this node uses must be; push it anew from where it was made, or use another prefix", ErrKey)
	case head == nil:
		return Decode(b)
	case k == nil:
		return nil, fmt.Errorf("%w: it is encrypted with key %v, and this node has none: set store_key_file or store_key_command", ErrKey, head.key)
	case head.key != k.ID():
		return nil, fmt.Errorf("%w: it is encrypted with key %v, and this node has %v", ErrKey, head.key, k)
	}
	open := b[:len(b)-len(head.rest)]
	plain, err := k.OpenManifest(slices.Concat(open, []byte(place)), head.rest)
	if err != nil {
		return nil, refuse("the manifest for %s: %v", place, err)
	}
	m, err := Decode(plain)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(m.Packs, head.packs) {
		return nil, refuse("the manifest has other packs than those it is said to have")
	}
	return m, nil
}

// sealed is what is to be seen of an encrypted manifest.
type sealed struct {
	key   seal.ID
	packs []PackID
	rest  []byte
}

// readSealed reads what is to be seen of a manifest; nil: it is not encrypted.
func readSealed(b []byte) (*sealed, error) {
	if len(b) < sealedHeader || string(b[:8]) != manifestMagic || binary.LittleEndian.Uint32(b[8:]) != sealedVersion {
		return nil, nil
	}
	n := uint64(binary.LittleEndian.Uint32(b[12:]))
	out := &sealed{key: seal.ID(b[16:32])}
	if b = b[sealedHeader:]; n*packIDSize+seal.Overhead > uint64(len(b)) {
		return nil, refuse("a manifest of %d packs and %d bytes after its header: it was cut short", n, len(b))
	}
	for range n {
		out.packs = append(out.packs, PackID(b[:packIDSize]))
		b = b[packIDSize:]
	}
	out.rest = b
	return out, nil
}

// packs returns the packs that a snapshot needs, for which no key is needed.
func (s *Store) packs(ctx context.Context, e Entry) ([]PackID, error) {
	s.mu.Lock()
	m := s.loaded[e.key]
	s.mu.Unlock()
	if m != nil {
		return m.Packs, nil
	}
	b, err := s.raw(ctx, e)
	if err != nil {
		return nil, err
	}
	head, err := readSealed(b)
	if err == nil && head != nil {
		return head.packs, nil
	}
	if err == nil {
		m, err = Decode(b)
	}
	if err != nil {
		return nil, fmt.Errorf("the manifest of %s in the object store: %w", e.ID, err)
	}
	return m.Packs, nil
}
