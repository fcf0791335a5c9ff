package remote

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/skep-dev/skep/remote/seal"
)

func testKey(t testing.TB, b byte) *seal.Key {
	t.Helper()
	secret := make([]byte, seal.MinSecret)
	for i := range secret {
		secret[i] = b + byte(i)
	}
	k, err := seal.New(secret)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const somewhere = "hello/id/fit"

func TestGoldenSealedManifest(t *testing.T) {
	path := filepath.Join("testdata", "manifest-v2")
	k := testKey(t, 1)
	b, err := sealManifest(k, somewhere, example())
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
		t.Errorf("sealed:\n%x\ngolden:\n%x", b, golden)
	}
	m, err := openManifest(k, somewhere, golden)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m, example()) {
		t.Errorf("opened %+v", m)
	}
}

func TestOpenManifestRefuses(t *testing.T) {
	k, other := testKey(t, 1), testKey(t, 2)
	good, err := sealManifest(k, somewhere, example())
	if err != nil {
		t.Fatal(err)
	}
	plain, err := sealManifest(nil, somewhere, example())
	if err != nil {
		t.Fatal(err)
	}
	// Sealed right, but of other packs than it says.
	id := k.ID()
	lying := slices.Concat([]byte(manifestMagic), []byte{sealedVersion, 0, 0, 0, 1, 0, 0, 0}, id[:], make([]byte, packIDSize))
	within, err := k.Manifest(slices.Concat(lying, []byte(somewhere)), plain)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		k     *seal.Key
		place string
		b     []byte
		want  error
	}{
		"another place": {k, "hello/other/fit", good, ErrFormat},
		"another key":   {other, somewhere, good, ErrKey},
		"no key":        {nil, somewhere, good, ErrKey},
		"not encrypted": {k, somewhere, plain, ErrKey},
		"other packs":   {k, somewhere, append(lying, within...), ErrFormat},
		"cut short":     {k, somewhere, good[:len(good)-1], ErrFormat},
		"a header":      {k, somewhere, good[:sealedHeader], ErrFormat},
	} {
		_, err := openManifest(c.k, c.place, c.b)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		t.Log(err)
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x80
		if _, err := openManifest(k, somewhere, b); err == nil {
			t.Errorf("with byte %d changed it is opened", i)
		}
	}
	if _, err := openManifest(nil, somewhere, plain); err != nil {
		t.Errorf("what is not encrypted, without a key: %v", err)
	}
}

func FuzzOpenManifest(f *testing.F) {
	k := testKey(f, 1)
	id := k.ID()
	good, err := sealManifest(k, somewhere, example())
	if err != nil {
		f.Fatal(err)
	}
	plain, err := example().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, uint32(2), plain)
	f.Add(good[:sealedHeader+5], uint32(1), plain[:40])
	f.Fuzz(func(t *testing.T, raw []byte, packs uint32, body []byte) {
		if _, err := openManifest(k, somewhere, raw); err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrKey) {
			t.Errorf("%v", err)
		}
		// With the right seal, or nothing within would ever be looked at.
		head := binary.LittleEndian.AppendUint32([]byte(manifestMagic), sealedVersion)
		head = binary.LittleEndian.AppendUint32(head, packs%8)
		head = append(append(head, id[:]...), make([]byte, packIDSize*int(packs%8))...)
		within, err := k.Manifest(slices.Concat(head, []byte(somewhere)), body)
		if err != nil {
			t.Fatal(err)
		}
		m, err := openManifest(k, somewhere, append(head, within...))
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%v", err)
			}
			return
		}
		if again, err := m.Encode(); err != nil || !bytes.Equal(again, body) {
			t.Errorf("what was opened encodes to something else: %v", err)
		}
	})
}
