package node

import (
	"fmt"

	"github.com/prometheus/procfs"

	"github.com/skep-dev/skep/api"
)

// Usage reads what the host and the instances use. An instance that ends meanwhile is
// left out.
func (n *Node) Usage() (api.Usage, error) {
	u := api.Usage{Waiting: n.Waiting(), Instances: []api.InstanceUsage{}}
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return u, fmt.Errorf("reading what is used: %w", err)
	}
	mem, err := proc.Meminfo()
	if err != nil {
		return u, fmt.Errorf("reading what memory is used: %w", err)
	}
	if mem.MemTotalBytes != nil && mem.MemAvailableBytes != nil {
		u.MemoryBytes, u.AvailableBytes = int64(*mem.MemTotalBytes), int64(*mem.MemAvailableBytes)
	}
	for _, i := range n.Instances("") {
		if i.PID == 0 {
			continue
		}
		p, err := proc.Proc(i.PID)
		if err != nil {
			continue
		}
		if st, err := p.NewStatus(); err == nil {
			u.Instances = append(u.Instances, api.InstanceUsage{ID: i.ID, Function: i.Function, ResidentBytes: int64(st.VmRSS)})
		}
	}
	return u, nil
}
