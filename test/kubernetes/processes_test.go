package kubernetes

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// vmm is the process, as this host has it, that a pod's microVM is.
func (n *node) vmm(pod string) procfs.Proc {
	n.Helper()
	uid := n.get("pod/"+pod, ".metadata.uid")
	for _, p := range n.processes() {
		if p.kind == vmmKind && strings.Contains(p.cgroup, uid) {
			return p.Proc
		}
	}
	n.Fatalf("no VMM is in a cgroup of pod %s, %s", pod, uid)
	return procfs.Proc{}
}

// The kinds of processes that pods have on their node.
const (
	vmmKind   = "VMM"
	shimKind  = "shim"
	pauseKind = "pause"
)

// process is one of the node's that is there for a pod.
type process struct {
	procfs.Proc
	kind, cgroup string
}

// processes are those of all pods.
func (n *node) processes() (list []process) {
	n.Helper()
	all, err := procfs.AllProcs()
	if err != nil {
		n.Fatal(err)
	}
	for _, p := range all {
		program, err := p.Executable()
		if err != nil {
			continue // it has ended
		}
		kind := ""
		switch {
		case strings.Contains(program, "qemu"), strings.Contains(program, "firecracker"):
			kind = vmmKind
		case strings.Contains(program, "containerd-shim-skep"):
			kind = shimKind
		case strings.HasSuffix(program, "/skep-pause"):
			kind = pauseKind
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
		if kind == "" || err != nil || !strings.Contains(string(b), n.c.Cgroup()+"/") {
			continue
		}
		list = append(list, process{p, kind, string(b)})
	}
	return list
}

// cpu is the processor time that a process has had.
func (n *node) cpu(p procfs.Proc) time.Duration {
	n.Helper()
	s, err := p.Stat()
	if err != nil {
		n.Fatal(err)
	}
	return time.Duration(s.CPUTime() * float64(time.Second))
}
