package seal_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/skep-dev/skep/remote/seal"
)

// secret is one that begins with b.
func secret(b byte) []byte {
	out := make([]byte, seal.MinSecret)
	for i := range out {
		out[i] = b + byte(i)*7
	}
	return out
}

func key(t testing.TB, b byte) *seal.Key {
	t.Helper()
	k, err := seal.New(secret(b))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestDerivation holds what is derived from a secret, and what is sealed with it, to what it was when the first
// snapshot was encrypted.
func TestDerivation(t *testing.T) {
	k := key(t, 1)
	content := []byte("content")
	name := k.Name(content)
	chunk, err := k.Chunk(name[:], content)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := k.Manifest([]byte("hello/id/fit"), content)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ got, want string }{
		"id":       {k.ID().String(), "e5a2aaf9998ca368b9f40ce635426ebb"},
		"name":     {hex.EncodeToString(name[:]), "c1e35f9f8c467f5068f40793de334832550163910e4e0f756ddd4697450f7001"},
		"label":    {k.Label("fit"), "0986b871bb2b20421ef1161140b2428f"},
		"chunk":    {hex.EncodeToString(chunk), "9d55de6df11422025e86729405d64b7611f8a37109d6a8"},
		"manifest": {hex.EncodeToString(manifest), "5c18f17fc439abd811018cf907c64622c42771a3279922"},
	} {
		if c.got != c.want {
			t.Errorf("%s is %s, want %s", what, c.got, c.want)
		}
	}
	if len(chunk) != len(content)+seal.Overhead {
		t.Errorf("%d bytes of %d", len(chunk), len(content))
	}
}

