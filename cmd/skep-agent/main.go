// Command skep-agent is PID 1 in every microVM. It is static and small; all it
// does is in package guest/agent.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/skep-dev/skep/guest/agent"
)

func main() {
	if agent.IsGate() {
		agent.Gate()
	}
	if agent.IsProcMount() {
		agent.ProcMount()
	}
	if len(os.Args) > 1 && os.Args[1] == "--version" {
		fmt.Println(agent.Version)
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "skep-agent is the init of a skep microVM; it does nothing elsewhere")
		os.Exit(2)
	}
	// The agent allocates next to nothing once the function runs, and a garbage
	// collection in a clone would touch pages that nothing else needs.
	// Nor does it need more than one thread at a time.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(16 << 20)
	err := agent.Run()
	fmt.Fprintln(os.Stderr, "skep-agent:", err)
	agent.PowerOff()
}
