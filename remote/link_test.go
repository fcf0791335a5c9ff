package remote_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/link"
	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/bucket"
	"github.com/skep-dev/skep/remote/remotetest"
	"github.com/skep-dev/skep/remote/seal"
)

// discard is where what was fetched and verified goes.
type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// linked are the links that are measured.
var linked = []struct {
	name string
	link.Link
}{
	{"1ms-10Gbps", link.Link{RTT: time.Millisecond, Rate: 10e9 / 8}},
	{"10ms-1Gbps", link.Link{RTT: 10 * time.Millisecond, Rate: 1e9 / 8}},
}

// crossing is 96 MiB, of which two thirds can be compressed away.
func crossing() []byte {
	r := rand.New(rand.NewChaCha8([32]byte{}))
	data := make([]byte, 96<<20)
	for i := range data {
		if i%(64<<10) < 20<<10 {
			data[i] = byte(r.Uint32())
		} else {
			data[i] = byte(i >> 16)
		}
	}
	return data
}

// BenchmarkFetch has a snapshot of 96 MiB, of which two thirds can be compressed away, from a real S3 server over links
// of two kinds; with a key and without; by one and by sixteen at once, each of which has its own client. It says
// what the link itself makes of it: the time of a request for one byte, and its rate for a megabyte at a time.
func BenchmarkFetch(b *testing.B) {
	server := remotetest.Serve(b)
	direct := server.Open(b)
	defer direct.Close()
	data := crossing()
	keys := map[string]seal.Source{"plain": nil, "sealed": tenant(1)}
	opened := func(of remote.Bucket, key seal.Source, prefix string) *remote.Store {
		s, err := remote.New(remote.Options{Bucket: of, Prefix: prefix, Key: key})
		must(b, err)
		return s
	}
	sn := snap(b, "a", data)
	for name, key := range keys {
		push(b, opened(direct, key, name), sn)
	}
	must(b, direct.Put(b.Context(), "floor", data[:16<<20]))
	for _, l := range linked {
		url := "http://" + remotetest.Before(b, l.Link, strings.TrimPrefix(server.URL, "http://"))
		dial := func() *bucket.Bucket {
			c, err := bucket.Open(b.Context(), bucket.Options{Name: server.Bucket, Endpoints: []string{url}})
			must(b, err)
			return c
		}
		var clients []*bucket.Bucket
		for range 16 {
			clients = append(clients, dial())
		}
		b.Run(l.name+"/request", func(b *testing.B) {
			c := dial()
			defer c.Close()
			p := make([]byte, 1)
			must(b, c.ReadAt(b.Context(), "floor", p, 0))
			for b.Loop() {
				must(b, c.ReadAt(b.Context(), "floor", p, 0))
			}
		})
		b.Run(l.name+"/rate", func(b *testing.B) {
			c := dial()
			defer c.Close()
			b.SetBytes(16 << 20)
			for b.Loop() {
				var wg sync.WaitGroup
				for i := range 4 {
					wg.Go(func() { _ = c.ReadAt(b.Context(), "floor", make([]byte, 4<<20), int64(i)<<22) })
				}
				wg.Wait()
			}
		})
		for name, key := range keys {
			for _, at := range []struct {
				name string
				n    int
			}{{"one", 1}, {"sixteen", 16}} {
				b.Run(l.name+"/"+name+"/"+at.name, func(b *testing.B) {
					b.SetBytes(int64(len(data)) * int64(at.n))
					for b.Loop() {
						var wg sync.WaitGroup
						for _, c := range clients[:at.n] {
							wg.Go(func() {
								if err := fetch(b.Context(), opened(c, key, name)); err != nil {
									b.Error(err)
								}
							})
						}
						wg.Wait()
					}
				})
			}
		}
		for _, c := range clients {
			c.Close()
		}
	}
}

func fetch(ctx context.Context, s *remote.Store) error {
	e, err := s.Find(ctx, "hello", "a")
	if err != nil {
		return err
	}
	m, err := s.Load(ctx, e)
	if err != nil {
		return err
	}
	return s.Fetch(ctx, m, []remote.Target{{Name: "memory", To: discard{}}}, nil)
}
