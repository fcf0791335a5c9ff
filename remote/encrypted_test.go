package remote_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/remotetest"
	"github.com/skep-dev/skep/remote/seal"
)

// tenant is the source of the key of one of them.
func tenant(n byte) seal.Source {
	return func(context.Context) (*seal.Key, error) {
		secret := bytes.Repeat([]byte{n, 'k', 'e', 'y'}, 10)
		return seal.New(secret)
	}
}

// with opens a store with a key, and remembers nothing of what others have read.
func with(t testing.TB, b remote.Bucket, key seal.Source) *remote.Store {
	t.Helper()
	s, err := remote.New(remote.Options{Bucket: b, Block: block, Pack: 64 << 10, Prefix: "team", Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func got(t testing.TB, s *remote.Store, id string) ([]byte, error) {
	t.Helper()
	e, err := s.Find(t.Context(), "hello", id)
	if err != nil {
		return nil, err
	}
	m, err := s.Load(t.Context(), e)
	if err != nil {
		return nil, err
	}
	f, _ := m.File("memory")
	out := &buffer{b: make([]byte, f.Size)}
	err = s.Fetch(t.Context(), m, []remote.Target{{Name: "memory", To: out}}, nil)
	return out.b, err
}

// TestEncrypted has nothing in the store tell what it is, and the same content be stored once all the same.
func TestEncrypted(t *testing.T) {
	b := &remotetest.Memory{}
	s := with(t, b, tenant(1))
	data := content(1, 0, 2, 2, 3)
	first := push(t, s, snap(t, "a", data))
	if first.New != 3*block || first.Entry.Fit == "fits" {
		t.Errorf("pushed %+v", first)
	}
	if back, err := got(t, with(t, b, tenant(1)), "a"); err != nil || !bytes.Equal(back, data) {
		t.Errorf("got %d bytes, %v", len(back), err)
	}
	if second := push(t, with(t, b, tenant(1)), snap(t, "b", content(3, 1, 4))); second.New != block {
		t.Errorf("of the second %d bytes were new", second.New)
	}
	sums := [][]byte{[]byte("about a"), []byte("memory")}
	for seed := uint64(1); seed < 4; seed++ {
		sum := sha256.Sum256(content(seed))
		sums = append(sums, sum[:], content(seed)[:64])
	}
	// A frame of Zstandard begins so.
	sums = append(sums, []byte{0x28, 0xb5, 0x2f, 0xfd})
	for _, key := range b.Keys("") {
		o, err := b.Get(t.Context(), key, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, sum := range sums {
			if bytes.Contains(o, sum) || strings.Contains(key, hex.EncodeToString(sum)) {
				t.Errorf("%s has %.32x", key, sum)
			}
		}
		if strings.Contains(key, "fits") {
			t.Errorf("%s tells what it fits", key)
		}
	}
	// For another tenant it has other names, and is stored apart.
	if other := push(t, with(t, b, tenant(2)), snap(t, "c", data)); other.New != 3*block {
		t.Errorf("for another tenant %d bytes were new", other.New)
	}
}

// TestMixedKeys has snapshots that are encrypted with two keys, and with none, in one prefix: each tenant has its own,
// is told why not the others', pushes, verifies and collects.
func TestMixedKeys(t *testing.T) {
	b := &remotetest.Memory{}
	keys := map[string]seal.Source{"one": tenant(1), "two": tenant(2), "none": nil}
	data := map[string][]byte{}
	for id, key := range keys {
		data[id] = content(seeds(uint64(len(id)), 40)...)
		push(t, with(t, b, key), snap(t, id, data[id]))
	}
	for mine, key := range keys {
		for id := range keys {
			back, err := got(t, with(t, b, key), id)
			switch {
			case id == mine && (err != nil || !bytes.Equal(back, data[id])):
				t.Errorf("%s has %d bytes of its own, %v", mine, len(back), err)
			case id != mine && !errors.Is(err, remote.ErrKey):
				t.Errorf("%s gets %s: %v", mine, id, err)
			case id != mine:
				t.Log(err)
			}
		}
		v, err := with(t, b, key).Verify(t.Context(), "", false, nil)
		if err != nil || v.Snapshots != 3 || len(v.Problems) != 2 || v.Chunks != 40 {
			t.Errorf("%s verified %+v, %v", mine, v, err)
		}
		if c, err := with(t, b, key).Collect(t.Context(), remote.CollectOptions{}); err != nil || c.Deleted > 0 || c.Condemned > 0 {
			t.Errorf("%s collected %+v, %v", mine, c, err)
		}
	}
	// One without any key collects for all.
	if err := open(t, b).Remove(t.Context(), "hello", "one"); err != nil {
		t.Fatal(err)
	}
	if c, err := open(t, b).Collect(t.Context(), remote.CollectOptions{}); err != nil || c.Deleted == 0 {
		t.Errorf("collected %+v, %v", c, err)
	}
	if back, err := got(t, with(t, b, tenant(2)), "two"); err != nil || !bytes.Equal(back, data["two"]) {
		t.Errorf("got %d bytes, %v", len(back), err)
	}
	// The same snapshot with a key takes the place of the one without.
	push(t, with(t, b, tenant(2)), snap(t, "none", data["none"]))
	if _, err := got(t, with(t, b, nil), "none"); !errors.Is(err, remote.ErrKey) {
		t.Errorf("it is still not encrypted: %v", err)
	}
}

// TestSwapped has whoever may write to the store put what is encrypted where it does not belong.
func TestSwapped(t *testing.T) {
	push2 := func(t *testing.T) *remotetest.Memory {
		b := &remotetest.Memory{}
		s := with(t, b, tenant(1))
		push(t, s, snap(t, "a", content(seeds(1, 30)...)))
		push(t, s, snap(t, "b", content(seeds(100, 30)...)))
		return b
	}
	t.Run("manifests", func(t *testing.T) {
		b := push2(t)
		a, z := b.Keys("team/skep1/snapshots/hello/a/")[0], b.Keys("team/skep1/snapshots/hello/b/")[0]
		o, err := b.Get(t.Context(), a, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		// Under b's name, with the digest that it has.
		if err := b.Put(t.Context(), z[:strings.LastIndex(z, "-")]+a[strings.LastIndex(a, "-"):], o); err != nil {
			t.Fatal(err)
		}
		if _, err := got(t, with(t, b, tenant(1)), "b"); !errors.Is(err, remote.ErrFormat) {
			t.Errorf("it was taken for b: %v", err)
		}
	})
	t.Run("packs", func(t *testing.T) {
		b := push2(t)
		packs := b.Keys("team/skep1/packs/")
		var os [][]byte
		for _, p := range packs {
			o, err := b.Get(t.Context(), p, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			os = append(os, o)
		}
		for i, p := range packs {
			if err := b.Put(t.Context(), p, os[(i+1)%len(os)]); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := got(t, with(t, b, tenant(1)), "a"); !errors.Is(err, remote.ErrFormat) {
			t.Errorf("other chunks were taken: %v", err)
		}
	})
}

// TestKeyThatIsNotToBeHad has what gives the key out fail, and then come back; nothing goes into the store without.
func TestKeyThatIsNotToBeHad(t *testing.T) {
	b := &remotetest.Memory{}
	var log bytes.Buffer
	dead, asked := true, 0
	s, err := remote.New(remote.Options{Bucket: b, Block: block, Prefix: "team", Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Key: func(ctx context.Context) (*seal.Key, error) {
			if asked++; dead {
				return nil, errors.New("the key service is away")
			}
			return tenant(1)(ctx)
		}})
	if err != nil {
		t.Fatal(err)
	}
	sn := snap(t, "a", content(1, 2))
	for _, err := range []error{second(s.Push(t.Context(), sn, nil)), second(s.Verify(t.Context(), "", false, nil)), second(s.Fit(t.Context(), "fits"))} {
		if !errors.Is(err, remote.ErrNoKey) || !strings.Contains(err.Error(), "away") {
			t.Errorf("%v", err)
		}
	}
	if keys := b.Keys(""); len(keys) > 0 {
		t.Errorf("in the store: %v", keys)
	}
	dead, asked = false, 0
	push(t, s, sn)
	if _, err := got(t, s, "a"); err != nil || asked != 1 {
		t.Errorf("asked %d times, %v", asked, err)
	}
	for _, form := range []string{"\x01key", fmt.Sprint([]byte("\x01key")), hex.EncodeToString([]byte("\x01key"))} {
		if strings.Contains(log.String(), form) {
			t.Errorf("the log tells the key: %s", log.String())
		}
	}
	if k, _ := tenant(1)(t.Context()); !strings.Contains(log.String(), k.ID().String()) {
		t.Errorf("the log does not tell which key: %s", log.String())
	}
}

func second[T any](_ T, err error) error { return err }
