package remote

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

const (
	version       = 1
	manifestMagic = "skepsnap"
	packMagic     = "skeppack"

	manifestHeader = 40
	packHeader     = 16
	packIDSize     = 16
	chunkSize      = 48
	fileSize       = 16
	runSize        = 12

	minBlock = 4096
	maxBlock = 4 << 20
	maxMeta  = 1 << 20
	maxFiles = 64
	maxName  = 255
	maxPack  = 1 << 30 // bytes of an object
)

// MaxManifest is the length of the largest manifest that is read, in bytes: of some
// 300 GiB of content that is all different.
const MaxManifest = 256 << 20

// DefaultBlock is the size of the blocks that files are cut into, in bytes; docs/store.md
// has what others would store and cost.
const DefaultBlock = 64 << 10

// ErrFormat is wrapped by every error about an object that is not what it should be.
var ErrFormat = errors.New("not usable")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Digest is the SHA-256 of a chunk's content; with a key, in an encrypted snapshot, the HMAC-SHA-256.
type Digest [sha256.Size]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// PackID names a pack. It is random, and used once.
type PackID [packIDSize]byte

func (p PackID) String() string { return hex.EncodeToString(p[:]) }

func parsePackID(s string) (p PackID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != packIDSize || strings.ToLower(s) != s {
		return p, refuse("%.64q is not the name of a pack", s)
	}
	copy(p[:], b)
	return p, nil
}

// Chunk is a piece of content and where it is stored.
type Chunk struct {
	Digest Digest
	Pack   uint32 // index into Manifest.Packs
	Offset uint32 // in the pack, in bytes
	Stored uint32 // bytes there
	Size   uint32 // bytes of content
}

// Run says that Blocks blocks of a file, from block First on, have the content of as
// many chunks, from Chunk on.
type Run struct{ First, Blocks, Chunk uint32 }

// Content is what a file of a snapshot has in it.
type Content struct {
	Name string
	Size int64 // bytes, holes included
	Runs []Run // ascending
}

// Manifest is a snapshot in the store.
type Manifest struct {
	Block  uint32 // bytes
	Meta   []byte // the snapshot's own manifest
	Packs  []PackID
	Chunks []Chunk
	Files  []Content
}

// File returns the content of the file of that name.
func (m *Manifest) File(name string) (Content, bool) {
	for _, f := range m.Files {
		if f.Name == name {
			return f, true
		}
	}
	return Content{}, false
}

// Encode writes the manifest as it is stored. Errors wrap ErrFormat: it says something
// that a reader would refuse.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	runs := 0
	for _, f := range m.Files {
		runs += len(f.Runs)
	}
	le := binary.LittleEndian
	b := []byte(manifestMagic)
	for _, v := range []int{version, int(m.Block), len(m.Meta), len(m.Packs), len(m.Chunks), len(m.Files), runs, 0} {
		b = le.AppendUint32(b, uint32(v))
	}
	b = pad(append(b, m.Meta...))
	for _, p := range m.Packs {
		b = append(b, p[:]...)
	}
	for _, c := range m.Chunks {
		b = append(b, c.Digest[:]...)
		for _, v := range []uint32{c.Pack, c.Offset, c.Stored, c.Size} {
			b = le.AppendUint32(b, v)
		}
	}
	for _, f := range m.Files {
		b = le.AppendUint64(b, uint64(f.Size))
		b = le.AppendUint32(b, uint32(len(f.Runs)))
		b = le.AppendUint32(b, uint32(len(f.Name)))
		b = pad(append(b, f.Name...))
	}
	for _, f := range m.Files {
		for _, r := range f.Runs {
			for _, v := range []uint32{r.First, r.Blocks, r.Chunk} {
				b = le.AppendUint32(b, v)
			}
		}
	}
	sum := sha256.Sum256(b)
	if b = append(b, sum[:]...); len(b) > MaxManifest {
		return nil, refuse("a manifest of %d bytes: at most %d can be read", len(b), MaxManifest)
	}
	return b, nil
}

func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&7)...) }

