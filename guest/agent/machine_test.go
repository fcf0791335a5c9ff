package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/guest/agent"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/vmm"
	"github.com/skep-dev/skep/vmm/firecracker"
	"github.com/skep-dev/skep/vmm/qemu"
)

// These tests boot real machines. They are one test, so that they share what
// takes long to make.
func TestMachines(t *testing.T) {
	testenv.Need(t, "qemu")
	testMachines(t, qemu.New(qemu.Options{}))
}

// TestMachinesOnFirecracker is the same on the other VMM, whose guests have other
// devices, another clock and a generation id.
func TestMachinesOnFirecracker(t *testing.T) {
	testenv.Need(t, "firecracker", "kvm")
	testMachines(t, firecracker.New(firecracker.Options{Binary: os.Getenv("SKEP_FIRECRACKER")}))
}

func testMachines(t *testing.T, v vmm.VMM) {
	l := newLab(t, v)
	t.Run("Place", func(t *testing.T) { testPlace(t, l) })
	t.Run("Surroundings", func(t *testing.T) { testSurroundings(t, l) })
	t.Run("Frozen", func(t *testing.T) { testFrozen(t, l) })
	t.Run("Loopback", func(t *testing.T) { testLoopback(t, l) })
	t.Run("Clones", func(t *testing.T) { testClones(t, l) })
	t.Run("Exit", func(t *testing.T) { testExit(t, l) })
	t.Run("Stop", func(t *testing.T) { testStop(t, l) })
	t.Run("Processes", func(t *testing.T) { testProcesses(t, l) })
	t.Run("Base", func(t *testing.T) { testBase(t, l) })
	t.Run("KeptOverASnapshot", func(t *testing.T) { testKept(t, l) })
	t.Run("Hostile", func(t *testing.T) { testHostile(t, l) })
}

func testPlace(t *testing.T, l *lab) {
	m := l.boot(t)
	if v := m.session.Version(); v != agent.Version {
		t.Errorf("the agent is version %q", v)
	}
	s := order("first", "probe-link")
	s.User, s.Dir, s.Nameservers = "web", "/srv", []string{"192.0.2.53"}
	m.start(s)
	p := m.place()
	if p.UID != 33 || p.GID != 34 || !slices.Equal(p.Groups, []int{44}) || p.Dir != "/srv" || p.Hostname != "first" {
		t.Errorf("it runs as %d:%d %v in %s on %s", p.UID, p.GID, p.Groups, p.Dir, p.Hostname)
	}
	if want := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/srv", "A=1", "B=2", "PORT=8080"}; !reflect.DeepEqual(p.Env, want) {
		t.Errorf("environment %q, want %q", p.Env, want)
	}
	for name, want := range map[string]string{
		"/etc/hosts":         "127.0.0.1\tlocalhost\n172.31.254.2\tfirst\n",
		"/etc/hostname":      "first\n",
		"/etc/resolv.conf":   "nameserver 192.0.2.53\n", // the image's is a link to nowhere
		"/run/skep/instance": "first\n",
	} {
		if p.Files[name] != want {
			t.Errorf("%s is %q, want %q", name, p.Files[name], want)
		}
	}
	for _, want := range []string{"/proc", "/sys", "/srv/devices", "/srv/devices/shm", "/srv/devices/pts", "/srv/devices/mqueue"} {
		if !slices.Contains(p.Mounts, want) {
			t.Errorf("nothing is mounted at %s; there are %q", want, p.Mounts)
		}
	}
	if strings.TrimSpace(p.Cgroup) != "0::/" || strings.TrimSpace(p.OOMScore) != "500" {
		t.Errorf("cgroup %q, oom_score_adj %q", p.Cgroup, p.OOMScore)
	}
	if off := time.Since(p.Time); off < -time.Second || off > testenv.Limit(t, limit) {
		t.Errorf("its clock is off by %v", off)
	}
	m.get("/orphans")
	m.until("orphans are reaped", func() bool { return len(m.place().Children) == 1 }) // the probe itself
	if lines := m.lines(); !slices.Contains(lines, "stdout: probe: starting") || !slices.Contains(lines, "stderr: probe: on stderr") {
		t.Errorf("the log is %q", lines)
	}
	if err := m.session.Start(t.Context(), s); err == nil {
		t.Error("it was started twice")
	}
}

