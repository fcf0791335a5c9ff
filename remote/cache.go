package remote

import (
	"container/list"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Cache keeps chunks on disk as they are stored, whichever snapshots they are of: those that were used
// last, up to so many bytes. A chunk is a file of its own, named by its digest. What is in one is believed
// as little as what comes from the store, so files are not synced, and one that a crash has damaged is
// a chunk that is fetched again. Its methods may be called from many goroutines of one process.
type Cache struct {
	dir string
	max int64

	mu     sync.Mutex
	files  map[Digest]*list.Element // guarded by mu
	last   *list.List               // guarded by mu: of *cached, the one used last first
	bytes  int64                    // guarded by mu
	hits   int64                    // guarded by mu
	misses int64                    // guarded by mu
}

// cached is a chunk in the cache.
type cached struct {
	digest Digest
	size   int64
	noted  time.Time // its last use, as far as its file says
}

// noteEvery is how old a file's time may be when its chunk is used again: it says after a restart
// which chunks were used last.
const noteEvery = time.Minute

// OpenCache opens the cache in dir, making it if it is not there, for at most max bytes. Of what
// it finds there only what a crash left half written, or is too much, is deleted.
func OpenCache(dir string, max int64) (*Cache, error) {
	c := &Cache{dir: dir, max: max, files: map[Digest]*list.Element{}, last: list.New()}
	if err := c.open(); err != nil {
		return nil, fmt.Errorf("opening the cache of chunks: %w", err)
	}
	return c, nil
}

func (c *Cache) open() error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	if err := atomicfile.Clean(c.dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	var found []*cached
	for _, e := range entries {
		d, ok := parseDigest(e.Name())
		info, err := e.Info()
		if !ok || err != nil || !info.Mode().IsRegular() {
			continue // not its own
		}
		found = append(found, &cached{d, info.Size(), info.ModTime()})
	}
	slices.SortFunc(found, func(a, b *cached) int { return b.noted.Compare(a.noted) })
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range found {
		c.files[f.digest] = c.last.PushBack(f)
		c.bytes += f.size
	}
	c.trim()
	return nil
}

func parseDigest(s string) (d Digest, ok bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) || hex.EncodeToString(b) != s {
		return d, false
	}
	return Digest(b), true
}

func (c *Cache) path(d Digest) string { return filepath.Join(c.dir, d.String()) }

// get returns what is stored of a chunk; nil: the cache has it not. Nothing of it was verified.
func (c *Cache) get(d Digest) []byte {
	c.mu.Lock()
	e := c.files[d]
	note := false
	if e != nil {
		c.last.MoveToFront(e)
		f := e.Value.(*cached)
		if note = time.Since(f.noted) > noteEvery; note {
			f.noted = time.Now()
		}
	} else {
		c.misses++
	}
	c.mu.Unlock()
	if e == nil {
		return nil
	}
	b, err := os.ReadFile(c.path(d))
	if err != nil { // evicted just now, or somebody has deleted it
		c.drop(d)
		return nil
	}
	if note {
		now := time.Now()
		_ = os.Chtimes(c.path(d), now, now) // lost, it is evicted too early
	}
	return b
}

// used notes that what get returned was right.
func (c *Cache) used() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hits++
}

// drop forgets a chunk whose file is not what it should be.
func (c *Cache) drop(d Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.misses++
	if e := c.files[d]; e != nil {
		c.remove(e)
	}
}

// put keeps what is stored of a chunk, which was verified. What cannot be written is not kept.
func (c *Cache) put(d Digest, stored []byte) error {
	c.mu.Lock()
	_, there := c.files[d]
	c.mu.Unlock()
	if size := int64(len(stored)); there || size > c.max {
		return nil
	}
	if err := atomicfile.WriteUnsynced(c.path(d), stored, 0o600); err != nil {
		return fmt.Errorf("keeping a chunk in the cache: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.files[d] == nil { // else another was faster
		c.files[d] = c.last.PushFront(&cached{d, int64(len(stored)), time.Now()})
		c.bytes += int64(len(stored))
		c.trim()
	}
	return nil
}

// trim evicts what was not used for longest. The mutex is held, as in remove.
func (c *Cache) trim() {
	for c.bytes > c.max {
		c.remove(c.last.Back())
	}
}

func (c *Cache) remove(e *list.Element) {
	f := c.last.Remove(e).(*cached)
	delete(c.files, f.digest)
	c.bytes -= f.size
	if err := os.Remove(c.path(f.digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return // found again by the next that opens it
	}
}

// CacheStats says what is in a cache, and what has become of those who asked it.
type CacheStats struct {
	Chunks, Bytes int64
	Hits, Misses  int64
}

// Stats returns the counts since it was opened.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return CacheStats{Chunks: int64(len(c.files)), Bytes: c.bytes, Hits: c.hits, Misses: c.misses}
}
