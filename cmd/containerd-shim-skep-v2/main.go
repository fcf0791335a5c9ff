// Command containerd-shim-skep-v2 is the shim of the runtime io.containerd.skep.v2:
// containerd starts it once per container outside Kubernetes and once per pod
// within, and asks it for everything that is done to these containers.
package main

import "github.com/skep-dev/skep/shim"

var version = "unknown"

func main() { shim.Main(version) }
