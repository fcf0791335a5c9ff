package kubernetes

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// usage is what the kubelet says that a container uses.
type usage struct {
	CPU struct {
		Time                 time.Time `json:"time"`
		UsageNanoCores       uint64    `json:"usageNanoCores"`
		UsageCoreNanoSeconds uint64    `json:"usageCoreNanoSeconds"`
	} `json:"cpu"`
	Memory struct {
		WorkingSetBytes uint64 `json:"workingSetBytes"`
		UsageBytes      uint64 `json:"usageBytes"`
	} `json:"memory"`
}

// summary is the kubelet's of a pod, and of its container.
func (n *node) summary(pod string) (ofPod, ofContainer usage, err error) {
	out, err := n.try("", "get", "--raw", "/api/v1/nodes/skep/proxy/stats/summary")
	if err != nil {
		return usage{}, usage{}, err
	}
	var all struct {
		Pods []struct {
			usage
			PodRef     struct{ Name string } `json:"podRef"`
			Containers []struct {
				usage
				Name string `json:"name"`
			} `json:"containers"`
		} `json:"pods"`
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return usage{}, usage{}, err
	}
	for _, p := range all.Pods {
		if p.PodRef.Name == pod && len(p.Containers) == 1 && p.Containers[0].Name == "app" {
			return p.usage, p.Containers[0].usage, nil
		}
	}
	return usage{}, usage{}, fmt.Errorf("the kubelet has no usage of pod %s and its container: %s", pod, out)
}

