package workingset

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

var sample = Of{SnapshotID: "0192f0c4-hello", MemorySize: 1 << 20}

func sampleTrace() *Trace {
	return &Trace{Of: sample, Touches: []Touch{{Page: 7}, {Page: 8, Write: true}, {Page: 200, After: 1500 * time.Microsecond}, {Page: 3, After: 2 * time.Millisecond, Write: true}}}
}

func sampleRuns() []Run {
	return []Run{{First: 7, Pages: 2}, {First: 200, Pages: 1, Zero: true, At: 1500}, {First: 20, Pages: 70, At: 1 << 20}, {First: 3, Pages: 1, At: 2000}}
}

func content(p []byte, first uint32) error {
	for i := range p {
		p[i] = byte(int(first) + i/PageSize + i)
	}
	return nil
}

// file is an io.WriterAt and io.ReaderAt in memory.
type file struct{ b []byte }

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(f.b) {
		f.b = append(f.b, make([]byte, n-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

func sampleSet(t testing.TB) []byte {
	t.Helper()
	f := &file{}
	if _, err := WriteSet(f, sample, sampleRuns(), content); err != nil {
		t.Fatal(err)
	}
	return f.b
}

func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the encoding has changed: old files would not be read", name)
	}
	return want
}

func TestGolden(t *testing.T) {
	b, err := EncodeTrace(sampleTrace())
	if err != nil {
		t.Fatal(err)
	}
	trace, err := DecodeTrace(golden(t, "trace-v1", b), sample)
	if err != nil || !reflect.DeepEqual(trace, sampleTrace()) {
		t.Errorf("%+v, %v", trace, err)
	}
	b = golden(t, "ws-v1", sampleSet(t))
	set, err := ReadSet(bytes.NewReader(b), int64(len(b)), sample)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(set.Runs, sampleRuns()) || set.Of != sample || set.ContentOffset != 4096 || set.ContentBytes != 73*PageSize || set.Pages() != 74 || set.Size() != int64(len(b)) {
		t.Errorf("%+v", set)
	}
	contents := b[set.ContentOffset:]
	if err := set.Verify(contents, 0); err != nil {
		t.Error(err)
	}
	if err := set.Verify(contents[BlockSize:], BlockSize); err != nil {
		t.Error(err)
	}
	want := make([]byte, 2*PageSize)
	_ = content(want, 7)
	if !bytes.Equal(contents[:len(want)], want) {
		t.Error("contents of the first run")
	}
}

// Every bit of both files matters: none can be changed and the file still used.
func TestEveryBitIsChecked(t *testing.T) {
	trace, err := EncodeTrace(sampleTrace())
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(trace) * 8 {
		b := bytes.Clone(trace)
		b[i/8] ^= 1 << (i % 8)
		if _, err := DecodeTrace(b, sample); !errors.Is(err, ErrFormat) {
			t.Fatalf("trace, bit %d: %v", i, err)
		}
	}
	set := sampleSet(t)
	// The head ends before byte 160; zeros follow up to the contents.
	for _, i := range slices.Concat(seq(0, 160*8, 1), seq(160*8, 4096*8, 61), seq(4096*8, len(set)*8, 4099)) {
		b := bytes.Clone(set)
		b[i/8] ^= 1 << (i % 8)
		s, err := ReadSet(bytes.NewReader(b), int64(len(b)), sample)
		if err == nil {
			err = s.Verify(b[s.ContentOffset:], 0)
		}
		if !errors.Is(err, ErrFormat) {
			t.Fatalf("working set, bit %d: %v", i, err)
		}
	}
	for n := range len(trace) {
		if _, err := DecodeTrace(trace[:n], sample); !errors.Is(err, ErrFormat) {
			t.Fatalf("trace of %d bytes: %v", n, err)
		}
	}
	for _, n := range seq(0, len(set), 97) {
		if _, err := ReadSet(bytes.NewReader(set[:n]), int64(n), sample); !errors.Is(err, ErrFormat) {
			t.Fatalf("working set of %d bytes: %v", n, err)
		}
		// Cut while it was read: the size was right once.
		if n < 4096 {
			if _, err := ReadSet(bytes.NewReader(set[:n]), int64(len(set)), sample); !errors.Is(err, ErrFormat) {
				t.Fatalf("working set cut to %d bytes: %v", n, err)
			}
		}
	}
}

func seq(from, to, step int) (out []int) {
	for i := from; i < to; i += step {
		out = append(out, i)
	}
	return out
}

func TestOthersAreRefused(t *testing.T) {
	b, err := EncodeTrace(sampleTrace())
	if err != nil {
		t.Fatal(err)
	}
	set := sampleSet(t)
	for _, of := range []Of{{"another", sample.MemorySize}, {sample.SnapshotID, 2 << 20}} {
		if _, err := DecodeTrace(b, of); !errors.Is(err, ErrFormat) {
			t.Errorf("trace of %+v: %v", of, err)
		}
		if _, err := ReadSet(bytes.NewReader(set), int64(len(set)), of); !errors.Is(err, ErrFormat) {
			t.Errorf("working set of %+v: %v", of, err)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, runs := range map[string][]Run{
		"overlap": {{First: 1, Pages: 3}, {First: 3, Pages: 1}},
		"outside": {{First: 255, Pages: 2}},
		"empty":   {{First: 1}},
	} {
		if _, err := WriteSet(&file{}, sample, runs, content); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	for _, of := range []Of{{"", 4096}, {string(make([]byte, 300)), 4096}, {"x", 0}, {"x", 4097}, {"x", 1 << 60}} {
		if _, err := WriteSet(&file{}, of, nil, content); err == nil {
			t.Errorf("%+v: written", of)
		}
		if _, err := EncodeTrace(&Trace{Of: of}); err == nil {
			t.Errorf("trace of %+v: written", of)
		}
	}
	boom := errors.New("boom")
	if _, err := WriteSet(&file{}, sample, sampleRuns(), func([]byte, uint32) error { return boom }); !errors.Is(err, boom) {
		t.Error(err)
	}
}

func TestRuns(t *testing.T) {
	zero := func(p uint32) bool { return p >= 100 }
	for name, c := range map[string]struct {
		pages []uint32
		limit int
		want  []Run
	}{
		"none":          {nil, 0, []Run{}},
		"one":           {[]uint32{5}, 0, []Run{{5, 1, false, 0}}},
		"first use":     {[]uint32{50, 9, 7, 8, 51}, 0, []Run{{50, 2, false, 0}, {7, 3, false, 0}}},
		"twice":         {[]uint32{7, 8, 7}, 0, []Run{{7, 2, false, 0}}},
		"kinds":         {[]uint32{98, 99, 100, 101}, 0, []Run{{98, 2, false, 0}, {100, 2, true, 0}}},
		"limit":         {[]uint32{1, 2, 3, 4, 5}, 2, []Run{{1, 2, false, 0}, {3, 2, false, 0}, {5, 1, false, 0}}},
		"page by page":  {[]uint32{3, 2, 1}, 1, []Run{{3, 1, false, 0}, {2, 1, false, 0}, {1, 1, false, 0}}},
		"highest pages": {[]uint32{1<<31 + 1, 0, 1 << 31}, 0, []Run{{1 << 31, 2, true, 0}, {0, 1, false, 0}}},
	} {
		var touches []Touch
		for _, p := range c.pages {
			touches = append(touches, Touch{Page: p})
		}
		if got := Runs(touches, zero, c.limit); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestRunsKeepTimes(t *testing.T) {
	got := Runs([]Touch{{Page: 9, After: time.Microsecond}, {Page: 5, After: 70 * time.Microsecond}, {Page: 8, After: 2 * time.Hour}, {Page: 100, After: 2 * time.Hour}}, func(uint32) bool { return false }, 0)
	want := []Run{{8, 2, false, 1}, {5, 1, false, 70}, {100, 1, false, 1<<32 - 1}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestSummary(t *testing.T) {
	s := Summarize(sampleRuns(), sample.MemorySize)
	if s.Pages != 74 || s.ZeroPages != 1 || s.Runs != 4 || s.LongestRun != 70 || s.Contiguity != 18.5 || s.Bytes != 73*PageSize {
		t.Errorf("%+v", s)
	}
	s = sampleTrace().Summary(func(p uint32) bool { return p == 200 })
	if s.Pages != 4 || s.Runs != 3 || s.ZeroShare != 0.25 || s.Writes != 2 || s.Span != 2*time.Millisecond || s.Bytes != 3*PageSize {
		t.Errorf("%+v", s)
	}
	if s := (&Trace{Of: sample}).Summary(nil); s.Contiguity != 0 || s.ZeroShare != 0 {
		t.Errorf("%+v", s)
	}
}

func TestSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadTrace(dir, sample); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, _, err := LoadSet(dir, sample); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for range 2 {
		if err := SaveTrace(dir, sampleTrace()); err != nil {
			t.Fatal(err)
		}
		if err := SaveSet(dir, sample, sampleRuns(), content); err != nil {
			t.Fatal(err)
		}
	}
	trace, err := LoadTrace(dir, sample)
	if err != nil || len(trace.Touches) != 4 {
		t.Error(trace, err)
	}
	set, f, err := LoadSet(dir, sample)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if set.Pages() != 74 {
		t.Error(set)
	}
	boom := errors.New("boom")
	if err := SaveSet(dir, sample, sampleRuns(), func([]byte, uint32) error { return boom }); !errors.Is(err, boom) {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files: %v, %v", entries, err)
	}
	if err := SaveTrace(filepath.Join(dir, "gone"), sampleTrace()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzDecodeTrace(f *testing.F) {
	b, err := EncodeTrace(sampleTrace())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		// With a right checksum, so that what is behind it is tried too.
		if len(b) >= 4 {
			b = bytes.Clone(b)
			le.PutUint32(b[len(b)-4:], checksum(b[:len(b)-4]))
		}
		trace, err := DecodeTrace(b, sample)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v is no ErrFormat", err)
			}
			return
		}
		again, err := EncodeTrace(trace)
		if err != nil || len(again) != len(b) {
			t.Errorf("does not encode again: %v", err)
		}
	})
}

func FuzzReadSet(f *testing.F) {
	b := sampleSet(f)
	f.Add(b[:4096], int64(len(b)))
	f.Add(b[:100], int64(100))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if n := int64(len(b)); n >= setHeader {
			b = bytes.Clone(b)
			if off := int64(le.Uint64(b[40:])); off >= setHeader && off <= n {
				le.PutUint32(b[setSumOffset:], 0)
				le.PutUint32(b[setSumOffset:], checksum(b[:off]))
			}
		}
		s, err := ReadSet(bytes.NewReader(b), size, sample)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v is no ErrFormat", err)
			}
			return
		}
		if s.Size() != size || s.Pages() > int64(sample.pages()) {
			t.Errorf("%+v", s)
		}
	})
}

// TestWhatCouldNotBeReadIsNotWritten: a page twice, or one that the guest does
// not have.
func TestWhatCouldNotBeReadIsNotWritten(t *testing.T) {
	of := Of{SnapshotID: "s", MemorySize: 4 * PageSize}
	for name, touches := range map[string][]Touch{"a page twice": {{Page: 1}, {Page: 1}}, "a page too far": {{Page: 4}}, "more than there are": make([]Touch, 5)} {
		if p, err := EncodeTrace(&Trace{Of: of, Touches: touches}); err == nil {
			t.Errorf("%s: a trace of %d bytes", name, len(p))
		}
	}
	for name, pages := range map[string][]Evidence{"a page twice": {{Page: 1}, {Page: 1}}, "a page too far": {{Page: 4}}} {
		if p, err := EncodeLearned(&Learned{Of: of, Pages: pages}); err == nil {
			t.Errorf("%s: evidence of %d bytes", name, len(p))
		}
	}
	if _, err := WriteSet(&file{}, of, []Run{{First: 3, Pages: 2}}, content); err == nil {
		t.Error("a working set with a page too far is written")
	}
}
