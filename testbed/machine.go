package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/guest/initramfs"
	"github.com/skep-dev/skep/vmm"
)

// modules that the host's init loads; the host's modprobe finds the rest. That
// one of the two KVMs does not load is said on the console.
var modules = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "ext4", "overlay",
	"kvm_amd", "kvm_intel", "tun", "vhost_vsock",
}

// bootLimit is for how long the host may boot. Emulated, it takes ten seconds
// on a machine that has nothing else to do.
const bootLimit = 5 * time.Minute

// machine is a host that runs.
type machine struct {
	cmd     *exec.Cmd
	ended   chan struct{} // closed when QEMU has ended
	session *yamux.Session
	watch   sync.WaitGroup
	runDir  string
	files   []*os.File // disks and ends of sockets, ours
}

// start boots a host with a payload and, unless it is nil, a disk of images,
// which is the machine's from then on. It is called from the main goroutine,
// whose thread lives as long as the driver: QEMU is killed with that thread.
func (o *options) start(ctx context.Context, p payload, images *os.File, runDir string) (m *machine, err error) {
	m = &machine{ended: make(chan struct{}), runDir: runDir}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	began := time.Now()
	args, err := m.prepare(ctx, o, p, images)
	if err != nil {
		return m, err
	}
	prepared := time.Now()
	if err := m.spawn(args); err != nil {
		return m, err
	}
	if err := m.connect(ctx); err != nil {
		return m, fmt.Errorf("booting the host: %w; its console: %s", err, m.console())
	}
	m.watch.Go(m.watchOver)
	say("a host of %d processors and %d MiB is up (prepared in %.1f s, booted in %.1f s)",
		o.cpus, o.memoryMiB, prepared.Sub(began).Seconds(), time.Since(prepared).Seconds())
	return m, nil
}

func (m *machine) console() string { return filepath.Join(m.runDir, "console.log") }

// prepare makes what the host is started with, and QEMU's command line. Files
// are handed over as descriptors, from 3.
func (m *machine) prepare(ctx context.Context, o *options, p payload, images *os.File) (_ []string, err error) {
	defer func() {
		if images != nil { // last of the disks
			m.files = append(m.files, images)
		}
	}()
	k, err := guestKernel(ctx)
	if err != nil {
		return nil, err
	}
	init := filepath.Join(cacheDir, "built", "init")
	if err := goTool(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", init, "./testbed/init"); err != nil {
		return nil, err
	}
	archive, err := initramfs.PackInit(init, k, modules)
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(m.runDir, "initramfs")
	if err := os.WriteFile(initrd, archive, 0o644); err != nil {
		return nil, err
	}
	for _, open := range []func() (*os.File, error){
		func() (*os.File, error) { return base(ctx, k) },
		p.disk,
		func() (*os.File, error) { return scratchDisk(ctx) },
	} {
		f, err := open()
		if err != nil {
			return nil, err
		}
		m.files = append(m.files, f)
	}
	disks := []string{readOnly, readOnly, writable}
	if images != nil {
		disks = append(disks, readOnly)
	}
	return append(o.hardware(ctx, k.Path, initrd, disks),
		"-chardev", "file,id=console,path="+strings.ReplaceAll(m.console(), ",", ",,"), "-serial", "chardev:console",
	), nil
}

// What QEMU's option readonly says of a disk.
const (
	readOnly = "on"
	writable = "off"
)

// hardware is QEMU's command line but for the console. The disks are
// descriptors from 3, the port is the one after them.
func (o *options) hardware(ctx context.Context, kernel, initrd string, disks []string) []string {
	accel, cpu, cpus := "kvm", "host", min(runtime.NumCPU(), 4)
	if err := vmm.HardwareKVM(ctx); err != nil {
		// AMD's virtualisation is what QEMU can emulate, nested paging included.
		accel, cpu, cpus = "tcg,thread=multi,tb-size=1024", "max,+svm,la57=off", 1
	}
	if o.cpus == 0 {
		o.cpus = cpus
	}
	args := []string{"-accel", accel, "-cpu", cpu, "-smp", fmt.Sprint(o.cpus), "-m", fmt.Sprintf("%dM", o.memoryMiB),
		"-name", "skep-testbed", "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-machine", "q35,usb=off,sata=off,smbus=off,hpet=off,vmport=off,graphics=off",
		"-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 reboot=t loglevel=4 rdinit=/init mitigations=off random.trust_cpu=on no_timer_check tsc=reliable cryptomgr.notests audit=0",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=driver,fd=%d", 3+len(disks)), "-device", "virtserialport,chardev=driver,name=testbed"}
	for i, kind := range disks {
		args = append(args,
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,cache=unsafe,readonly=%s,file.locking=off,file=/dev/fd/%d", i, kind, 3+i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	return args
}

func (m *machine) spawn(args []string) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "port")
	defer ours.Close()
	defer theirs.Close()
	m.cmd = exec.Command("qemu-system-x86_64", args...)
	m.cmd.ExtraFiles = append(m.files[:len(m.files):len(m.files)], theirs)
	// A group of its own: the terminal's interrupt is the driver's, which brings out results.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	m.cmd.Stdout, m.cmd.Stderr = os.Stderr, os.Stderr
	if err := m.cmd.Start(); err != nil {
		m.cmd = nil
		return fmt.Errorf("starting QEMU: %w", err)
	}
	go func() {
		_ = m.cmd.Wait()
		close(m.ended)
	}()
	link, err := net.FileConn(ours)
	if err != nil {
		return err
	}
	m.session, err = yamux.Client(link, linkConfig())
	return err
}

// linkConfig sets yamux up for a host that may be slow, not gone: its end is
// seen otherwise.
func linkConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive, c.LogOutput = false, io.Discard
	c.ConnectionWriteTimeout = 24 * time.Hour
	c.StreamOpenTimeout = 0
	return c
}

// connect waits until the host's init answers.
func (m *machine) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("it did not answer within %v", bootLimit))
	defer cancel()
	answered := make(chan error, 1)
	go func() { // ends with the session
		_, err := m.session.Ping()
		answered <- err
	}()
	select {
	case err := <-answered:
		return err
	case <-m.ended:
		return errors.New("QEMU ended")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// silence is for how long a host may not answer.
const silence = 2 * time.Minute

// watchOver ends a host that hangs, as an emulated one with several processors
// may: commands in it then fail at once.
func (m *machine) watchOver() {
	for {
		select {
		case <-m.session.CloseChan():
			return
		case <-time.After(silence / 12):
		}
		answered := make(chan error, 1)
		go func() { // ends with the session
			_, err := m.session.Ping()
			answered <- err
		}()
		select {
		case <-answered:
		case <-time.After(silence):
			say("the host has not answered for %v: it hangs, and is ended", silence)
			_ = m.session.Close()
		}
	}
}

// dial opens a connection to the host's init.
func (m *machine) dial() (net.Conn, error) { return m.session.Open() }

// close ends the host. What it has written is gone.
func (m *machine) close() error {
	var err error
	if m.session != nil {
		err = m.session.Close()
	}
	m.watch.Wait()
	if m.cmd != nil {
		_ = m.cmd.Process.Kill() // it may have ended
		<-m.ended
	}
	for _, f := range m.files {
		err = errors.Join(err, f.Close())
	}
	m.files = nil
	return errors.Join(err, os.RemoveAll(filepath.Join(m.runDir, "initramfs")))
}
