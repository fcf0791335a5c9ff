package node

import (
	"encoding/json"
	"time"

	"github.com/skep-dev/skep/api"
)

// line is shared by deployments whose instances serve for each other: those that
// differ only in settings which the pool and the gateway look up anew for each
// request. It has a field, so that no two are at the same address.
type line struct{ _ byte }

// servesLike lets the instances of cur go on serving for d, if they can.
func (d *deployment) servesLike(cur *deployment) {
	if cur != nil && d.image.Digest == cur.image.Digest && instanceSettings(d.fn) == instanceSettings(cur.fn) {
		d.line = cur.line
	}
}

// alike says whether an instance of one serves for the other.
func (d *deployment) alike(o *deployment) bool {
	return d != nil && o != nil && d.line == o.line
}

// instanceSettings is what instances are made by and look at while they live.
// Left out is what is looked up in the deployment that is in force.
func instanceSettings(f api.Function) string {
	f.Image, f.Revision, f.Created = "", 0, time.Time{}
	f.ReadyTimeout, f.Timeout, f.KeepAlive = 0, 0, 0
	f.QueueTimeout, f.ResponseTimeout, f.IdleTimeout, f.StreamTimeout = 0, 0, 0, 0
	f.MinInstances, f.MaxInstances, f.QueueLimit, f.MemoryPolicy, f.Scaling, f.TargetUtilization = 0, 0, 0, "", "", 0
	b, err := json.Marshal(f)
	if err != nil {
		return f.Name // cannot be: all its fields marshal
	}
	return string(b)
}
