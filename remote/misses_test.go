package remote_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skep-dev/skep/remote"
	"github.com/skep-dev/skep/remote/bucket"
	"github.com/skep-dev/skep/remote/remotetest"
)

// BenchmarkMisses has nodes, one and sixteen at once, each with its own client, have a file of 96 MiB arrive over one
// link, of which each asks for eight places meanwhile: it says what a wait takes, and when all is here.
func BenchmarkMisses(b *testing.B) {
	server := remotetest.Serve(b)
	direct := server.Open(b)
	defer direct.Close()
	data := crossing()
	store := func(of remote.Bucket) *remote.Store {
		s, err := remote.New(remote.Options{Bucket: of})
		must(b, err)
		return s
	}
	push(b, store(direct), snap(b, "a", data))
	for _, l := range linked {
		url := "http://" + remotetest.Before(b, l.Link, strings.TrimPrefix(server.URL, "http://"))
		for _, nodes := range []int{1, 16} {
			b.Run(l.name+"/"+map[int]string{1: "one", 16: "sixteen"}[nodes], func(b *testing.B) {
				var mu sync.Mutex
				var waits, wholes []time.Duration
				for b.Loop() {
					var wg sync.WaitGroup
					for i := range nodes {
						wg.Go(func() {
							c, err := bucket.Open(b.Context(), bucket.Options{Name: server.Bucket, Endpoints: []string{url}})
							must(b, err)
							defer c.Close()
							s := store(c)
							e, err := s.Find(b.Context(), "hello", "a")
							must(b, err)
							m, err := s.Load(b.Context(), e)
							must(b, err)
							a, err := s.Arrive(m, "memory", discard{}, time.Minute)
							must(b, err)
							began := time.Now()
							var fill sync.WaitGroup
							fill.Go(func() {
								if err := a.Fill(b.Context(), nil); err != nil {
									b.Error(err)
								}
								mu.Lock()
								defer mu.Unlock()
								wholes = append(wholes, time.Since(began))
							})
							where := rand.New(rand.NewPCG(uint64(i), 0))
							for range 8 {
								time.Sleep(20 * time.Millisecond)
								off := where.Int64N(int64(len(data)))
								if a.Here(off, 1) {
									continue
								}
								asked := time.Now()
								if err := a.Bring(b.Context(), off, 1); err != nil {
									b.Error(err)
								}
								mu.Lock()
								waits = append(waits, time.Since(asked))
								mu.Unlock()
							}
							fill.Wait()
						})
					}
					wg.Wait()
				}
				slices.Sort(waits)
				slices.Sort(wholes)
				if n := len(waits); n > 0 {
					b.ReportMetric(float64(waits[n/2].Milliseconds()), "ms/wait")
					b.ReportMetric(float64(waits[n*9/10].Milliseconds()), "ms/wait-p90")
					b.ReportMetric(float64(n)/float64(b.N*nodes), "waits/node")
				}
				b.ReportMetric(float64(wholes[len(wholes)/2].Milliseconds()), "ms/whole")
			})
		}
	}
}
