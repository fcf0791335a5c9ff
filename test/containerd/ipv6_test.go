package containerd

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/shim/shimtest"
)

// A pod's IPv6 address is its microVM's, with IPv4 or without: others reach it there, and
// at ::1, and it reaches them; a clone, too.
func TestPodIPv6(t *testing.T) {
	for name, subnets := range map[string][]string{"both": {"10.98.0.0/24", "fd98::/64"}, "alone": {"fd98::/64"}} {
		t.Run(name, func(t *testing.T) {
			eachVMWith(t, shimtest.Options{CRI: true, Subnets: subnets}, func(t *testing.T, c *shimtest.Containerd) {
				p := shimtest.CRI(t, c)
				starts := map[string]bool{}
				for _, id := range []string{"first", "clone"} {
					pod := p.Pod(id, map[string]string{"skep.dev/port": "8080"})
					app := pod.Run("app", "serve", "8080")
					world := c.Probe("serve", "9100")
					if err := world.Start(); err != nil {
						t.Fatal(err)
					}
					for limit := time.Now().Add(c.Limit(time.Minute)); tentative(t, c); time.Sleep(50 * time.Millisecond) {
						if time.Now().After(limit) {
							t.Fatal("the bridge's address stays tentative")
						}
					}
					ips := pod.IPs()
					if len(ips) != len(subnets) {
						t.Errorf("the pod has the addresses %v", ips)
					}
					for _, ip := range ips {
						if out := eventually(c, func() shimtest.Result { return p.Probe("get", "http://"+net.JoinHostPort(ip, "8080")+"/hostname") }); out != id {
							t.Errorf("at %s %q answers", ip, out)
						}
					}
					starts[strings.TrimSpace(p.Probe("get", "http://"+net.JoinHostPort(ips[0], "8080")+"/start").Stdout)] = true
					if r := c.InsideOf(c.VMM(app), "get", "http://[::1]:8080/hostname"); strings.TrimSpace(r.Stdout) != id {
						t.Errorf("at ::1 %q answers, %s", r.Stdout, r.Stderr)
					}
					if r := p.Try("exec", app, "/bin/get", "http://[fd98::1]:9100/"); strings.TrimSpace(r.Stdout) != "hello" {
						t.Errorf("to the guest %q answers, %s", r.Stdout, r.Stderr)
					}
					_ = world.Process.Kill()
					_ = world.Wait()
					pod.Remove()
				}
				if len(starts) != 1 {
					t.Errorf("there was no clone: they started as %v\n%s", starts, c.Log())
				}
			})
		})
	}
}

// tentative says that the bridge may not use its address yet: what goes to pods would come
// from that of its link, to which nobody answers from behind another.
func tentative(t *testing.T, c *shimtest.Containerd) bool {
	out, err := c.Command("ip", "-6", "address", "show", "dev", "cni0", "tentative").Output()
	if err != nil {
		t.Fatal(err)
	}
	return len(out) > 0
}