func TestOpen(t *testing.T) {
	k, same, other := key(t, 1), key(t, 1), key(t, 2)
	content := bytes.Repeat([]byte("content"), 100)
	name := k.Name(content)
	if other.Name(content) == name || other.ID() == k.ID() || other.Label("x") == k.Label("x") || k.Label("y") == k.Label("x") {
		t.Error("two keys name the same")
	}
	a, err := k.Chunk(name[:], content)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := same.Chunk(name[:], content); err != nil || !bytes.Equal(a, b) {
		t.Errorf("the same, sealed twice, is not the same: %v", err)
	}
	if got, err := same.OpenChunk(name[:], a); err != nil || !bytes.Equal(got, content) {
		t.Errorf("opened %q, %v", got, err)
	}
	wrongName := other.Name(content)
	for what, c := range map[string]struct {
		k            *seal.Key
		name, sealed []byte
	}{
		"another key":  {other, name[:], a},
		"another name": {k, wrongName[:], a},
		"no name":      {k, nil, a},
		"cut short":    {k, name[:], a[:len(a)-1]},
		"nothing":      {k, name[:], nil},
	} {
		if _, err := c.k.OpenChunk(c.name, c.sealed); !errors.Is(err, seal.ErrChanged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range a {
		b := bytes.Clone(a)
		b[i] ^= 1
		if _, err := k.OpenChunk(name[:], b); !errors.Is(err, seal.ErrChanged) {
			t.Fatalf("with byte %d changed: %v", i, err)
		}
	}
	if _, err := k.OpenManifest(name[:], a); !errors.Is(err, seal.ErrChanged) {
		t.Errorf("a chunk as a manifest: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	k := key(f, 1)
	good, err := k.Chunk([]byte("name"), []byte("content"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("name"), good)
	f.Fuzz(func(t *testing.T, name, sealed []byte) {
		plain, err := k.OpenChunk(name, sealed)
		if err != nil {
			if !errors.Is(err, seal.ErrChanged) {
				t.Error(err)
			}
			return
		}
		if again, err := k.Chunk(name, plain); err != nil || !bytes.Equal(again, sealed) {
			t.Errorf("what was opened seals to something else: %v", err)
		}
	})
}

func TestSecretsThatAreRefused(t *testing.T) {
	for _, s := range [][]byte{nil, secret(1)[:31], make([]byte, 64)} {
		if _, err := seal.New(s); err == nil || !strings.Contains(err.Error(), "urandom") {
			t.Errorf("%d bytes: %v", len(s), err)
		}
	}
}

// tells fails if a text has a secret in it, however that is written.
func tells(t *testing.T, text string, secret []byte) {
	t.Helper()
	for _, form := range []string{string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret), fmt.Sprint(secret), strings.Trim(fmt.Sprint(secret[:8]), "[]"), fmt.Sprintf("%#v", secret)} {
		if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
			t.Errorf("it tells the key: %s", text)
		}
	}
}

// TestKeyIsNotTold prints a key in every way, and what goes wrong with one.
func TestKeyIsNotTold(t *testing.T) {
	k := key(t, 1)
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p"} {
		fmt.Fprintf(&out, verb+"\n", k)
		fmt.Fprintf(&out, verb+"\n", struct{ K *seal.Key }{k})
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("key", "key", k)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("key", "key", k)
	if err := json.NewEncoder(&out).Encode(map[string]any{"key": k}); err != nil {
		t.Fatal(err)
	}
	tells(t, out.String(), secret(1))
	if !strings.Contains(out.String(), k.ID().String()) {
		t.Errorf("it does not tell the ID: %s", out.String())
	}
	for _, derived := range k.Derived() {
		tells(t, out.String(), derived)
	}
	short := secret(1)[:20]
	_, err := seal.New(short)
	tells(t, err.Error(), short)
	_, err = seal.FromFile(write(t, short, 0o600))(t.Context())
	tells(t, err.Error(), short)
	_, err = seal.FromCommand("cat " + write(t, short, 0o600))(t.Context())
	tells(t, err.Error(), short)
	_, err = seal.FromCommand("cat " + write(t, secret(1), 0o600) + "; exit 3")(t.Context())
	tells(t, err.Error(), secret(1))
}

func write(t *testing.T, b []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, b, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func TestSources(t *testing.T) {
	text := []byte(hex.EncodeToString(secret(1)))
	binary := append(secret(1)[:31], '\n')
	want := func(secret []byte) seal.ID {
		k, err := seal.New(secret)
		if err != nil {
			t.Fatal(err)
		}
		return k.ID()
	}
	for name, c := range map[string]struct {
		source seal.Source
		want   seal.ID
	}{
		"a file":                      {seal.FromFile(write(t, secret(1), 0o600)), want(secret(1))},
		"a file that nobody writes":   {seal.FromFile(write(t, secret(1), 0o400)), want(secret(1))},
		"text":                        {seal.FromFile(write(t, text, 0o600)), want(text)},
		"text with its newline":       {seal.FromFile(write(t, append(bytes.Clone(text), '\n'), 0o600)), want(text)},
		"bytes that end in a newline": {seal.FromFile(write(t, binary, 0o600)), want(binary)},
		"a command":                   {seal.FromCommand("cat " + write(t, text, 0o600) + "; echo; echo asked >&2"), want(text)},
	} {
		k, err := c.source(t.Context())
		if err != nil || k.ID() != c.want {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	dir := t.TempDir()
	for name, c := range map[string]struct {
		source seal.Source
		want   string
	}{
		"no file":                 {seal.FromFile(filepath.Join(dir, "none")), "no such file"},
		"a directory":             {seal.FromFile(dir), "no plain file"},
		"a file for all to read":  {seal.FromFile(write(t, secret(1), 0o604)), "chmod 600"},
		"a file for a group":      {seal.FromFile(write(t, secret(1), 0o640)), "chmod 600"},
		"an empty file":           {seal.FromFile(write(t, nil, 0o600)), "0 bytes"},
		"a short file":            {seal.FromFile(write(t, append(text[:31:31], '\n'), 0o600)), "31 bytes"},
		"a long file":             {seal.FromFile(write(t, bytes.Repeat(text, 100), 0o600)), "more than 4096 bytes"},
		"zeros":                   {seal.FromFile(write(t, make([]byte, 32), 0o600)), "the same byte"},
		"a command that fails":    {seal.FromCommand("echo access denied >&2; exit 3"), "exit status 3: \"access denied\""},
		"a command that is not":   {seal.FromCommand("/none/such"), "not found"},
		"a command without words": {seal.FromCommand("true"), "0 bytes"},
		"a command of many words": {seal.FromCommand("yes | head -10000"), "more than 4096 bytes"},
	} {
		if k, err := c.source(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v, want %q", name, k, err, c.want)
		}
	}
	// One that hangs, and has left its pipes to another.
	ctx, cancel := context.WithCancelCause(t.Context())
	started := filepath.Join(dir, "started")
	go func() {
		for {
			if _, err := os.Stat(started); err == nil {
				cancel(errors.New("enough"))
				return
			}
			runtime.Gosched()
		}
	}()
	if _, err := seal.FromCommand("sleep 1000 & touch " + started + "; wait")(ctx); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("a command that hangs: %v", err)
	}
	if os.Geteuid() == 0 {
		path := write(t, secret(1), 0o600)
		if err := os.Chown(path, 12345, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.FromFile(path)(t.Context()); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
			t.Errorf("somebody else's file: %v", err)
		}
	}
}

// BenchmarkChunk seals and opens what is stored of a chunk of 64 KiB as it compresses; and names the chunk.
func BenchmarkChunk(b *testing.B) {
	k := key(b, 1)
	content := make([]byte, 64<<10)
	name := k.Name(content)
	stored := content[:20<<10]
	sealed, err := k.Chunk(name[:], stored)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("seal", func(b *testing.B) {
		b.SetBytes(int64(len(stored)))
		for b.Loop() {
			_, _ = k.Chunk(name[:], stored)
		}
	})
	b.Run("open", func(b *testing.B) {
		b.SetBytes(int64(len(stored)))
		for b.Loop() {
			_, _ = k.OpenChunk(name[:], sealed)
		}
	})
	b.Run("name", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		for b.Loop() {
			_ = k.Name(content)
		}
	})
}
