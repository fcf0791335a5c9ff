//go:build linux && !amd64

package userfaultfd

import "os/exec"

// StartUnadvised starts cmd as it is: refusing its advice of huge pages is written
// for amd64 alone. The functions before run as for Start.
func StartUnadvised(cmd *exec.Cmd, before ...func() error) error {
	return onThread(before, func() error { return cmd.Start() })
}
