package inputs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"image/jpeg"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInputsAreWhatTheySay makes all inputs, reads each as what it is, and makes
// it again.
func TestInputsAreWhatTheySay(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir); err != nil {
		t.Fatal(err)
	}
	check := map[string]func(*testing.T, []byte){".jpg": checkImage, ".json": checkHives, ".csv": checkReviews, ".avi": checkFilm}
	seen := map[[32]byte]string{}
	functions := map[string]int{}
	for _, in := range all() {
		b, err := os.ReadFile(filepath.Join(dir, Bucket, in.key))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(in.key, func(t *testing.T) {
			check[filepath.Ext(in.key)](t, b)
			if len(b) < 800_000 || len(b) > 10_000_000 {
				t.Errorf("%d bytes: want 0.8 to 10 MB", len(b))
			}
			if !strings.Contains(in.key, "/1.") { // one of a kind tells
				return
			}
			var again bytes.Buffer
			if err := in.write(&again); err != nil || !bytes.Equal(again.Bytes(), b) {
				t.Errorf("made again it is not the same: %v", err)
			}
		})
		sum := sha256.Sum256(b)
		if other, ok := seen[sum]; ok {
			t.Errorf("%s is the same as %s", in.key, other)
		}
		seen[sum] = in.key
		functions[filepath.Dir(in.key)]++
	}
	for name, n := range functions {
		if n < 4 {
			t.Errorf("%s has %d inputs: want 4", name, n)
		}
	}
}

func TestWriteLeavesWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "."+Bucket), []byte(version), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, Bucket)); !os.IsNotExist(err) {
		t.Errorf("inputs were made again: %v", err)
	}
}

func checkImage(t *testing.T, b []byte) {
	img, err := jpeg.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if size := img.Bounds().Size(); size.X < 1000 || size.Y*4 != size.X*3 {
		t.Errorf("its size is %v", size)
	}
}

func checkHives(t *testing.T, b []byte) {
	var hives []hive
	if err := json.Unmarshal(b, &hives); err != nil || len(hives) < 1000 {
		t.Errorf("%d hives, %v", len(hives), err)
	}
}

func checkReviews(t *testing.T, b []byte) {
	rows, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil || len(rows) < 1000 || len(rows[0]) != 2 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}

// checkFilm follows the index to every frame.
func checkFilm(t *testing.T, b []byte) {
	if string(b[:4]) != "RIFF" || int(binary.LittleEndian.Uint32(b[4:]))+8 != len(b) {
		t.Fatal("not a RIFF file of its length")
	}
	movie, index := bytes.Index(b, []byte("movi")), bytes.LastIndex(b, []byte("idx1"))
	if movie < 0 || index < 0 {
		t.Fatal("frames or index are missing")
	}
	entries := b[index+8:]
	if len(entries)%16 != 0 || len(entries) == 0 {
		t.Fatalf("the index has %d bytes", len(entries))
	}
	for ; len(entries) > 0; entries = entries[16:] {
		at := movie + int(binary.LittleEndian.Uint32(entries[8:]))
		length := int(binary.LittleEndian.Uint32(entries[12:]))
		frame, err := jpeg.Decode(bytes.NewReader(b[at+8 : at+8+length]))
		if err != nil {
			t.Fatalf("the frame at %d: %v", at, err)
		}
		if size := frame.Bounds().Size(); size.X != filmWidth || size.Y != filmHeight {
			t.Fatalf("the frame at %d has size %v", at, size)
		}
	}
}