func testClones(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(order("i-0000000000000000", "/probe"))
	m.get("/write?path=/written&data=before")
	state, memory := m.snapshot()
	select {
	case <-m.session.Exited():
		t.Errorf("the session ended with the snapshot: %v", m.session.ExitErr())
	default:
	}
	var places []place
	for _, id := range []string{"i-0000000000000001", "another"} {
		c := l.restore(t, state, vmm.Memory{File: memory})
		if err := c.clone(guest.Clone{Instance: id, Hook: "/hook"}); err != nil {
			t.Fatal(err)
		}
		p := c.place()
		if off := time.Since(p.Time); off < -100*time.Millisecond || off > testenv.Limit(t, limit) {
			t.Errorf("the clone's clock is off by %v", off)
		}
		want := map[string]string{"/etc/hosts": "127.0.0.1\tlocalhost\n172.31.254.2\t" + id + "\n", "/etc/hostname": id + "\n",
			"/run/skep/instance": id + "\n", "/written": "before"}
		for name, content := range want {
			if p.Files[name] != content {
				t.Errorf("%s is %q, want %q", name, p.Files[name], content)
			}
		}
		if p.Hostname != id {
			t.Errorf("its name is %q, want %q", p.Hostname, id)
		}
		var hook struct{ Instance, Entropy string }
		if len(p.Hooks) != 1 || json.Unmarshal([]byte(p.Hooks[0]), &hook) != nil || hook.Instance != id || len(hook.Entropy) != 128 {
			t.Errorf("its hook got %q", p.Hooks)
		}
		c.get("/write?path=/written&data=" + id)
		c.get("/log?lines=1")
		c.until("the log comes", func() bool { return len(c.lines()) > 0 })
		if err := c.clone(guest.Clone{Instance: id, Hook: "/refuse"}); err == nil || !strings.Contains(err.Error(), "500") {
			t.Errorf("a hook that fails: %v", err)
		}
		places = append(places, p)
	}
	if places[0].Random == places[1].Random || places[0].UUID == places[1].UUID {
		t.Errorf("two clones draw the same random numbers: %q %q", places[0].Random, places[0].UUID)
	}
}

func testExit(t *testing.T, l *lab) {
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Limit(t, limit))
	defer cancel()
	m := l.boot(t)
	for _, s := range []guest.Start{order("x", "/nothing"), order("x")} {
		if err := m.session.Start(ctx, s); err == nil {
			t.Errorf("%q was started", s.Argv)
		}
	}
	m.session.Close()
	m.end()

	m = l.boot(t)
	if err := m.session.Start(ctx, order("x", "/probe", "exit")); err != nil {
		t.Fatal(err)
	}
	var exit *guest.ExitError
	if err := m.session.Ready(ctx); !errors.As(err, &exit) || exit.Status != "exit status 7" {
		t.Errorf("waiting for it: %v", err)
	}
	<-m.session.Exited()
	if lines := m.lines(); !slices.Contains(lines, "stdout: about to end") {
		t.Errorf("the log is %q", lines)
	}
	m.session.Close()
	m.greet(ctx) // the newest connection is told too
	if err := m.session.Ready(ctx); !errors.As(err, &exit) {
		t.Errorf("over another connection: %v", err)
	}
}

func testStop(t *testing.T, l *lab) {
	for _, c := range []struct {
		argv  []string
		grace time.Duration
		want  string
	}{
		{[]string{"/probe"}, testenv.Limit(t, limit), "exit status 3"},
		{[]string{"/probe", "stubborn"}, 100 * time.Millisecond, "killed by SIGKILL"},
	} {
		m := l.boot(t)
		m.start(order("x", c.argv...))
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Limit(t, limit))
		err := m.session.Stop(ctx, c.grace)
		cancel()
		var exit *guest.ExitError
		if err != nil || !errors.As(m.session.ExitErr(), &exit) || exit.Status != c.want {
			t.Errorf("stopping %q: %v, %v; want %s", c.argv, err, m.session.ExitErr(), c.want)
		}
		m.end()
	}
}

// testHostile lets the function misbehave in all the ways that it can. The
// agent lives on and says how the function ended.
func testHostile(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(order("x", "/probe"))
	m.blocked(func() { m.get("/log?lines=2000") })
	m.until("the log says what was dropped", func() bool {
		return slices.ContainsFunc(m.lines(), func(s string) bool { return strings.Contains(s, "bytes of output were dropped") })
	})
	m.get("/fork") // they end with it
	m.get("/hog")
	select {
	case <-m.session.Exited():
	case <-time.After(testenv.Limit(t, limit)):
		t.Fatal("a function that takes all memory goes on")
	}
	var exit *guest.ExitError
	if err := m.session.ExitErr(); !errors.As(err, &exit) || exit.Status != "killed by SIGKILL" {
		t.Errorf("the function that takes all memory: %v", err)
	}
	if err := m.session.Prepare(t.Context()); err != nil {
		t.Errorf("the agent after that: %v", err)
	}
}
