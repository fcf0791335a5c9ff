package remote

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func example() *Manifest {
	m := &Manifest{Block: 4096, Meta: []byte(`{"id": "hello-1"}`)}
	m.Packs = []PackID{{1, 2, 3}, {0xff, 15: 0xee}}
	for i, size := range []uint32{4096, 4096, 4096, 100} {
		m.Chunks = append(m.Chunks, Chunk{Digest: sha256.Sum256([]byte{byte(i)}), Pack: uint32(i % 2), Offset: uint32(16 + 1000*i), Stored: 900, Size: size})
	}
	m.Files = []Content{
		{Name: "trace/ws", Size: 4196, Runs: []Run{{0, 1, 0}, {1, 1, 3}}},
		{Name: "memory", Size: 1 << 20, Runs: []Run{{0, 2, 1}, {200, 1, 0}, {201, 1, 0}}},
		{Name: "empty"},
	}
	return m
}

func TestGoldenManifest(t *testing.T) {
	path := filepath.Join("testdata", "manifest-v1")
	b, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, golden) {
		t.Errorf("encoded:\n%x\ngolden:\n%x", b, golden)
	}
	m, err := Decode(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m, example()) {
		t.Errorf("decoded %+v", m)
	}
}

// reseal puts the right digest at a changed manifest's end.
func reseal(b []byte) []byte {
	body := b[:len(b)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

func TestDecodeRefuses(t *testing.T) {
	good, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	set := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return reseal(b) }
	}
	for name, change := range map[string]func([]byte) []byte{
		"nothing":               func([]byte) []byte { return nil },
		"half":                  func(b []byte) []byte { return reseal(b[:len(b)/2]) },
		"a flipped bit":         func(b []byte) []byte { b[100] ^= 1; return b },
		"a tail":                func(b []byte) []byte { return reseal(append(b, make([]byte, 8)...)) },
		"another magic":         set(0, 'S'),
		"another version":       set(8, 2),
		"an odd block":          set(12, 1),
		"a block of 256":        set(13, 1),
		"more metadata":         set(18, 0xff),
		"a pack more":           set(20, 3),
		"chunks without end":    set(27, 0xff),
		"a file more":           set(28, 4),
		"a run less":            set(32, 4),
		"something in the gap":  set(36, 1),
		"something in a margin": set(40+17, 1),
	} {
		if _, err := Decode(change(bytes.Clone(good))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Manifest){
		"a chunk of no pack":       func(m *Manifest) { m.Chunks[0].Pack = 2 },
		"a chunk in the header":    func(m *Manifest) { m.Chunks[0].Offset = 15 },
		"a chunk beyond any pack":  func(m *Manifest) { m.Chunks[0].Offset = 1 << 30 },
		"an empty chunk":           func(m *Manifest) { m.Chunks[0].Size = 0 },
		"a chunk over a block":     func(m *Manifest) { m.Chunks[0].Size = 4097 },
		"a chunk stored as none":   func(m *Manifest) { m.Chunks[0].Stored = 0 },
		"a path up":                func(m *Manifest) { m.Files[0].Name = "trace/../../x" },
		"an absolute path":         func(m *Manifest) { m.Files[0].Name = "/etc/passwd" },
		"two of a name":            func(m *Manifest) { m.Files[0].Name = "memory" },
		"a negative size":          func(m *Manifest) { m.Files[2].Size = -1 },
		"a run beyond the end":     func(m *Manifest) { m.Files[1].Runs[2].First = 256 },
		"runs that overlap":        func(m *Manifest) { m.Files[1].Runs[1].First = 1 },
		"a run of chunks not here": func(m *Manifest) { m.Files[1].Runs[0].Chunk = 3 },
		"an empty run":             func(m *Manifest) { m.Files[1].Runs[0].Blocks = 0 },
		"a short chunk within":     func(m *Manifest) { m.Files[1].Runs[1].Chunk = 3 },
		"a long chunk at the end":  func(m *Manifest) { m.Files[0].Runs[1].Chunk = 0 },
	} {
		m := example()
		change(m)
		if _, err := m.Encode(); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good, err := example().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[:len(good)-sha256.Size])
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, body []byte) {
		// With the right digest, or nothing else would ever be looked at.
		m, err := Decode(reseal(append(bytes.Clone(body), make([]byte, sha256.Size)...)))
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again[:len(again)-sha256.Size], body) {
			t.Errorf("what was decoded encodes to something else")
		}
		for _, c := range m.Files {
			m.spans(c.chunksOf(), maxRange)
		}
	})
}

func TestSpans(t *testing.T) {
	m := &Manifest{Packs: make([]PackID, 2)}
	at := func(pack, off, n uint32) {
		m.Chunks = append(m.Chunks, Chunk{Pack: pack, Offset: off, Stored: n, Size: 1})
	}
	at(1, 16, 100)           // 0
	at(0, 16, 100)           // 1
	at(1, 116, 100)          // 2: right behind 0
	at(1, 216+maxGap, 100)   // 3: behind what may be read in vain
	at(1, 317+2*maxGap, 100) // 4: too far away
	at(0, 116, maxRange)     // 5: more than a range with 1
	got := m.spans([]uint32{3, 1, 2, 0, 4, 5, 3}, maxRange)
	want := []span{
		{1, 16, 316 + maxGap, []uint32{0, 2, 3}},
		{0, 16, 116, []uint32{1}},
		{1, 317 + 2*maxGap, 417 + 2*maxGap, []uint32{4}},
		{0, 116, 116 + maxRange, []uint32{5}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
