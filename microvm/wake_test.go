package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// wokenMemory serves a guest that has touched so many pages.
type wokenMemory struct {
	*stage
	touched int
}

func (m wokenMemory) Runs()                   { _ = m.step("runs") }
func (m wokenMemory) Touched() int            { return m.touched }
func (m wokenMemory) Failed() <-chan struct{} { return m.bad }
func (m wokenMemory) Err() error {
	select {
	case <-m.bad:
		return errStep
	default:
		return nil
	}
}

// sleeping is a process that waits with its device state loaded.
func (s *stage) sleeping() vmm.Shell {
	s.hold("machine", 1)
	m := stageMachine{s}
	return vmm.NewShell(m, func(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) error {
		return errors.Join(attach(ctx, userfaultfd.Guest{}), s.step("take"))
	}, m.Kill)
}

// wake begins to wake a guest, whose agent says hello when told to.
func (s *stage) wake(t *testing.T, touched int, hello <-chan struct{}) (*Awake, *Starter, error) {
	st := s.starter()
	st.Hear = func(ctx context.Context, c net.Conn) (net.Conn, error) {
		select {
		case <-hello:
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), c.Close())
		}
		if err := s.step("hear"); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return c, nil
	}
	a, err := st.Wake(t.Context(), s.sleeping(), WakeSpec{Dial: s.spec().Dial, Port: 8080, Memory: wokenMemory{s, touched}})
	return a, st, err
}

func (s *stage) withoutDials() []string {
	return slices.DeleteFunc(s.called(), func(c string) bool { return strings.HasPrefix(c, "dial") })
}

func (s *stage) dials() int {
	return len(slices.DeleteFunc(s.called(), func(c string) bool { return !strings.HasPrefix(c, "dial") }))
}

// A guest that was woken waits paused, and a start of it dials nothing and waits for no hello. Whichever step
// fails, nothing is left.
func TestWake(t *testing.T) {
	ahead := []string{"take", "runs", "resume", "hear", "pause"}
	start := []string{"prefetch", "attach", "install", "resume", "greet", "clone"}
	for _, fails := range append([]string{"", "dial 10"}, append(slices.Clone(ahead), "attach", "install", "greet", "clone")...) {
		if fails == "runs" {
			continue
		}
		t.Run(fmt.Sprintf("%q fails", fails), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, hello := newStage(fails), make(chan struct{})
				close(hello)
				a, st, err := s.wake(t, 5, hello)
				if err == nil {
					<-a.Settled()
					if err = a.Err(); err != nil {
						if kerr := a.Kill(); kerr != nil {
							t.Error(kerr)
						}
					}
				}
				if broken := slices.Contains(ahead, fails) || fails == "dial 10"; broken != errors.Is(err, errStep) {
					t.Errorf("waking it: %v", err)
				}
				if err == nil {
					if got := s.withoutDials(); !slices.Equal(got, ahead) {
						t.Errorf("steps %v, want %v", got, ahead)
					}
					before := s.dials()
					s.hold("session", 1)
					v, err := st.Restore(t.Context(), RestoreSpec{Spec: s.spec(), Session: stageSession{s}, Shell: a})
					switch {
					case fails != "" && !errors.Is(err, errStep), fails == "" && err != nil:
						t.Errorf("starting it: %v", err)
					case fails == "":
						if got := s.withoutDials()[len(ahead):]; !slices.Equal(got, start) {
							t.Errorf("steps of a start %v, want %v", got, start)
						}
						c, err := v.Dial(t.Context(), 8080)
						if err != nil || s.dials() != before {
							t.Errorf("the server's connection is not the one that was there: %v", err)
						} else {
							c.Close()
						}
						v.Close()
					}
				}
				synctest.Wait()
				if left := s.left(); left != "" {
					t.Errorf("left: %s", left)
				}
			})
		})
	}
}

// A start takes a guest that is being woken as it is, and hears its hello itself.
func TestWakeTakenMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, hello := newStage(""), make(chan struct{})
		a, st, err := s.wake(t, 5, hello)
		if err != nil {
			t.Fatal(err)
		}
		s.hold("session", 1)
		time.AfterFunc(time.Second, func() { close(hello) })
		began := time.Now()
		v, err := st.Restore(t.Context(), RestoreSpec{Spec: s.spec(), Session: stageSession{s}, Shell: a})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != time.Second || slices.Contains(s.called(), "pause") {
			t.Errorf("after %v, by %v", took, s.called())
		}
		v.Close()
		<-a.Settled()
		if left := s.left(); left != "" {
			t.Errorf("left: %s", left)
		}
	})
}

// A guest that cannot be woken ends: which says nothing, takes too much memory, or whose memory cannot be
// served; and so does one that is not needed in the middle of it.
func TestWakeEnds(t *testing.T) {
	said := make(chan struct{})
	close(said)
	for name, tc := range map[string]struct {
		touched int
		hello   chan struct{}
		do      func(*stage, *Awake)
		want    string
	}{
		"silent":     {hello: nil, want: "it takes longer than 30s"},
		"large":      {hello: said, touched: maxWoken + 1, want: "pages of its memory"},
		"unreadable": {hello: nil, do: func(s *stage, _ *Awake) { close(s.bad) }, want: errStep.Error()},
		"dead":       {hello: nil, do: func(s *stage, _ *Awake) { close(s.done) }},
		"unneeded":   {hello: nil, do: func(_ *stage, a *Awake) { _ = a.Kill() }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage("")
				a, _, err := s.wake(t, tc.touched, tc.hello)
				if err != nil {
					t.Fatal(err)
				}
				if tc.do != nil {
					tc.do(s, a)
				}
				if name != "unneeded" {
					<-a.Settled()
				}
				if err := a.Err(); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %q", err, tc.want)
				}
				if err := a.Kill(); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				if left := s.left(); left != "" {
					t.Errorf("left: %s", left)
				}
			})
		})
	}
}