// The kubelet tells of a microVM's container what its VMM uses, guest and all: processor
// time to that which the kernel has counted, memory from what the guest's process holds.
func TestStats(t *testing.T) {
	n := onNodeOfAll(t)
	needsVMs(t)
	n.Cleanup(func() {
		n.kubectl("delete", "--ignore-not-found", "--wait", "-f", n.c.Dir()+"/etc/metrics-server.yaml")
	})
	if err := n.c.Metrics(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.apply(pod("holds", nil, "resources: {limits: {memory: 160Mi}}", "hold", "100") + "---" + pod("burns", nil, "", "burn"))
	for name, said := range map[string]string{"holds": "holds 100\n", "burns": "burns\n"} {
		n.becomes("pod/"+name, ".status.phase", "Running")
		n.eventually("what "+name+" says", said, func() (string, error) { return n.try("", "logs", name) })
	}

	burns := n.vmm("burns")
	before, asked := n.cpu(burns), time.Now()
	var u usage
	n.eventually("whether what burns uses was looked at since, twice", "true", func() (string, error) {
		_, last, err := n.summary("burns")
		again := u.CPU.Time.After(asked) && last.CPU.Time.After(u.CPU.Time)
		if last.CPU.Time.After(asked) {
			u = last
		}
		return fmt.Sprint(again), err
	})
	after := n.cpu(burns)
	// The VMM is put into its cgroup, and counted there, just after it has begun.
	const begin = time.Second
	if used := time.Duration(u.CPU.UsageCoreNanoSeconds); used < before-begin || used > after+begin {
		t.Errorf("it has used %v of processor time: want between %v and %v, which its VMM had", used, before, after)
	}
	_, holds, err := n.summary("holds")
	if err != nil {
		t.Fatal(err)
	}
	if u.CPU.UsageNanoCores < 5*holds.CPU.UsageNanoCores {
		t.Errorf("what burns uses %.3f processors, and what just holds memory %.3f", float64(u.CPU.UsageNanoCores)/1e9, float64(holds.CPU.UsageNanoCores)/1e9)
	}

	status, err := n.vmm("holds").NewStatus()
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	t.Logf("burns: %.3f processors; holds: working set %d MiB, usage %d MiB, its VMM has %d MiB", float64(u.CPU.UsageNanoCores)/1e9,
		holds.Memory.WorkingSetBytes/mib, holds.Memory.UsageBytes/mib, status.VmRSS/mib)
	if least := uint64(100 * mib); holds.Memory.WorkingSetBytes < least || holds.Memory.UsageBytes < least {
		t.Errorf("what holds 100 MiB has a working set of %d MiB, and uses %d", holds.Memory.WorkingSetBytes/mib, holds.Memory.UsageBytes/mib)
	}
	// Of the VMM's memory the program's own pages may count elsewhere; its page tables count here.
	if most := status.VmRSS + 32*mib; holds.Memory.WorkingSetBytes > most {
		t.Errorf("its working set is %d MiB: its VMM has %d", holds.Memory.WorkingSetBytes/mib, status.VmRSS/mib)
	}
	n.eventually("whether its pod has as much", "true", func() (string, error) {
		ofPod, ofContainer, err := n.summary("holds")
		return fmt.Sprint(ofPod.Memory.WorkingSetBytes >= ofContainer.Memory.WorkingSetBytes/10*9 && ofPod.Memory.WorkingSetBytes > 100*mib), err
	})

	n.resourceMetrics(u, holds)
	n.top(holds)
}

// resourceMetrics wants the same in the kubelet's metrics, which metrics-server reads.
func (n *node) resourceMetrics(burns, holds usage) {
	n.Helper()
	metric := func(name, pod string) float64 {
		n.Helper()
		for line := range strings.Lines(n.kubectl("get", "--raw", "/api/v1/nodes/skep/proxy/metrics/resource")) {
			if !strings.HasPrefix(line, name+"{") || !strings.Contains(line, `container="app"`) || !strings.Contains(line, `pod="`+pod+`"`) {
				continue
			}
			_, values, _ := strings.Cut(line, "} ")
			v, err := strconv.ParseFloat(strings.Fields(values)[0], 64)
			if err != nil {
				n.Fatal(err)
			}
			return v
		}
		n.Fatalf("there is no %s of pod %s", name, pod)
		return 0
	}
	if was, is := float64(burns.CPU.UsageCoreNanoSeconds)/1e9, metric("container_cpu_usage_seconds_total", "burns"); is < was {
		n.Errorf("the metric has %.1f s of processor time, after %.1f s", is, was)
	}
	if is := metric("container_memory_working_set_bytes", "holds"); is < 100<<20 || is > 1.25*float64(holds.Memory.WorkingSetBytes) {
		n.Errorf("the metric has a working set of %.0f bytes: the summary has %d", is, holds.Memory.WorkingSetBytes)
	}
}

// top wants kubectl to tell it of pods and of the node, by metrics-server.
func (n *node) top(holds usage) {
	n.Helper()
	of := func(what ...string) (milliCPU, mib int) {
		n.Helper()
		n.eventually("whether top has "+strings.Join(what, " "), "true", func() (string, error) {
			out, err := n.try("", append(append([]string{"top"}, what...), "--no-headers")...)
			if err != nil {
				return "", err
			}
			fields := strings.Fields(out) // burns 998m 190Mi; skep 1200m 60% 3000Mi 12%
			if len(fields) == 5 {
				fields = []string{fields[0], fields[1], fields[3]}
			}
			if len(fields) != 3 {
				return out, nil
			}
			if milliCPU, err = strconv.Atoi(strings.TrimSuffix(fields[1], "m")); err == nil {
				mib, err = strconv.Atoi(strings.TrimSuffix(fields[2], "Mi"))
			}
			return "true", err
		})
		return milliCPU, mib
	}
	busy, _ := of("pod", "burns")
	idle, mib := of("pod", "holds")
	used, all := of("node", "skep")
	n.Logf("top: burns %dm, holds %dm and %d MiB, the node %dm and %d MiB", busy, idle, mib, used, all)
	if mib < 100 || mib > int(holds.Memory.WorkingSetBytes>>20)*5/4 {
		n.Errorf("top has %d MiB of what holds 100: the kubelet has %d", mib, holds.Memory.WorkingSetBytes>>20)
	}
	if busy < 5*max(1, idle) || used < busy/2 || all < mib {
		n.Errorf("top has %dm of what burns, %dm of what does not, and %dm and %d MiB of the node", busy, idle, used, all)
	}
}
