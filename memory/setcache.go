package memory

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skep-dev/skep/memory/workingset"
)

// readySet is a working set's head and what is made of it before a start: read once
// for each file.
type readySet struct {
	*workingset.Set
	layout *layout
}

// setCache remembers the heads of working sets, by file identity: a file is replaced by
// another, never changed. Decoding one and laying out what is to be installed takes
// milliseconds, which a start waits for before its VMM is started.
type setCache struct {
	mu   sync.Mutex
	sets map[fileID]readySet // guarded by mu
	runs int                 // guarded by mu: of all of them
}

// settled is more than the time for which a file system may give changes of a file the same
// time.
const settled = 20 * time.Millisecond

// maxCachedRuns bounds what is remembered: some 40 bytes for each.
const maxCachedRuns = 1 << 20

// load is workingset.LoadSet. The set must not be changed.
func (c *setCache) load(src Source) (readySet, *os.File, error) {
	path := filepath.Join(src.Dir, workingset.SetFile)
	f, err := os.Open(path)
	if err != nil {
		return readySet{}, nil, err
	}
	r, err := c.get(f, src.of())
	if err != nil {
		f.Close()
		return r, nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, f, nil
}

func (c *setCache) get(f *os.File, of workingset.Of) (readySet, error) {
	id, err := identify(f)
	if err != nil {
		return readySet{}, err
	}
	c.mu.Lock()
	r, ok := c.sets[id]
	c.mu.Unlock()
	if ok && r.Of == of {
		return r, nil
	}
	s, err := workingset.ReadSet(f, id.size, of)
	if err != nil {
		return readySet{}, err
	}
	r = readySet{s, newLayout(s.Runs)}
	if time.Since(time.Unix(0, id.mtime)) > settled {
		c.put(id, r)
	}
	return r, nil
}

func (c *setCache) put(id fileID, r readySet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(r.layout.runs) > maxCachedRuns {
		return
	}
	if c.sets == nil {
		c.sets = make(map[fileID]readySet)
	}
	c.forget(id)
	for old := range c.sets {
		if c.runs+len(r.layout.runs) <= maxCachedRuns {
			break
		}
		c.forget(old)
	}
	c.sets[id] = r
	c.runs += len(r.layout.runs)
}

// forget is called with the mutex held.
func (c *setCache) forget(id fileID) {
	if r, ok := c.sets[id]; ok {
		c.runs -= len(r.layout.runs)
		delete(c.sets, id)
	}
}
