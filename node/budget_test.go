package node

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
)

// load sends requests to a function by that many clients until the context ends.
func load(t *testing.T, n *Node, function string, clients int, took time.Duration) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	answered := 0
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				l, err := n.Acquire(ctx, function, AcquireOptions{})
				if err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				time.Sleep(took)
				l.Release(api.Invocation{Status: 200})
				mu.Lock()
				answered++
				mu.Unlock()
			}
		})
	}
	return func() int {
		cancel()
		wg.Wait()
		return answered
	}
}

// Two places, one function under six clients that take both: another's one request
// and a deployment have their turns, and so has the function again.
func TestFairShares(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"places": func(c *Config) { c.MaxInstances = 2 },
		"memory": func(c *Config) { c.MemoryMiB = 128 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				n := w.open(t, change)
				defer n.Close(context.Background())
				deploy(t, n, hello(nil))
				deploy(t, n, hello(func(f *api.Function) { f.Name = "echo" }))
				stop := load(t, n, "hello", 6, time.Second)
				time.Sleep(10 * time.Second)
				if len(n.Instances("hello")) != 2 {
					t.Fatalf("hello has %d instances, want both", len(n.Instances("hello")))
				}
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				l, err := n.Acquire(ctx, "echo", AcquireOptions{})
				if err != nil {
					stop()
					t.Fatal(err)
				}
				if took := time.Since(began); took > 1500*time.Millisecond {
					t.Errorf("echo waited %v for a place: want a request of hello and a start", took)
				}
				// While echo has the other place the deployment takes hello's only one.
				if _, err := n.Deploy(ctx, hello(func(f *api.Function) { f.Name = "third" }), nil); err != nil {
					t.Errorf("a deployment: %v", err)
				}
				l.Release(api.Invocation{Status: 200})
				time.Sleep(10 * time.Second)
				if len(n.Instances("hello")) != 2 {
					t.Errorf("hello has %d instances later, want both again", len(n.Instances("hello")))
				}
				if answered := stop(); answered < 20 {
					t.Errorf("hello answered %d requests", answered)
				}
			})
		})
	}
}

// More functions under load than places: each has its turns, of more than one
// request each.
func TestTurns(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.MaxInstances = 2 })
		defer n.Close(context.Background())
		names := []string{"a", "b", "c", "d", "e"}
		var stops []func() int
		for _, name := range names {
			deploy(t, n, hello(func(f *api.Function) { f.Name = name }))
		}
		restores := func() (k int) { w.set(func() { k = w.restores }); return k }
		before := restores()
		for _, name := range names {
			stops = append(stops, load(t, n, name, 3, 50*time.Millisecond))
		}
		time.Sleep(time.Minute)
		starts, total := restores()-before, 0
		for i, stop := range stops {
			answered := stop()
			total += answered
			if answered < 200 {
				t.Errorf("%s: %d requests answered", names[i], answered)
			}
		}
		if total < 10*starts {
			t.Errorf("%d starts for %d requests", starts, total)
		}
	})
}

// A claim that is larger than what becomes free first is not overtaken for ever,
// and who waits no longer keeps nobody waiting.
func TestClaimsInOrder(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.MemoryMiB = 256 })
		defer n.Close(context.Background())
		for range 4 {
			must(t, n.reserve(t.Context(), 64))
		}
		var mu sync.Mutex
		var order []string
		claim := func(name string, mib int) (cancel func()) {
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				if n.reserve(ctx, mib) == nil {
					mu.Lock()
					defer mu.Unlock()
					order = append(order, name)
				}
			}()
			synctest.Wait()
			return cancel
		}
		want := func(names ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(order) != len(names) {
				t.Fatalf("%v had their turn, want %v", order, names)
			}
			for i := range names {
				if order[i] != names[i] {
					t.Fatalf("%v had their turn, want %v", order, names)
				}
			}
		}
		leave := claim("leaves", 256)
		cancelLarge := claim("large", 192)
		cancelSmall := claim("small", 64)
		n.giveBack(64, nil, false)
		want()
		leave()
		synctest.Wait()
		n.giveBack(64, nil, false)
		want()
		n.giveBack(64, nil, false)
		want("large")
		n.giveBack(64, nil, false)
		want("large", "small")
		n.giveBack(192, nil, false)
		n.giveBack(64, nil, false)
		cancelLarge()
		cancelSmall()
		b := n.budget
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.used != (amount{}) || len(b.claims) != 0 {
			t.Errorf("left: %+v, %d claims", b.used, len(b.claims))
		}
	})
}

// Functions of several sizes come and go under load, with deployments between:
// all are answered, the budget is kept, and nothing of it is left counted.
func TestBudgetUnderChange(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		n := w.open(t, func(c *Config) { c.MaxInstances, c.MemoryMiB = 4, 400 })
		defer n.Close(context.Background())
		r := rand.New(rand.NewPCG(1, 2))
		names := []string{"a", "b", "c", "d"}
		for i, name := range names {
			deploy(t, n, hello(func(f *api.Function) {
				f.Name, f.MemoryMiB, f.Concurrency, f.KeepAlive = name, 64+64*i, 1+i%2, api.Duration(2*time.Second)
			}))
		}
		var wg sync.WaitGroup
		for i := range 300 {
			time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
			name, took := names[r.IntN(len(names))], time.Duration(r.IntN(1500))*time.Millisecond
			leaves := i%7 == 0
			wg.Go(func() {
				ctx := t.Context()
				if leaves {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, took)
					defer cancel()
				}
				l, err := n.Acquire(ctx, name, AcquireOptions{})
				if err != nil {
					if !leaves {
						t.Error(err)
					}
					return
				}
				time.Sleep(took)
				l.Release(api.Invocation{Status: 200})
			})
			if i%60 == 59 {
				wg.Go(func() { deploy(t, n, hello(func(f *api.Function) { f.Name = "late" })) })
			}
			n.budget.mu.Lock()
			if u := n.budget.used; u.instances > 4 || u.mib > 400 || n.budget.leaving.instances < 0 {
				t.Errorf("used %+v, leaving %+v", u, n.budget.leaving)
			}
			n.budget.mu.Unlock()
		}
		wg.Wait()
		time.Sleep(10 * time.Second)
		b := n.budget
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.used != (amount{}) || b.leaving != (amount{}) || len(b.claims) != 0 || len(b.holders) != 0 {
			t.Errorf("left: used %+v, leaving %+v, %d claims, %d holders", b.used, b.leaving, len(b.claims), len(b.holders))
		}
	})
}
