package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest"
)

// reserveMiB is guest memory that the function may not have: for the kernel's
// own needs and the agent, so that a function that takes all can still be told.
const reserveMiB = 24

// maxTasks bounds the function's processes and threads.
const maxTasks = 4096

// cgroup is the function's. Its files stay open, since a clone would pay for
// looking them up.
type cgroup struct {
	dir     *os.File
	freezer *os.File // cgroup.freeze
	events  *os.File // cgroup.events
	made    int      // groups below it
	shares  bool     // the host's loopback
}

// makeGroup makes the function's cgroup, with as much memory as the guest can
// spare, or limitMiB where that is less and not 0. A limit that the kernel does not
// have is said on the console.
func makeGroup(limitMiB int) (*cgroup, error) {
	complain := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "skep-agent: limiting the function:", err)
		}
	}
	for _, controllers := range []string{"+memory +pids", "+cpu"} { // one that is missing keeps none of the others
		complain(os.WriteFile(groupRoot+"/cgroup.subtree_control", []byte(controllers), 0))
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		return nil, fmt.Errorf("making the function's cgroup: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, err
	}
	total := int64(info.Totalram) * int64(info.Unit)
	memory := max(total/2, total-reserveMiB<<20)
	if limitMiB > 0 {
		memory = min(memory, int64(limitMiB)<<20)
	}
	for name, v := range map[string]int64{"memory.max": memory, "pids.max": maxTasks, "memory.oom.group": 1} {
		complain(os.WriteFile(filepath.Join(group, name), fmt.Append(nil, v), 0))
	}
	return openGroup(group)
}

const cpuPeriod = 100_000 // µs, as the kernel has it where nobody says another

// showCPUs has cpu.max in the root say how much of the processors the host lets the
// guest have: runtimes size themselves by it. It is not set. A guest that is held to
// it by the host has no clock that leaves out for how long it was stopped, and would
// stop the function for as long again.
func showCPUs(cpus float64) (err error) {
	if cpus == 0 {
		return nil
	}
	const shown = "/cpu.max" // of the agent's own root
	if err := os.WriteFile(shown, fmt.Appendf(nil, "%.0f %d\n", cpus*cpuPeriod, cpuPeriod), 0o444); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(shown)) }()
	const path = "/sys/fs/cgroup/cpu.max"
	err = covered(path, func(at string, _ os.FileInfo) error {
		return errors.Join(unix.Mount(shown, at, "", unix.MS_BIND, ""), remountReadonly(path))
	})
	if err != nil {
		return fmt.Errorf("showing the limit of processors: %w", err)
	}
	return nil
}

func openGroup(path string) (*cgroup, error) {
	dir, err1 := os.Open(path)
	freezer, err2 := os.OpenFile(filepath.Join(path, "cgroup.freeze"), os.O_WRONLY, 0)
	events, err3 := os.Open(filepath.Join(path, "cgroup.events"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("opening the function's cgroup: %w", err)
	}
	return &cgroup{dir: dir, freezer: freezer, events: events}, nil
}

// kill sends SIGKILL to all processes, also to those that are frozen.
func (g *cgroup) kill() error {
	return os.WriteFile(filepath.Join(g.dir.Name(), "cgroup.kill"), []byte("1"), 0)
}

// freezeLimit bounds how long a process may be in a system call that cannot be
// interrupted while its cgroup is to be frozen.
const freezeLimit = 10 * time.Second

// freeze stops all processes, and returns when none of them runs.
func (g *cgroup) freeze() error {
	if _, err := unix.Pwrite(int(g.freezer.Fd()), []byte("1"), 0); err != nil {
		return fmt.Errorf("freezing the function's processes: %w", err)
	}
	// The kernel says by POLLPRI that the file has changed since it was read.
	poll := []unix.PollFd{{Fd: int32(g.events.Fd()), Events: unix.POLLPRI}}
	var buf [256]byte
	for end := time.Now().Add(freezeLimit); ; {
		n, err := unix.Pread(int(g.events.Fd()), buf[:], 0)
		if err != nil {
			return fmt.Errorf("freezing the function's processes: %w", err)
		}
		if bytes.Contains(buf[:n], []byte("frozen 1")) {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("freezing the function's processes: one of them still runs after %v, in a system call that cannot be interrupted", freezeLimit)
		}
		if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return fmt.Errorf("freezing the function's processes: %w", err)
		}
	}
}

// thaw lets them run on.
func (g *cgroup) thaw() error {
	if g == nil { // nothing was started
		return nil
	}
	if _, err := unix.Pwrite(int(g.freezer.Fd()), []byte("0"), 0); err != nil {
		return fmt.Errorf("thawing the function's processes: %w", err)
	}
	return nil
}

// below makes a group for one more process and all that it will start. It has no
// controllers of its own: what is in it counts as the function's, and is frozen
// and killed with it.
func (g *cgroup) below() (*os.File, error) {
	g.made++
	path := filepath.Join(g.dir.Name(), fmt.Sprintf("exec-%d", g.made))
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, fmt.Errorf("making a cgroup: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return dir, nil
}

// shareLoopback leads what nobody here serves at 127.0.0.1 to the gateway. A kernel that
// cannot has it said on the console, and its processes refused, as without it.
func (g *cgroup) shareLoopback() {
	if g.shares {
		return
	}
	g.shares = true
	if err := shareLoopback(g.dir, [4]byte(guest.Gateway.To4())); err != nil {
		fmt.Fprintln(os.Stderr, "skep-agent:", err)
	}
}

// inGroup lists the processes of a group, and of none below it.
func inGroup(dir *os.File) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir.Name(), "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// killed counts the function's processes that the kernel has ended for want of
// memory, the guest's or their own.
func (g *cgroup) killed() int64 {
	if g == nil {
		return 0
	}
	b, err := os.ReadFile(filepath.Join(g.dir.Name(), "memory.events"))
	if err != nil {
		return 0 // a kernel without the controller
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}
