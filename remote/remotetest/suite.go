package remotetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/skep-dev/skep/remote"
)

// TestBucket checks that an empty bucket does what remote.Bucket says.
func TestBucket(t *testing.T, b remote.Bucket) {
	ctx := t.Context()
	list := func(prefix string) (keys []string) {
		for o, err := range b.List(ctx, prefix) {
			if err != nil {
				t.Fatalf("listing %q: %v", prefix, err)
			}
			if o.Modified.IsZero() {
				t.Errorf("%s has no time", o.Key)
			}
			keys = append(keys, o.Key)
		}
		return keys
	}
	if keys := list("a/"); len(keys) != 0 {
		t.Errorf("an empty bucket has %v", keys)
	}
	data := bytes.Repeat([]byte("0123456789"), 1000)
	for _, key := range []string{"a/b/2", "a/b/1", "a/c", "b"} {
		if err := b.Put(ctx, key, data); err != nil {
			t.Fatalf("writing %s: %v", key, err)
		}
	}
	if err := b.Put(ctx, "a/empty", nil); err != nil {
		t.Fatalf("writing an empty object: %v", err)
	}
	if got, want := list("a/"), []string{"a/b/1", "a/b/2", "a/c", "a/empty"}; !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	if got, err := b.Get(ctx, "a/c", 10_000); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if _, err := b.Get(ctx, "a/c", 9_999); !errors.Is(err, remote.ErrFormat) {
		t.Errorf("an object longer than the limit: %v", err)
	}
	if got, err := b.Get(ctx, "a/empty", 10); err != nil || len(got) != 0 {
		t.Errorf("an empty object: %q, %v", got, err)
	}
	p := make([]byte, 7)
	if err := b.ReadAt(ctx, "a/c", p, 9_993); err != nil || string(p) != "3456789" {
		t.Errorf("read %q, %v", p, err)
	}
	if err := b.ReadAt(ctx, "a/c", p, 9_994); !errors.Is(err, remote.ErrFormat) {
		t.Errorf("a read over the end: %v", err)
	}
	if err := b.ReadAt(ctx, "a/c", p, 10_000); !errors.Is(err, remote.ErrFormat) {
		t.Errorf("a read beyond the end: %v", err)
	}
	for _, err := range []error{second(b.Get(ctx, "a/none", 10)), b.ReadAt(ctx, "a/none", p, 0)} {
		if !errors.Is(err, remote.ErrNotThere) {
			t.Errorf("what is not there: %v", err)
		}
	}
	if err := b.Put(ctx, "a/c", []byte("other")); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(ctx, "a/c", 10); err != nil || string(got) != "other" {
		t.Errorf("written anew: %q, %v", got, err)
	}
	for _, key := range []string{"a/c", "a/c", "a/none"} {
		if err := b.Delete(ctx, key); err != nil {
			t.Errorf("deleting %s: %v", key, err)
		}
	}
	if _, err := b.Get(ctx, "a/c", 10); !errors.Is(err, remote.ErrNotThere) {
		t.Errorf("what was deleted: %v", err)
	}
	// More than one page of S3's lists.
	for i := range 1001 {
		if err := b.Put(ctx, fmt.Sprintf("many/%04d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := list("many/"); len(got) != 1001 || got[1000] != "many/1000" {
		t.Errorf("listed %d of 1001", len(got))
	}
}

func second[T any](_ T, err error) error { return err }
