package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/remote/seal"
)

// Snapshot is what Push stores.
type Snapshot struct {
	Function string
	ID       string
	// Fit says what it fits, in at most 64 letters and digits: who looks for a
	// snapshot knows by it which manifest to read.
	Fit   string
	Meta  []byte // its own manifest, kept as it is
	Files []File // in the order in which a start uses them
}

// File is one of a snapshot's, which nobody changes any more.
type File struct {
	Name string // in the store
	Path string // on disk
}

// Pushed says what a push has done.
type Pushed struct {
	Entry   Entry
	Content int64 // bytes of the files that are not holes or zeros
	New     int64 // of them bytes that the store did not have
	Written int64 // bytes of packs written for them
}

// known is a chunk that is in the store.
type known struct {
	pack                 PackID
	offset, stored, size uint32
}

// dedupe bounds how many snapshots a push looks through for chunks that it has, the
// newest first. What an older one alone has is stored again.
const dedupe = 64

// packTime bounds the upload of one pack.
const packTime = 15 * time.Minute

// push is one under way.
type push struct {
	s       *Store
	sealer  *seal.Key
	fit     string // as Store.Fit has it
	id      PackID
	relies  map[PackID]bool // packs: those it may rely on, and those that it writes
	have    map[Digest]known
	old     []Entry // of the same snapshot, before
	m       *Manifest
	packIdx map[PackID]uint32
	chunk   map[Digest]uint32 // index in m.Chunks

	buf     []byte // of the pack that is being filled
	bufOf   PackID // its name
	uploads errgroup.Group
	out     Pushed
	report  func(done, total int64)
	done    int64
	total   int64
}

// Push stores a snapshot and returns when whoever looks finds it, whole. When it fails
// nobody does; what it has written goes with the next Collect. progress, which may be nil,
// is told how many bytes of content are done.
//
// Any number may push at once, and Collect run meanwhile. A push first writes down which
// packs it relies on, and then looks whether one of them is condemned or gone; Collect
// condemns first, and then looks at what others rely on. So one of the two sees the other.
func (s *Store) Push(ctx context.Context, snap Snapshot, progress func(done, total int64)) (Pushed, error) {
	out, err := s.push(ctx, snap, progress)
	if err != nil {
		return Pushed{}, fmt.Errorf("pushing snapshot %s: %w", snap.ID, err)
	}
	return out, nil
}

func (s *Store) push(ctx context.Context, snap Snapshot, progress func(done, total int64)) (_ Pushed, err error) {
	if !plain(snap.Function) || !plain(snap.ID) || !plain(snap.Fit) || len(snap.Fit) > fitLen {
		return Pushed{}, fmt.Errorf("function %q, snapshot %q, fit %q: they cannot be in a key", snap.Function, snap.ID, snap.Fit)
	}
	p := &push{s: s, relies: map[PackID]bool{}, have: map[Digest]known{}, packIdx: map[PackID]uint32{}, chunk: map[Digest]uint32{},
		m: &Manifest{Block: uint32(s.o.Block), Meta: snap.Meta}, report: progress}
	if p.sealer, err = s.sealing(ctx); err != nil {
		return Pushed{}, err
	}
	if p.fit, err = s.Fit(ctx, snap.Fit); err != nil {
		return Pushed{}, err
	}
	if p.id, err = random(); err != nil {
		return Pushed{}, err
	}
	p.uploads.SetLimit(2)
	if err := p.learn(ctx, snap); err != nil {
		return Pushed{}, err
	}
	defer func() {
		// Also when ctx has ended: a push that is over must not keep what others would
		// delete. One that cannot say so is taken to be dead after its lease.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err2 := s.o.Bucket.Delete(ctx, p.intent()); err2 != nil {
			s.o.Log.Warn("a push that is over stays written down as under way", "push", p.id.String(), "error", err2)
		}
	}()
	if err := p.files(ctx, snap.Files); err != nil {
		return Pushed{}, errors.Join(err, p.uploads.Wait())
	}
	return p.publish(ctx, snap)
}

func (p *push) intent() string { return p.s.key(pushingDir, p.id.String()) }

// intent is the content of an object in pushing/.
type intent struct {
	Packs []string `json:"packs"`
}

// declare writes down what the push relies on.
func (p *push) declare(ctx context.Context) error {
	in := intent{Packs: []string{}}
	for id := range p.relies {
		in.Packs = append(in.Packs, id.String())
	}
	slices.Sort(in.Packs)
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return p.s.o.Bucket.Put(ctx, p.intent(), b)
}

