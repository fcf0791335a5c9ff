// Package process runs the process of a VMM: in the instance's network
// namespace and cgroup, marked in its environment, without core dumps, its
// stderr kept. The backends in vmm/qemu and vmm/firecracker start their
// processes with it.
package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/vmm"
)

// Spec is a process to be started.
type Spec struct {
	Path string
	Name string   // in errors; "" is the last element of Path
	Args []string // without the program's name
	// Files become the descriptors 3, 4, … of the process. The caller keeps its
	// own and closes them after Start.
	Files []*os.File
	Host  vmm.Host
	// Start starts the command; nil is (*exec.Cmd).Start. It must call enter on
	// the thread that forks, which is then in the machine's network namespace and
	// must not be used for anything else: userfaultfd.Start is made for it.
	Start func(cmd *exec.Cmd, enter func() error) error
	// Prepare, when set, runs on the thread that forks, after it has entered the
	// network namespace: it can make a mount namespace for the process, and a root
	// directory, in which Path then is. The thread is not used again. It goes with
	// a nil Start only.
	Prepare func() error
	// AsUser has the process run as Host.UID and Host.GID, in "/".
	AsUser bool
	// Stdout gets what the process writes there; nil discards it.
	Stdout io.Writer
	// MaxFiles is the limit of its open files; 0 leaves the caller's.
	MaxFiles uint64
	// MemoryMiB and VCPUs of the guest are added to Host.Limits. The memory bounds
	// the files that the process writes, too (FileLimit).
	MemoryMiB, VCPUs int
}

// Process is a running process. It is reaped as soon as it ends.
type Process struct {
	cmd    *exec.Cmd
	name   string
	group  *cgroup.Group // nil without one
	stderr *tail
	log    *Log

	killed atomic.Bool
	done   chan struct{}
	state  error // of Wait; read after done

	release sync.Once
	err     error // of the release
}

// Start starts the process. When it fails nothing is left.
func Start(spec Spec) (*Process, error) {
	if spec.Name == "" {
		spec.Name = filepath.Base(spec.Path)
	}
	p := &Process{name: spec.Name, stderr: &tail{}, done: make(chan struct{})}
	if err := p.start(spec); err != nil {
		return nil, errors.Join(err, p.free())
	}
	limit(p.PID(), spec)
	go p.wait()
	if spec.Host.Started != nil {
		if err := spec.Host.Started(p.PID()); err != nil {
			return nil, errors.Join(err, p.Kill())
		}
	}
	return p, nil
}

func (p *Process) start(spec Spec) (err error) {
	if p.log, err = OpenLog(filepath.Join(spec.Host.Dir, "stderr.log"), 64<<10); err != nil {
		return err
	}
	attr := &syscall.SysProcAttr{Setsid: true}
	if spec.Host.Limits.CgroupRoot != "" {
		f, err := p.enterGroup(spec)
		if err != nil {
			return err
		}
		defer f.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(f.Fd())
	}
	p.cmd = exec.Command(spec.Path, spec.Args...)
	p.cmd.SysProcAttr = attr
	p.cmd.Dir = spec.Host.Dir
	if spec.AsUser {
		p.cmd.Dir = "/"
		attr.Credential = &syscall.Credential{Uid: uint32(spec.Host.UID), Gid: uint32(spec.Host.GID)}
	}
	p.cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, spec.Host.Env...)
	stdin, err := os.Open(os.DevNull) // which the root directory that Prepare makes may lack
	if err != nil {
		return err
	}
	defer stdin.Close()
	p.cmd.Stdin = stdin
	p.cmd.Stdout, p.cmd.Stderr = spec.Stdout, p.Words()
	p.cmd.ExtraFiles = spec.Files
	p.cmd.WaitDelay = time.Second
	switch {
	case spec.Start != nil:
		err = startIn(spec.Host.NetNS, p.cmd, spec.Start)
	case spec.Prepare != nil:
		err = startIn(spec.Host.NetNS, p.cmd, func(cmd *exec.Cmd, enter func() error) error {
			return onThread(func() error {
				if err := enter(); err != nil {
					return err
				}
				if err := spec.Prepare(); err != nil {
					return err
				}
				return cmd.Start()
			})
		})
	default:
		err = inNetNS(spec.Host.NetNS, p.cmd.Start)
	}
	if err != nil {
		return fmt.Errorf("starting %s: %w", spec.Path, err)
	}
	return nil
}

func (p *Process) enterGroup(spec Spec) (*os.File, error) {
	l := spec.Host.Limits
	var limits cgroup.Limits
	if l.MemoryMiB > 0 {
		limits.MemoryBytes = int64(l.MemoryMiB+spec.MemoryMiB) << 20
	}
	if l.PIDs > 0 {
		limits.PIDs = l.PIDs + spec.VCPUs
	}
	if l.CPUs > 0 {
		limits.CPUs = l.CPUs + float64(spec.VCPUs)
	}
	g, err := cgroup.Create(l.CgroupRoot, spec.Host.ID, limits)
	if err != nil {
		return nil, err
	}
	p.group = g
	return g.Open()
}

// wait is the process's one goroutine. Kill waits for it.
func (p *Process) wait() {
	p.state = p.cmd.Wait()
	if p.group != nil && p.group.OutOfMemory() {
		p.state = fmt.Errorf("%w: it needed more memory than its cgroup may use (%s); raise vmm_memory_mib", p.state, p.group.Dir())
	}
	close(p.done)
}

// Words keeps what is written to it as if the process had written it to stderr.
func (p *Process) Words() io.Writer { return io.MultiWriter(p.stderr, p.log) }

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Killed reports whether Kill was called before the process ended by itself.
func (p *Process) Killed() bool { return p.killed.Load() }

// Err says how the process ended, with the end of what it wrote to stderr; nil
// while it runs and after Kill.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	if p.killed.Load() {
		return nil
	}
	how := "exit status 0"
	if p.state != nil {
		how = p.state.Error()
	}
	return fmt.Errorf("%s ended: %s%w", p.name, how, p.said())
}

// ExitCode is the process's exit code, -1 while it runs and after a signal.
func (p *Process) ExitCode() int {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// said is the end of stderr as the last part of an error's text.
func (p *Process) said() error { return said(p.stderr.String()) }

// Explain adds to err the end of what the process wrote to stderr. Where the
// process has ended by itself, it says so too.
func (p *Process) Explain(err error) error {
	if own := p.Err(); own != nil {
		return fmt.Errorf("%w: %w", err, own)
	}
	return fmt.Errorf("%w%w", err, p.said())
}

// Kill ends the process, waits until it is reaped and releases what it held.
// It is idempotent.
func (p *Process) Kill() error {
	select {
	case <-p.done:
	default:
		p.killed.Store(true)
		// The runtime signals through a pidfd: never another process with a reused id.
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("killing process %d: %w", p.PID(), err)
		}
		<-p.done
	}
	return p.free()
}

func (p *Process) free() error {
	p.release.Do(func() {
		if p.group != nil {
			p.err = p.group.Remove()
		}
		if p.log != nil {
			p.err = errors.Join(p.err, p.log.Close())
		}
	})
	return p.err
}

// said is an error only so that it can be wrapped behind another.
type said string

func (s said) Error() string {
	if s == "" {
		return ""
	}
	return "; its last words: " + string(s)
}
