package workingset

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"testing"
)

func sampleLearned() *Learned {
	return &Learned{Of: sample, Restores: 9, Poor: 1, Recordings: 2, Without: 3, Pages: []Evidence{
		{Page: 3, At: 1500, Missed: 0b101}, {Page: 7, Idle: 2}, {Page: 255, At: 1 << 31, Missed: 0xff, Idle: 0xff},
	}}
}

func encodedLearned(t testing.TB) []byte {
	t.Helper()
	b, err := EncodeLearned(sampleLearned())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenLearned(t *testing.T) {
	l, err := DecodeLearned(golden(t, "learned-v1", encodedLearned(t)), sample)
	if err != nil || !reflect.DeepEqual(l, sampleLearned()) {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestLearnedIsChecked(t *testing.T) {
	good := encodedLearned(t)
	for i := range len(good) * 8 {
		b := bytes.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if _, err := DecodeLearned(b, sample); !errors.Is(err, ErrFormat) {
			t.Fatalf("bit %d: %v", i, err)
		}
	}
	for n := range len(good) {
		if _, err := DecodeLearned(good[:n], sample); !errors.Is(err, ErrFormat) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	if _, err := DecodeLearned(good, Of{SnapshotID: "another", MemorySize: sample.MemorySize}); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}

func TestSaveAndLoadLearned(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadLearned(dir, sample); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for range 2 {
		if err := SaveLearned(dir, sampleLearned()); err != nil {
			t.Fatal(err)
		}
	}
	l, err := LoadLearned(dir, sample)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := l.Find(7); !ok || e.Idle != 2 {
		t.Errorf("page 7: %+v, %v", e, ok)
	}
	if e, ok := l.Find(8); ok || e.Page != 8 {
		t.Errorf("page 8: %+v, %v", e, ok)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("files: %v, %v", entries, err)
	}
}

func FuzzDecodeLearned(f *testing.F) {
	b := encodedLearned(f)
	f.Add(b)
	f.Add(b[:50])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 4 {
			b = bytes.Clone(b)
			le.PutUint32(b[len(b)-4:], checksum(b[:len(b)-4]))
		}
		l, err := DecodeLearned(b, sample)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v is no ErrFormat", err)
			}
			return
		}
		again, err := EncodeLearned(l)
		if err != nil || !bytes.Equal(again[:16], b[:16]) || len(again) != len(b) {
			t.Errorf("does not encode again: %v", err)
		}
	})
}
