package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/snapshot"
	"github.com/skep-dev/skep/vmm"
)

// deployment is one version of a function: immutable once made.
type deployment struct {
	fn    api.Function // with its defaults and its image's digest
	image image.Image  // Disk is looked up anew for each start
	start guest.Start  // what the agent is told, but for instance, clock and entropy
	spec  string       // digest of what is baked into the guest's memory: start, and whether it has nameservers
	line  *line        // whose instances serve for it
}

func newDeployment(fn api.Function, img image.Image) (*deployment, error) {
	d := &deployment{fn: fn, image: img, line: &line{}}
	c := &img.Config
	args := c.Cmd
	if fn.Args != nil {
		args = fn.Args
	}
	d.start = guest.Start{
		Argv: slices.Concat(c.Entrypoint, args), Env: environment(c.Env, fn), Dir: c.WorkingDir,
		User: c.User, Port: fn.Port, ReadyPath: fn.ReadyPath, DiskMiB: fn.DiskMiB, StopSignal: c.StopSignal,
	}
	if len(d.start.Argv) == 0 {
		return nil, invalid(fmt.Errorf("function %q: image %s has no entrypoint and no command: give the function args", fn.Name, fn.Image))
	}
	if d.start.Dir == "" {
		d.start.Dir = "/"
	}
	// What is not digested may differ between a snapshot and its clones: which
	// nameservers there are is the host's, and they are added at boot.
	b, err := json.Marshal(d.start)
	if err != nil {
		return nil, fmt.Errorf("function %q: %w", fn.Name, err)
	}
	if most := guest.MaxStart - startRoom; len(b) > most {
		return nil, invalid(fmt.Errorf("function %q: arguments and environment, the image's and its own, take %d bytes: at most %d fit into what the guest is told", fn.Name, len(b), most))
	}
	if fn.Egress == api.EgressNAT {
		b = append(b, "with nameservers"...)
	}
	sum := sha256.Sum256(b)
	d.spec = hex.EncodeToString(sum[:])
	return d, nil
}

// startRoom is for what each instance adds to a deployment's start message:
// its id, the clock, entropy and nameservers.
const startRoom = 64 << 10

// environment is the image's with the function's over it, and PORT; in an order
// that is always the same.
func environment(base []string, fn api.Function) []string {
	env := map[string]string{}
	for _, kv := range base {
		for i := range kv {
			if kv[i] == '=' {
				env[kv[:i]] = kv[i+1:]
				break
			}
		}
	}
	maps.Copy(env, fn.Env)
	env["PORT"] = strconv.Itoa(fn.Port)
	if _, ok := env["PATH"]; !ok {
		env["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// machine is the shape of the deployment's microVMs.
func (n *Node) machine(d *deployment, disk string) vmm.Config {
	return vmm.Config{
		VCPUs: d.fn.VCPUs, MemoryMiB: d.fn.MemoryMiB,
		Kernel: n.kernel.Path, Initramfs: n.kernel.Initramfs, Cmdline: n.kernel.Cmdline, RootDisk: disk,
		Generation: n.kernel.Generation,
	}
}

// want is what a snapshot must be for the deployment to start from it here.
func (n *Node) want(d *deployment, info vmm.Info) snapshot.Want {
	return snapshot.Want{
		Function: d.fn.Name, ImageDigest: d.image.Digest, DiskDigest: d.image.DiskDigest,
		GuestKernel: n.kernel.Digest, Initramfs: n.kernel.InitramfsDigest, Spec: d.spec,
		VCPUs: d.fn.VCPUs, MemoryMiB: d.fn.MemoryMiB, VMM: info, CPU: n.cpu, HostKernel: snapshot.HostKernel(),
	}
}

// Function returns a deployed function. It does not touch the disk.
func (n *Node) Function(name string) (api.Function, bool) {
	p := n.pool(name)
	if p == nil {
		return api.Function{}, false
	}
	d := p.current.Load()
	if d == nil {
		return api.Function{}, false
	}
	return d.fn, true
}

// FunctionNames lists the deployed functions' names, sorted.
func (n *Node) FunctionNames() []string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return slices.Sorted(maps.Keys(n.pools))
}

// Functions lists the deployed functions, sorted by name.
func (n *Node) Functions() []api.Function {
	var out []api.Function
	for _, name := range n.FunctionNames() {
		if fn, ok := n.Function(name); ok {
			out = append(out, fn)
		}
	}
	return out
}

// Waiting counts the requests that wait for an instance, by function.
func (n *Node) Waiting() map[string]int {
	out := map[string]int{}
	for _, p := range n.allPools() {
		p.mu.Lock()
		if k := len(p.queue) + len(p.alone); k > 0 {
			out[p.name] = k
		}
		p.mu.Unlock()
	}
	return out
}

// Instances lists a function's instances, or all for "", oldest first.
func (n *Node) Instances(function string) []api.Instance {
	pools := n.allPools()
	if function != "" {
		pools = nil
		if p := n.pool(function); p != nil {
			pools = append(pools, p)
		}
	}
	var out []api.Instance
	for _, p := range pools {
		p.mu.Lock()
		for _, inst := range p.instances {
			out = append(out, inst.describe())
		}
		p.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b api.Instance) int { return a.Created.Compare(b.Created) })
	return out
}
