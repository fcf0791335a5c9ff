package doctor

import (
	"context"
	"os/exec"

	"github.com/skep-dev/skep/containerd"
)

// checkContainerd is about containerd's runtime, which is for who wants it: it
// complains of half an installation only.
func checkContainerd(ctx context.Context, _ Options) Check {
	const name = "containerd"
	var missing, there []string
	for _, p := range (containerd.Host{}).Status(ctx, "") {
		if p.OK {
			there = append(there, p.Name)
		} else {
			missing = append(missing, p.Detail)
		}
	}
	_, err := exec.LookPath("containerd")
	switch {
	case len(missing) == 0:
		return ok(name, "skep is its runtime "+containerd.Runtime)
	case len(there) > 0:
		return warn(name, "skep is half installed as a runtime: "+missing[0], "skep containerd install, or skep containerd uninstall")
	case err != nil:
		return ok(name, "not here; skep is no runtime of one")
	}
	return ok(name, "here; skep is no runtime of it (`skep containerd install` makes it one)")
}
