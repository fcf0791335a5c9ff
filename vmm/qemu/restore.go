package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/memory/userfaultfd"
	"github.com/skep-dev/skep/vmm"
)

// Restore starts a machine from a snapshot; see vmm.VMM.
func (v *VMM) Restore(ctx context.Context, spec vmm.RestoreSpec) (vmm.Machine, error) {
	host, err := v.host(ctx)
	if err != nil {
		return nil, err
	}
	if err := vmm.Check(spec.Config, spec.Host, maxVCPUs); err != nil {
		return nil, err
	}
	l := launch{host: host, config: spec.Config, on: spec.Host, state: spec.State}
	var m *machine
	if spec.Memory.Attach == nil {
		m, err = l.mapped(ctx, spec.Memory.File)
	} else {
		m, err = l.attached(ctx, spec.Memory.Attach)
	}
	if err != nil {
		return nil, fmt.Errorf("restoring: %w", err)
	}
	if err := m.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("restoring: loading device state: %w", err), m.Kill())
	}
	v.log.Debug("restored", "vmm", "qemu", "instance", spec.ID, "pid", m.PID())
	return m, nil
}

// mapped starts the process with a private mapping of the memory file.
func (l *launch) mapped(ctx context.Context, file string) (*machine, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	if want := int64(l.config.MemoryMiB) << 20; st.Size() != want {
		return nil, fmt.Errorf("guest memory %s is %d bytes long: the machine has %d", file, st.Size(), want)
	}
	l.ram = ram{file: file, private: true}
	// QEMU advises huge pages for all guest memory, and there is no option against it.
	l.start = func(cmd *exec.Cmd, enter func() error) error { return userfaultfd.StartUnadvised(cmd, enter) }
	l.args = []string{"-incoming", "defer"}
	m, _, err := l.run(ctx)
	return m, err
}

// attached starts the process with empty memory and hands it over.
func (l *launch) attached(ctx context.Context, attach func(context.Context, userfaultfd.Guest) error) (*machine, error) {
	m, g, err := l.empty(ctx)
	if err != nil {
		return nil, err
	}
	if err := attach(ctx, g); err != nil {
		return nil, errors.Join(fmt.Errorf("handing over guest memory: %w", err), m.Kill())
	}
	return m, nil
}

// empty starts the process with empty memory, whose faults are to be served.
func (l *launch) empty(ctx context.Context) (*machine, userfaultfd.Guest, error) {
	var fd *userfaultfd.FD
	l.start = func(cmd *exec.Cmd, enter func() error) (err error) {
		fd, err = userfaultfd.Start(cmd, enter)
		return err
	}
	l.args = []string{"-incoming", "defer"}
	l.more = []command{{Execute: "human-monitor-command", Arguments: map[string]any{"command-line": "gpa2hva 0"}}}
	m, answers, err := l.run(ctx)
	if err != nil {
		if fd != nil {
			_ = fd.Close()
		}
		return nil, userfaultfd.Guest{}, err
	}
	g, err := guestMemory(m.PID(), fd, answers[0], uint64(l.config.MemoryMiB)<<20)
	if err != nil {
		err = errors.Join(fmt.Errorf("registering guest memory: %w", err), m.Kill())
		return nil, g, errors.Join(err, fd.Close())
	}
	return m, g, nil
}

// load reads device state from the inherited descriptor. A process that ended by
// a signal meanwhile has not judged it.
func (m *machine) load(ctx context.Context) error {
	err := m.loadState(ctx)
	if err == nil || ctx.Err() != nil || m.signalled() {
		return err
	}
	return fmt.Errorf("%w: %w", vmm.ErrState, err)
}

func (m *machine) signalled() bool {
	select {
	case <-m.proc.Done():
		return m.proc.ExitCode() < 0
	default:
		return false
	}
}

func (m *machine) loadState(ctx context.Context) error {
	began := time.Now()
	_, err := m.qmp.do(ctx, command{Execute: "migrate-incoming", Arguments: map[string]any{"uri": fmt.Sprintf("fd:%d", fdState)}})
	if err != nil {
		return m.explain(err)
	}
	if err := m.migrated(ctx); err != nil {
		return err
	}
	m.timings.Load = time.Since(began)
	return nil
}

// guestMemory registers the machine's memory with its userfaultfd.
func guestMemory(pid int, fd *userfaultfd.FD, answer json.RawMessage, size uint64) (userfaultfd.Guest, error) {
	var none userfaultfd.Guest
	addr, err := hostAddress(answer)
	if err != nil {
		return none, err
	}
	if err := checkMapping(pid, addr, size); err != nil {
		return none, err
	}
	have, err := userfaultfd.Probe()
	if err != nil {
		return none, err
	}
	want := have & userfaultfd.FeatureEventRemove
	if _, err := fd.API(want); err != nil {
		return none, err
	}
	if _, err := fd.Register(addr, size, userfaultfd.ModeMissing); err != nil {
		return none, err
	}
	return userfaultfd.Guest{
		FD:       fd,
		Regions:  []userfaultfd.Region{{HostAddr: addr, Size: size, PageSize: 4096}},
		PID:      pid,
		Features: uint64(want),
	}, nil
}

// QEMU says where guest-physical address 0 is in its own address space. All of
// the memory is one mapping that begins there: the hole below 4 GiB is one of
// guest-physical addresses only.
var hostAddressText = regexp.MustCompile(`^Host virtual address for 0x0 \(ram\) is 0x([0-9a-f]{1,16})\r?\n$`)

func hostAddress(answer json.RawMessage) (uint64, error) {
	var text string
	if err := json.Unmarshal(answer, &text); err != nil {
		return 0, fmt.Errorf("asking for its address: %w", err)
	}
	m := hostAddressText.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("asking for its address: unknown answer %.100q", text)
	}
	return strconv.ParseUint(m[1], 16, 64)
}

// checkMapping makes sure of it with the kernel: a private anonymous mapping
// of just that size is there. Faults of anything else would be answered with
// the guest's pages.
func checkMapping(pid int, addr, size uint64) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	defer f.Close()
	return findMapping(f, addr, size)
}

// findMapping reads lines like
//
//	7f1c40000000-7f1c50000000 rw-p 00000000 00:00 0
func findMapping(maps io.Reader, addr, size uint64) error {
	want := fmt.Sprintf("%08x-%08x", addr, addr+size)
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[0] != want {
			continue
		}
		if fields[1] != "rw-p" || fields[4] != "0" {
			return fmt.Errorf("the mapping %q is not private anonymous memory", lines.Text())
		}
		return nil
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return fmt.Errorf("there is no mapping %s in the process", want)
}