// Decode reads a manifest and refuses, with an error that wraps ErrFormat, whatever
// is not exactly as Encode writes it.
func Decode(b []byte) (*Manifest, error) {
	switch {
	case len(b) > MaxManifest:
		return nil, refuse("a manifest of %d bytes: want at most %d", len(b), MaxManifest)
	case len(b) < manifestHeader+sha256.Size:
		return nil, refuse("a manifest of %d bytes: it was cut short", len(b))
	case string(b[:8]) != manifestMagic:
		return nil, refuse("it begins with %q: not a manifest", b[:8])
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return nil, refuse("a manifest of version %d: this skep reads version %d", v, version)
	}
	body := b[:len(b)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return nil, refuse("the manifest's content does not have the digest at its end: it was changed or damaged")
	}
	r := reader{b: body[12:]}
	m := &Manifest{Block: r.u32()}
	meta, packs, chunks, files, runs := r.u32(), r.u32(), r.u32(), r.u32(), r.u32()
	if zero := r.u32(); zero != 0 {
		return nil, refuse("the manifest has %d where a zero belongs", zero)
	}
	m.Meta = bytes.Clone(r.padded(meta))
	// Every count is of things that are there before anything is allocated for them.
	for p := r.table(packs, packIDSize); len(p) > 0; p = p[packIDSize:] {
		m.Packs = append(m.Packs, PackID(p[:packIDSize]))
	}
	m.readChunks(r.table(chunks, chunkSize))
	m.readFiles(&r, files, runs)
	if r.short || len(r.b) > 0 {
		return nil, refuse("the manifest's lengths do not add up to its %d bytes", len(b))
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Manifest) readChunks(p []byte) {
	le := binary.LittleEndian
	m.Chunks = make([]Chunk, len(p)/chunkSize)
	for i := range m.Chunks {
		q := p[i*chunkSize:]
		m.Chunks[i] = Chunk{Digest(q[:32]), le.Uint32(q[32:]), le.Uint32(q[36:]), le.Uint32(q[40:]), le.Uint32(q[44:])}
	}
}

func (m *Manifest) readFiles(r *reader, files, runs uint32) {
	if files > maxFiles {
		r.short = true
		return
	}
	var counts []uint32
	for range files {
		size, n, name := r.u64(), r.u32(), r.u32()
		m.Files = append(m.Files, Content{Name: string(r.padded(name)), Size: int64(size)})
		counts = append(counts, n)
	}
	p := r.table(runs, runSize)
	for i := range m.Files {
		if uint64(counts[i])*runSize > uint64(len(p)) {
			r.short = true
			return
		}
		le := binary.LittleEndian
		for range counts[i] {
			m.Files[i].Runs = append(m.Files[i].Runs, Run{le.Uint32(p), le.Uint32(p[4:]), le.Uint32(p[8:])})
			p = p[runSize:]
		}
	}
	r.short = r.short || len(p) > 0
}

// reader takes a manifest's fields off its bytes. Beyond their end it reads zeros, and
// says so.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.short, r.b = true, nil
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (r *reader) table(n uint32, size int) []byte { return r.take(uint64(n) * uint64(size)) }

// padded takes n bytes and the zeros after them.
func (r *reader) padded(n uint32) []byte {
	p := r.take(uint64(n))
	if tail := r.take(uint64(-int(n) & 7)); len(bytes.Trim(tail, "\x00")) > 0 {
		r.short = true
	}
	return p
}

func (m *Manifest) validate() error {
	switch {
	case m.Block < minBlock || m.Block > maxBlock || bits.OnesCount32(m.Block) != 1:
		return refuse("blocks of %d bytes: want a power of two from %d to %d", m.Block, minBlock, maxBlock)
	case len(m.Meta) > maxMeta:
		return refuse("a snapshot's manifest of %d bytes: want at most %d", len(m.Meta), maxMeta)
	case len(m.Files) > maxFiles:
		return refuse("%d files: want at most %d", len(m.Files), maxFiles)
	}
	for i, c := range m.Chunks {
		if int64(c.Pack) >= int64(len(m.Packs)) || c.Size == 0 || c.Size > m.Block || c.Stored == 0 || c.Stored > 2*m.Block ||
			c.Offset < packHeader || int64(c.Offset)+int64(c.Stored) > maxPack {
			return refuse("chunk %d: %d bytes of content, %d stored at %d of pack %d, of %d packs", i, c.Size, c.Stored, c.Offset, c.Pack, len(m.Packs))
		}
	}
	names := map[string]bool{}
	for _, f := range m.Files {
		if !validName(f.Name) || names[f.Name] {
			return refuse("a file named %.300q, or two of that name", f.Name)
		}
		names[f.Name] = true
		if err := m.validateFile(f); err != nil {
			return err
		}
	}
	return nil
}

// validName says whether a file's name is of plain parts: it may become a path.
func validName(name string) bool {
	if len(name) == 0 || len(name) > maxName {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			return false
		}
	}
	return true
}

func (m *Manifest) validateFile(f Content) error {
	block := int64(m.Block)
	if f.Size < 0 || f.Size > block*math.MaxUint32 {
		return refuse("file %s has %d bytes", f.Name, f.Size)
	}
	blocks := (f.Size + block - 1) / block
	next := int64(0)
	for _, r := range f.Runs {
		if int64(r.First) < next || r.Blocks == 0 || int64(r.First)+int64(r.Blocks) > blocks || int64(r.Chunk)+int64(r.Blocks) > int64(len(m.Chunks)) {
			return refuse("file %s of %d blocks: %d from block %d on are of chunk %d on, of %d chunks", f.Name, blocks, r.Blocks, r.First, r.Chunk, len(m.Chunks))
		}
		next = int64(r.First) + int64(r.Blocks)
		for i := range r.Blocks {
			want := min(block, f.Size-int64(r.First+i)*block)
			if got := m.Chunks[r.Chunk+i].Size; int64(got) != want {
				return refuse("file %s: block %d has %d bytes, its chunk %d", f.Name, r.First+i, want, got)
			}
		}
	}
	return nil
}