// learn finds the chunks that the store has and that may be relied on.
func (p *push) learn(ctx context.Context, snap Snapshot) error {
	all, err := p.s.entries(ctx, "")
	if err != nil {
		return err
	}
	p.old = slices.DeleteFunc(slices.Clone(all), func(e Entry) bool { return near(e, snap) < 2 })
	// What counts most comes last and wins: this snapshot itself, then this function's.
	slices.SortStableFunc(all, func(a, b Entry) int { return near(b, snap) - near(a, snap) })
	var last *Manifest // the nearest of this function
	for _, e := range slices.Backward(all[:min(len(all), dedupe)]) {
		m, err := p.s.Load(ctx, e)
		if errors.Is(err, ErrNotThere) {
			continue // removed just now
		}
		if errors.Is(err, ErrFormat) || errors.Is(err, ErrKey) {
			p.s.o.Log.Warn("a manifest in the object store is of no use", "key", e.key, "error", err)
			continue
		}
		if err != nil {
			return err
		}
		for _, id := range m.Packs {
			p.relies[id] = true
		}
		for _, c := range m.Chunks {
			p.have[c.Digest] = known{m.Packs[c.Pack], c.Offset, c.Stored, c.Size}
		}
		if near(e, snap) > 0 {
			last = m
		}
	}
	if last != nil {
		anew := last.scattered(p.s.o.Scatter)
		maps.DeleteFunc(p.have, func(_ Digest, k known) bool { return anew[k.pack] })
	}
	if err := p.declare(ctx); err != nil {
		return err
	}
	return p.forget(ctx)
}

func near(e Entry, s Snapshot) int {
	switch {
	case e.Function != s.Function:
		return 0
	case e.ID != s.ID:
		return 1
	}
	return 2
}

// forget drops the chunks of packs that are condemned, gone or too short. Condemned
// ones are looked for first: whoever deletes a pack takes its condemnation away after.
func (p *push) forget(ctx context.Context) error {
	condemned, err := p.s.names(ctx, condemnedDir)
	if err != nil {
		return err
	}
	there, err := p.s.names(ctx, packsDir)
	if err != nil {
		return err
	}
	maps.DeleteFunc(p.have, func(_ Digest, k known) bool {
		o, ok := there[k.pack]
		_, doomed := condemned[k.pack]
		return !ok || doomed || int64(k.offset)+int64(k.stored) > o.Size
	})
	return nil
}

// names lists the objects of a folder whose names are those of packs.
func (s *Store) names(ctx context.Context, dir string) (map[PackID]Object, error) {
	out := map[PackID]Object{}
	prefix := s.key(dir, "")
	for o, err := range s.o.Bucket.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("listing %s in the object store: %w", dir, err)
		}
		if id, err := parsePackID(o.Key[len(prefix):]); err == nil {
			out[id] = o
		}
	}
	return out, nil
}

// block is a piece of a file on its way into the store.
type block struct {
	index  uint32 // in its file
	data   []byte
	digest Digest
	stored []byte // nil: the store has it
}

