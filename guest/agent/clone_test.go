package agent_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/vmm"
)

// testFrozen restores two clones and keeps one of them waiting for the message
// that makes it another. A thread of the function's that never waits draws
// random numbers all the time: none that both have drawn, and none under the
// snapshot's name that only one of them has.
func testFrozen(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(order("before", "/probe"))
	m.until("something is drawn", func() bool { return len(m.draws()) > 0 })
	state, memory := m.snapshot()
	var old, fresh [2][]string
	for i := range old {
		c := l.restore(t, state, vmm.Memory{File: memory})
		if i == 1 {
			// Connections are answered, though not by the function, for as long as it
			// would take it to draw a lot.
			for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
				conn, err := c.slot.Dial(t.Context(), port)
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			}
		}
		if err := c.clone(guest.Clone{Instance: []string{"first", "second"}[i]}); err != nil {
			t.Fatal(err)
		}
		c.checkFirst()
		c.until("a clone draws", func() bool { return len(c.draws()) > len(old[0])+10 })
		for _, d := range c.draws() {
			if d.Hostname == "before" {
				old[i] = append(old[i], d.Random)
			} else {
				fresh[i] = append(fresh[i], d.Random)
			}
		}
		c.checkClock()
		c.end()
	}
	if len(old[0]) == 0 || !slices.Equal(old[0], old[1]) {
		t.Errorf("before it was told that it is a clone, one drew %d and the other, which waited longer, %d numbers", len(old[0]), len(old[1]))
	}
	// The first of each may have been drawn before the snapshot, and its name read after it.
	for _, r := range fresh[0][1:] {
		if slices.Contains(fresh[1][1:], r) {
			t.Errorf("both clones drew %s", r)
		}
	}
}

type draw struct{ Random, Hostname string }

func (m *machine) draws() (d []draw) {
	m.t.Helper()
	_, body := m.get("/draws")
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		m.t.Fatalf("%v: %s", err, body)
	}
	return d
}

// checkFirst looks at the clock at the very first answer of a clone, when the
// guest may have been told the time once. It is never ahead. How far behind it is
// then depends on the machine, and is written down.
func (m *machine) checkFirst() {
	m.t.Helper()
	asked := time.Now()
	_, body := m.get("/time")
	answered := time.Now()
	var at time.Time
	if err := json.Unmarshal([]byte(body), &at); err != nil {
		m.t.Fatalf("%v: %s", err, body)
	}
	if at.After(answered) {
		m.t.Errorf("at the first answer the clock is ahead by %v", at.Sub(answered))
	}
	m.t.Logf("the guest's clock at the first answer, which took %v, less the host's: %v to %v", answered.Sub(asked), at.Sub(answered), at.Sub(asked))
}

// checkClock compares what the function takes for the time with the host's: it
// lies between the asking and the answer, but for what the guest's clock may be
// behind by, which the host has measured.
func (m *machine) checkClock() {
	m.t.Helper()
	m.until("the clock is known", func() bool { _, known := m.session.Clock(); return known })
	r, _ := m.session.Clock()
	asked := time.Now()
	at := m.place().Time
	if early := asked.Sub(at); early > -r.Least || time.Now().Before(at) {
		m.t.Errorf("the function's clock is %v before it was asked, and may be behind by %v; it is %v ahead at the answer", early, -r.Least, time.Since(at))
	}
	m.t.Logf("the guest's clock, less the host's: %v to %v", r.Least, r.Most)
}

// testLoopback starts a server that listens on a loopback address only.
func testLoopback(t *testing.T, l *lab) {
	m := l.boot(t)
	s := order("x", "/probe")
	s.Env = []string{"HOST=[::1]"}
	m.start(s)
	if status, body := m.get("/place"); status != 200 {
		t.Errorf("a server at ::1 answers %d %s", status, body)
	}
	m.until("the log tells of it", func() bool {
		return slices.ContainsFunc(m.lines(), func(s string) bool { return strings.Contains(s, "listens on [::1]:8080 only") })
	})
	state, memory := m.snapshot()
	c := l.restore(t, state, vmm.Memory{File: memory})
	if err := c.clone(guest.Clone{Instance: "y", Hook: "/hook"}); err != nil {
		t.Fatal(err)
	}
	if p := c.place(); p.Hostname != "y" || len(p.Hooks) != 1 {
		t.Errorf("its clone is %s, called %d hooks", p.Hostname, len(p.Hooks))
	}
}
