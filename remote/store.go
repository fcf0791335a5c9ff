package remote

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/time/rate"

	"github.com/skep-dev/skep/remote/seal"
)

// Options of New. Of the zero value only Bucket is missing.
type Options struct {
	Bucket Bucket
	Prefix string // of all keys, such as "team-a/"; default none
	Block  int    // bytes of the blocks that files are cut into; default DefaultBlock
	Pack   int    // bytes from which on an object of chunks is full; default 16 MiB
	Reads  int    // ranges that one Fetch asks for at once; default 8
	// Cache has chunks on this host's disk, and gets what is fetched; nil: none.
	Cache *Cache
	// FillRate bounds what is fetched of snapshots from which starts are made already, all together, in
	// bytes a second; default none. What a guest waits for is not held back.
	FillRate int
	// Scatter is how many small reads a snapshot may cost, of less than a MiB, before the next
	// of its function stores the worst of it anew, together; default 256.
	Scatter int
	// Lease is how long a push that nothing is heard of is taken to be alive, by the
	// store's clock; default an hour. With a negative one all are taken to be dead.
	Lease time.Duration
	// Key encrypts all that is stored and is asked for when it is needed first, and again after it
	// was not to be had; nil: nothing is encrypted.
	Key seal.Source
	Log *slog.Logger // default: none
}

// Store is the snapshots in an object store. Its methods may be called from many
// goroutines, and any number of processes may use the same objects.
type Store struct {
	o   Options
	enc *zstd.Encoder
	dec *zstd.Decoder

	meter   meter
	filling *rate.Limiter // bytes of what nobody waits for
	waiting gate          // before that

	cacheFull sync.Once // it was told that nothing can be kept in the cache

	mu     sync.Mutex
	loaded map[string]*Manifest // guarded by mu: by key; a key's content never changes

	sealer  atomic.Pointer[seal.Key] // once it was got
	getting chan struct{}            // holds something while somebody gets it
}

// keepLoaded bounds the manifests that are remembered.
const keepLoaded = 256

// New returns a store of snapshots. Nothing is asked of the bucket yet.
func New(o Options) (*Store, error) {
	if o.Block == 0 {
		o.Block = DefaultBlock
	}
	if o.Pack == 0 {
		o.Pack = 16 << 20
	}
	if o.Reads == 0 {
		o.Reads = 8
	}
	if o.Scatter == 0 {
		o.Scatter = 256
	}
	if o.Lease == 0 {
		o.Lease = time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Prefix != "" && !strings.HasSuffix(o.Prefix, "/") {
		o.Prefix += "/"
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxBlock))
	if err != nil {
		return nil, err
	}
	s := &Store{enc: enc, dec: dec, loaded: map[string]*Manifest{}, getting: make(chan struct{}, 1), filling: rate.NewLimiter(rate.Inf, 0)}
	if o.FillRate > 0 {
		s.filling = rate.NewLimiter(rate.Limit(o.FillRate), fillRange)
	}
	o.Bucket = metered{o.Bucket, &s.meter}
	s.o = o
	return s, nil
}

// Folders of the keys; see the package's comment.
const (
	packsDir     = "packs/"
	snapshotsDir = "snapshots/"
	pushingDir   = "pushing/"
	condemnedDir = "condemned/"
	clockDir     = "clock/"
)

func (s *Store) key(dir, name string) string { return s.o.Prefix + "skep1/" + dir + name }

// Entry is a snapshot in the store, as its key tells of it.
type Entry struct {
	Function string
	ID       string
	Fit      string // what it fits, as Store.Fit has it
	Sum      string // SHA-256 of the manifest
	Size     int64  // bytes of the manifest
	Modified time.Time
	key      string
}

// fitLen bounds what Entry.Fit has.
const fitLen = 64

func (s *Store) entryKey(function, id, fit string, manifest []byte) string {
	sum := sha256.Sum256(manifest)
	return s.key(snapshotsDir, function+"/"+id+"/"+fit+"-"+hex.EncodeToString(sum[:]))
}

// parseEntry reads an entry from an object's key; false: it is none.
func (s *Store) parseEntry(o Object) (Entry, bool) {
	rest, ok := strings.CutPrefix(o.Key, s.key(snapshotsDir, ""))
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 || !plain(parts[0]) || !plain(parts[1]) {
		return Entry{}, false
	}
	fit, sum, _ := strings.Cut(parts[2], "-")
	if b, err := hex.DecodeString(sum); err != nil || len(b) != sha256.Size || !plain(fit) {
		return Entry{}, false
	}
	return Entry{Function: parts[0], ID: parts[1], Fit: fit, Sum: sum, Size: o.Size, Modified: o.Modified, key: o.Key}, true
}

// plain says whether a name can be a part of a key, and of a path.
func plain(name string) bool { return validName(name) && !strings.Contains(name, "/") }