// files takes the files apart, in order, and uploads what is new of them.
func (p *push) files(ctx context.Context, files []File) error {
	for _, f := range files {
		st, err := os.Stat(f.Path)
		if err != nil {
			return err
		}
		p.total += st.Size()
	}
	for _, f := range files {
		if err := p.file(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return p.flush(ctx)
}

// batch is how many blocks are read before all cores hash and compress them.
const batch = 64

func (p *push) file(ctx context.Context, file File) error {
	f, err := os.OpenFile(file.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	c := Content{Name: file.Name, Size: st.Size()}
	size := int64(p.s.o.Block)
	blocks := make([]block, 0, batch)
	for off := int64(0); off < c.Size; {
		data, end, err := nextData(f, off, c.Size)
		if err != nil {
			return err
		}
		// Whole blocks only: what of them is hole reads as zeros.
		first, last := max(data/size, (off+size-1)/size), (end+size-1)/size
		for i := first; i < last; i++ {
			b := block{index: uint32(i), data: make([]byte, min(size, c.Size-i*size))}
			if _, err := f.ReadAt(b.data, i*size); err != nil {
				return err
			}
			if blocks = append(blocks, b); len(blocks) == batch {
				if err := p.add(ctx, &c, blocks); err != nil {
					return err
				}
				blocks = blocks[:0]
			}
		}
		off = max(end, last*size)
		p.tell(min(off, c.Size))
	}
	if err := p.add(ctx, &c, blocks); err != nil {
		return err
	}
	p.done += c.Size
	p.tell(0)
	p.m.Files = append(p.m.Files, c)
	return nil
}

func (p *push) tell(within int64) {
	if p.report != nil {
		p.report(p.done+within, p.total)
	}
}

// nextData returns the next part of a file that is not a hole, from off on; at the
// file's end when there is none. A file system without holes has data everywhere.
func nextData(f *os.File, off, size int64) (data, end int64, err error) {
	data, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size, nil
	}
	if err != nil {
		return off, size, nil
	}
	if end, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
		return 0, 0, fmt.Errorf("looking for holes in %s: %w", f.Name(), err)
	}
	if end <= data {
		return 0, 0, fmt.Errorf("looking for holes in %s: it changes meanwhile", f.Name())
	}
	return data, min(end, size), nil
}

// add gives blocks of a file, in order, their chunks.
func (p *push) add(ctx context.Context, c *Content, blocks []block) error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range blocks {
		g.Go(func() error {
			b := &blocks[i]
			if allZero(b.data) {
				b.data = nil
				return ctx.Err()
			}
			b.digest = digest(p.sealer, b.data)
			_, stored := p.have[b.digest]
			if _, listed := p.chunk[b.digest]; stored || listed {
				return ctx.Err()
			}
			// Compressed first: afterwards nothing is to be gained.
			if b.stored = p.s.enc.EncodeAll(b.data, nil); p.sealer != nil {
				var err error
				if b.stored, err = p.sealer.Chunk(b.digest[:], b.stored); err != nil {
					return fmt.Errorf("encrypting a chunk: %w", err)
				}
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, b := range blocks {
		if b.data == nil {
			continue
		}
		p.out.Content += int64(len(b.data))
		i, err := p.place(ctx, b)
		if err != nil {
			return err
		}
		if n := len(c.Runs); n > 0 {
			if r := &c.Runs[n-1]; r.First+r.Blocks == b.index && r.Chunk+r.Blocks == i {
				r.Blocks++
				continue
			}
		}
		c.Runs = append(c.Runs, Run{b.index, 1, i})
	}
	return nil
}

// allZero compares b with itself, one byte further on.
func allZero(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

// place returns the index of a block's chunk, which it adds if it is not listed yet.
func (p *push) place(ctx context.Context, b block) (uint32, error) {
	if i, ok := p.chunk[b.digest]; ok {
		return i, nil
	}
	k, ok := p.have[b.digest]
	if !ok {
		var err error
		if k, err = p.store(ctx, b); err != nil {
			return 0, err
		}
	}
	idx, ok := p.packIdx[k.pack]
	if !ok {
		idx = uint32(len(p.m.Packs))
		p.packIdx[k.pack] = idx
		p.m.Packs = append(p.m.Packs, k.pack)
	}
	i := uint32(len(p.m.Chunks))
	p.m.Chunks = append(p.m.Chunks, Chunk{Digest: b.digest, Pack: idx, Offset: k.offset, Stored: k.stored, Size: uint32(len(b.data))})
	p.chunk[b.digest] = i
	return i, nil
}

// store puts a chunk into the pack that is being filled.
func (p *push) store(ctx context.Context, b block) (known, error) {
	if len(p.buf) >= p.s.o.Pack {
		if err := p.flush(ctx); err != nil {
			return known{}, err
		}
	}
	if p.buf == nil {
		id, err := random()
		if err != nil {
			return known{}, err
		}
		p.bufOf = id
		p.buf = make([]byte, packHeader, p.s.o.Pack+2*p.s.o.Block)
		copy(p.buf, packMagic)
		if p.buf[8] = version; p.sealer != nil {
			p.buf[8] = sealedVersion
		}
	}
	k := known{p.bufOf, uint32(len(p.buf)), uint32(len(b.stored)), uint32(len(b.data))}
	p.buf = append(p.buf, b.stored...)
	p.out.New += int64(len(b.data))
	p.out.Written += int64(len(b.stored))
	return k, nil
}

// flush uploads the pack that was filled, while the next one is. That it is relied on
// is written down before it is there.
func (p *push) flush(ctx context.Context) error {
	if p.buf == nil {
		return nil
	}
	id, data := p.bufOf, p.buf
	p.buf = nil
	p.relies[id] = true
	if err := p.declare(ctx); err != nil {
		return err
	}
	p.uploads.Go(func() error {
		ctx, cancel := context.WithTimeout(ctx, packTime)
		defer cancel()
		return p.s.o.Bucket.Put(ctx, p.s.key(packsDir, id.String()), data)
	})
	return nil
}

// publish writes the manifest, and takes those away that it replaces.
func (p *push) publish(ctx context.Context, snap Snapshot) (Pushed, error) {
	if err := p.uploads.Wait(); err != nil {
		return Pushed{}, err
	}
	b, err := sealManifest(p.sealer, Entry{Function: snap.Function, ID: snap.ID, Fit: p.fit}.place(), p.m)
	if err != nil {
		return Pushed{}, err
	}
	key := p.s.entryKey(snap.Function, snap.ID, p.fit, b)
	if err := p.s.o.Bucket.Put(ctx, key, b); err != nil {
		return Pushed{}, err
	}
	// A push that was held up for longer than its lease may have been taken for dead.
	if alive, err := p.alive(ctx); err != nil || !alive {
		if err == nil {
			err = errors.New("it took so long that others took it for dead: push again")
		}
		return Pushed{}, errors.Join(err, p.s.o.Bucket.Delete(context.WithoutCancel(ctx), key))
	}
	all, err := p.s.entries(ctx, snap.Function)
	if err != nil {
		return Pushed{}, err
	}
	i := slices.IndexFunc(all, func(e Entry) bool { return e.key == key })
	if i < 0 {
		return Pushed{}, fmt.Errorf("%w: what was written is not listed: it was removed at once, or the store cannot be shared", ErrUnavailable)
	}
	p.out.Entry = all[i]
	for _, e := range p.old {
		if e.key != key {
			if err := p.s.o.Bucket.Delete(ctx, e.key); err != nil {
				return Pushed{}, err
			}
		}
	}
	return p.out, nil
}

// alive says whether the push is still written down as under way.
func (p *push) alive(ctx context.Context) (bool, error) {
	for _, err := range p.s.o.Bucket.List(ctx, p.intent()) {
		return err == nil, err
	}
	return false, nil
}
