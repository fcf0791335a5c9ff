// Package dial opens the object store that settings name. It stands apart from package remote since AWS's
// client comes with it, which makes a program larger by a third: those that have no need of it do without.
package dial

import (
	"context"
	"log/slog"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/bucket"
	"github.com/skep-dev/skep/remote/seal"
)

// Store opens the object store, and the bucket that the caller closes when it is done with it; nil where
// none is configured. Whether it answers is seen when it is needed. cache may be nil.
func Store(ctx context.Context, c config.Config, cache *remote.Cache, log *slog.Logger) (*remote.Store, *bucket.Bucket, error) {
	if c.StoreBucket == "" {
		return nil, nil, nil
	}
	b, err := bucket.Open(ctx, bucket.Options{Name: c.StoreBucket, Endpoints: c.StoreEndpoints, Region: c.StoreRegion})
	if err != nil {
		return nil, nil, err
	}
	o := remote.Options{Bucket: b, Prefix: c.StorePrefix, FillRate: c.StoreFillRate << 20, Cache: cache, Log: log}
	switch {
	case c.StoreKeyFile != "":
		o.Key = seal.FromFile(c.StoreKeyFile)
		// It is read when it is needed; who looks at the log need not wait for that.
		if _, err := o.Key(ctx); err != nil {
			log.Error("the key of the object store is not to be had: nothing goes there, and nothing comes from it, before it is", "error", err)
		}
	case c.StoreKeyCommand != "":
		o.Key = seal.FromCommand(c.StoreKeyCommand)
	}
	s, err := remote.New(o)
	if err != nil {
		b.Close()
		return nil, nil, err
	}
	return s, b, nil
}