// List returns the snapshots of a function, of all for "", newest first: of each id
// the manifest that was written last.
func (s *Store) List(ctx context.Context, function string) ([]Entry, error) {
	all, err := s.entries(ctx, function)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(e Entry) bool {
		was := seen[e.Function+"/"+e.ID]
		seen[e.Function+"/"+e.ID] = true
		return was
	}), nil
}

// entries lists every manifest, newest first.
func (s *Store) entries(ctx context.Context, function string) ([]Entry, error) {
	prefix := s.key(snapshotsDir, "")
	if function != "" {
		if !plain(function) {
			return nil, fmt.Errorf("function %q cannot be in the object store", function)
		}
		prefix += function + "/"
	}
	var all []Entry
	for o, err := range s.o.Bucket.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("listing snapshots in the object store: %w", err)
		}
		if e, ok := s.parseEntry(o); ok {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		if c := b.Modified.Compare(a.Modified); c != 0 {
			return c
		}
		return cmp.Compare(b.key, a.key)
	})
	return all, nil
}

// Find returns the snapshot of that id; ErrNotThere when there is none.
func (s *Store) Find(ctx context.Context, function, id string) (Entry, error) {
	all, err := s.List(ctx, function)
	if err != nil {
		return Entry{}, err
	}
	for _, e := range all {
		if e.ID == id {
			return e, nil
		}
	}
	return Entry{}, fmt.Errorf("snapshot %s of function %s: %w", id, function, ErrNotThere)
}

// raw returns an entry's manifest as it is stored, with the digest that its key names.
func (s *Store) raw(ctx context.Context, e Entry) ([]byte, error) {
	b, err := s.o.Bucket.Get(ctx, e.key, maxStored)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s in the object store: %w", e.ID, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != e.Sum {
		return nil, fmt.Errorf("the manifest of %s in the object store: %w", e.ID, refuse("its digest is %x, its name says %s: it was changed or damaged", sum, e.Sum))
	}
	return b, nil
}

// Load returns an entry's manifest, with the digest that its key names. It is shared
// and must not be changed. Errors wrap ErrNotThere, ErrFormat, ErrUnavailable, ErrKey or ErrNoKey.
func (s *Store) Load(ctx context.Context, e Entry) (*Manifest, error) {
	s.mu.Lock()
	m := s.loaded[e.key]
	s.mu.Unlock()
	if m != nil {
		return m, nil
	}
	k, err := s.sealing(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s in the object store: %w", e.ID, err)
	}
	b, err := s.raw(ctx, e)
	if err != nil {
		return nil, err
	}
	if m, err = openManifest(k, e.place(), b); err != nil {
		return nil, fmt.Errorf("the manifest of %s in the object store: %w", e.ID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for old := range s.loaded {
		if len(s.loaded) < keepLoaded {
			break
		}
		delete(s.loaded, old)
	}
	s.loaded[e.key] = m
	return m, nil
}

// Remove takes a snapshot out of the store. Its chunks go when a Collect finds that no
// other has them.
func (s *Store) Remove(ctx context.Context, function, id string) error {
	all, err := s.entries(ctx, function)
	if err != nil {
		return err
	}
	found := false
	// The newest goes last: who looks meanwhile does not find an older one.
	for _, e := range slices.Backward(all) {
		if e.ID != id {
			continue
		}
		found = true
		if err := s.o.Bucket.Delete(ctx, e.key); err != nil {
			return fmt.Errorf("removing snapshot %s from the object store: %w", id, err)
		}
	}
	if !found {
		return fmt.Errorf("snapshot %s of function %s: %w", id, function, ErrNotThere)
	}
	return nil
}

// random returns the name of something that nobody else names so.
func random() (p PackID, err error) {
	if _, err := rand.Read(p[:]); err != nil {
		return p, fmt.Errorf("naming an object: %w", err)
	}
	return p, nil
}

// now is the time by the store's clock, which alone dates objects.
func (s *Store) now(ctx context.Context) (time.Time, error) {
	id, err := random()
	if err != nil {
		return time.Time{}, err
	}
	key := s.key(clockDir, id.String())
	if err := s.o.Bucket.Put(ctx, key, nil); err != nil {
		return time.Time{}, fmt.Errorf("asking the object store for the time: %w", err)
	}
	var at time.Time
	for o, err := range s.o.Bucket.List(ctx, key) {
		if err != nil {
			return at, fmt.Errorf("asking the object store for the time: %w", err)
		}
		at = o.Modified
	}
	if err := s.o.Bucket.Delete(ctx, key); err != nil {
		return at, fmt.Errorf("asking the object store for the time: %w", err)
	}
	if at.IsZero() {
		return at, errors.New("asking the object store for the time: what was written is not listed: it is no store that can be shared")
	}
	return at, nil
}
