package shim

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
)

// nowhere is a publisher of events that nobody gets.
type nowhere struct{}

func (nowhere) Publish(context.Context, string, coreevents.Event) error { return nil }
func (nowhere) Close() error                                            { return nil }

// A shim that gets no container ends, as one does whose containerd died before it
// made one; with a container it goes on.
func TestUnusedShimEnds(t *testing.T) {
	for _, used := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx, sd := shutdown.WithShutdown(namespaces.WithNamespace(t.Context(), "ns"))
			ev := newEvents(ctx, nowhere{})
			s, err := newTasks(ctx, sd, ev, newRooms(ev, "", "", false))
			if err != nil {
				t.Fatal(err)
			}
			if used {
				s.mu.Lock()
				s.owners["c"] = s.rooms
				s.mu.Unlock()
			}
			over := func() bool {
				synctest.Wait()
				select {
				case <-sd.Done():
					return true
				default:
					return false
				}
			}
			time.Sleep(firstLimit - time.Second)
			if over() {
				t.Error("the shim has ended before containerd had time")
			}
			time.Sleep(2 * time.Second)
			if over() == used {
				t.Errorf("after %v, with a container: %v, it has ended: %v", firstLimit, used, over())
			}
			sd.Shutdown()
			<-sd.Done()
		})
	}
}
