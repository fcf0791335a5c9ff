package guest

import (
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// answerTime reads a time as the agent and answers it with that.
func answerTime(t *testing.T, c net.Conn) {
	t.Helper()
	k, p, err := ReadFrame(c, FromHost, nil)
	if err != nil || k != KindTime {
		t.Errorf("the agent got frame %d, %v; want the time", k, err)
	}
	if err := WriteFrame(c, KindClock, p); err != nil {
		t.Error(err)
	}
}

// slowGuest is an agent that takes long to answer, and whose clock is then what
// it was told, or later.
type slowGuest struct {
	takes []time.Duration // for the nth time that it is told; the last of them from then on
	clock int64           // UnixNano
	done  chan struct{}

	mu   sync.Mutex  // guards told
	told []time.Time // when it was told the time
}

func (g *slowGuest) times() []time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.told)
}

func (g *slowGuest) run(c net.Conn) {
	defer close(g.done)
	for {
		k, p, err := ReadFrame(c, FromHost, nil)
		if err != nil {
			c.Close()
			return
		}
		if k != KindTime {
			WriteFrame(c, KindDone, nil)
			continue
		}
		g.mu.Lock()
		g.told = append(g.told, time.Now())
		takes := g.takes[min(len(g.told), len(g.takes))-1]
		g.mu.Unlock()
		t, _ := DecodeTime(p)
		time.Sleep(takes)
		g.clock = max(g.clock, t)
		WriteFrame(c, KindClock, EncodeTime(g.clock))
	}
}

// TestClockIsKept from when a clone has been told that it is one until a
// snapshot is made of it, and no slower round trip makes it worse.
func TestClockIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, end := net.Pipe()
		g := &slowGuest{takes: []time.Duration{50 * time.Millisecond, 5 * time.Millisecond, time.Millisecond}, done: make(chan struct{})}
		go func() {
			WriteFrame(end, KindHello, Hello{Version: "7"}.Encode())
			g.run(end)
		}()
		s, err := Connect(t.Context(), host, func(string, []byte) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, known := s.Clock(); known {
			t.Error("the clock is known before it was told the time")
		}
		if err := s.Clone(t.Context(), Clone{}); err != nil {
			t.Fatal(err)
		}
		cloned := time.Now()
		synctest.Wait()
		if told := g.times(); len(told) != 1 || told[0] != cloned {
			t.Errorf("after the clone it was told the time at %v, want %v", told, cloned)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(g.times()) != 3 { // the third was fast enough
			t.Errorf("it was told the time %d times, want 3", len(g.times()))
		}
		if r, known := s.Clock(); !known || r.Least != -time.Millisecond || r.Most != 0 {
			t.Errorf("its clock is said to be off by %+v, %v", r, known)
		}
		time.Sleep(clockEvery)
		synctest.Wait()
		if len(g.times()) != 4 {
			t.Errorf("later it was told the time %d times, want once more", len(g.times())-3)
		}
		if err := s.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * clockEvery)
		synctest.Wait()
		if len(g.times()) != 4 {
			t.Errorf("it was told the time %d times after a snapshot", len(g.times())-4)
		}
		s.Close()
		<-g.done
	})
}

// TestClockOfASlowGuest is set a few times, and not for ever.
func TestClockOfASlowGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, end := net.Pipe()
		g := &slowGuest{takes: []time.Duration{50 * time.Millisecond}, done: make(chan struct{})}
		go func() {
			WriteFrame(end, KindHello, Hello{Version: "7"}.Encode())
			g.run(end)
		}()
		s, err := Connect(t.Context(), host, func(string, []byte) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Clone(t.Context(), Clone{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(clockEvery / 2)
		synctest.Wait()
		if len(g.times()) != clockRounds {
			t.Errorf("it was told the time %d times, want %d", len(g.times()), clockRounds)
		}
		if r, _ := s.Clock(); r.Most-r.Least != 50*time.Millisecond {
			t.Errorf("its clock is said to be off by %+v", r)
		}
		s.Close()
		<-g.done
	})
}

// TestClockIsLeftForASnapshot: a guest that is being readied for one is told no
// time, also when its last answer was slow and it would be told again.
func TestClockIsLeftForASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, end := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			WriteFrame(end, KindHello, Hello{Version: "7"}.Encode())
			for preparing := false; ; {
				k, p, err := ReadFrame(end, FromHost, nil)
				switch {
				case err != nil:
					end.Close()
					return
				case k == KindTime && preparing:
					t.Error("it is told the time while it is readied for a snapshot")
				case k == KindTime:
					told := slices.Clone(p)
					time.AfterFunc(50*time.Millisecond, func() { WriteFrame(end, KindClock, told) })
				case k == KindPrepare:
					preparing = true
					time.AfterFunc(time.Second, func() { WriteFrame(end, KindDone, nil) })
				default:
					WriteFrame(end, KindDone, nil)
				}
			}
		}()
		s, err := Connect(t.Context(), host, func(string, []byte) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Clone(t.Context(), Clone{}), s.Prepare(t.Context())); err != nil {
			t.Error(err)
		}
		s.Close()
		<-done
	})
}
