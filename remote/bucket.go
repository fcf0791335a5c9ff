package remote

import (
	"context"
	"errors"
	"iter"
	"time"
)

// ErrNotThere is wrapped when an object is not in the store.
var ErrNotThere = errors.New("not in the object store")

// ErrUnavailable is wrapped when the store does not answer, or not as it should, after
// all retries: it says nothing of what is in it.
var ErrUnavailable = errors.New("the object store is not to be reached")

// Object is one in the store.
type Object struct {
	Key      string
	Size     int64     // bytes
	Modified time.Time // by the store's clock
}

// Bucket is the object store as this package uses it: flat keys, objects that are
// written in one piece, and what is written is read by whoever asks after that, and
// listed, as S3 has it. Package remotetest has a suite that every one must pass. Methods may be called from
// many goroutines. They retry by themselves, within bounds.
type Bucket interface {
	// Get returns a whole object of at most limit bytes; a longer one is ErrFormat.
	Get(ctx context.Context, key string, limit int64) ([]byte, error)
	// ReadAt fills p from an offset of an object. An object that ends before is ErrFormat.
	ReadAt(ctx context.Context, key string, p []byte, off int64) error
	// Put writes an object, or writes it anew.
	Put(ctx context.Context, key string, data []byte) error
	// List yields the objects whose keys begin with prefix, by key. After an error it ends.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
	// Delete deletes an object; one that is not there is no error.
	Delete(ctx context.Context, key string) error
}
