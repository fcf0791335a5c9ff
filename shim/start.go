package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"

	"github.com/skep-dev/skep/containerd"
	"github.com/skep-dev/skep/internal/filelock"
)

// call is how containerd calls the program.
type call struct {
	namespace, id, address string
	debug, version         bool
	action                 string
}

// arguments reads a command line. What it does not know is containerd's
// library's to judge.
func arguments(args []string) (c call) {
	fs := flag.NewFlagSet("containerd-shim-skep-v2", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&c.namespace, "namespace", "", "")
	fs.StringVar(&c.id, "id", "", "")
	fs.StringVar(&c.address, "address", "", "")
	fs.BoolVar(&c.debug, "debug", false, "")
	fs.BoolVar(&c.version, "version", false, "")
	fs.BoolVar(&c.version, "v", false, "")
	for _, known := range []string{"socket", "debug-socket", "bundle", "publish-binary"} {
		fs.String(known, "", "")
	}
	fs.Bool("info", false, "")
	if fs.Parse(args) != nil {
		return call{}
	}
	c.action = fs.Arg(0)
	return c
}

// addressFile is where containerd 1.6 and 1.7 look for a shim's address when
// they are started again. The shim writes it.
const addressFile = "address"

// groups are the annotations by which containers share a shim: a pod's.
var groups = []string{"io.containerd.runc.v2.group", annotationSandbox}

// start finds the shim of the container's pod, or starts one, and returns its
// address. It is called in the container's bundle.
func start(ctx context.Context, c call) (address string, err error) {
	if c.namespace == "" || c.id == "" {
		return "", errors.New("starting a shim: -namespace and -id must be given")
	}
	group, err := groupOf("config.json", c.id)
	if err != nil {
		return "", fmt.Errorf("starting the shim of container %s: %w", c.id, err)
	}
	ctx = namespaces.WithNamespace(ctx, c.namespace)
	address, err = shim.CreateSocketAddress(ctx, socketDir, c.address, group, false)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(socketDir, 0o700); err != nil {
		return "", err
	}
	held, err := holdSockets(ctx) // no socket is taken for a dead shim's before it is served
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	l, err := listen(address)
	switch {
	case errors.Is(err, errServing):
		return address, os.WriteFile(addressFile, []byte(address), 0o600)
	case err != nil:
		return "", fmt.Errorf("starting the shim of container %s: %w", c.id, err)
	}
	defer l.Close()
	defer func() {
		if err != nil {
			_ = shim.RemoveSocket(address)
		}
	}()
	if err := os.WriteFile(addressFile, []byte(address), 0o600); err != nil {
		return "", err
	}
	return address, spawn(c, l)
}

var errServing = errors.New("a shim serves there")

// socketDir has the sockets of skep's shims.
var socketDir = containerd.SocketDir

// sweepSockets removes the sockets of shims that were killed: containerd does not
// always tell of one that was before it knew it. It asks all shims, so not when one is
// about to start.
func sweepSockets() {
	owned, err := filelock.Own(socketDir)
	if err != nil {
		return // another does, or begins a shim; the next container's end tries again
	}
	defer func() { _ = owned.Release() }() // closing a descriptor
	entries, _ := os.ReadDir(socketDir)
	for _, e := range entries {
		if address := "unix://" + filepath.Join(socketDir, e.Name()); e.Type() == fs.ModeSocket && dead(address) {
			_ = shim.RemoveSocket(address) // another may have
		}
	}
}

// holdSockets keeps others from sweeping, which does not take them long.
func holdSockets(ctx context.Context) (*filelock.Lock, error) {
	for {
		held, err := filelock.Hold(socketDir)
		if !errors.Is(err, filelock.ErrHeld) {
			return held, err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// dead says that nobody serves a socket. One that is busy is served.
func dead(address string) bool {
	conn, err := shim.AnonDialer(address, 100*time.Millisecond)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// listen opens a shim's socket. One that nobody serves is what a shim left that
// was killed.
func listen(address string) (*net.UnixListener, error) {
	l, err := shim.NewSocket(address)
	switch {
	case err == nil, !shim.SocketEaddrinuse(err):
	case !dead(address):
		return nil, errServing
	default:
		if err := shim.RemoveSocket(address); err != nil {
			return nil, fmt.Errorf("removing the socket of a shim that is gone: %w", err)
		}
		l, err = shim.NewSocket(address)
	}
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the shim's, which inherits it
	return l, nil
}

// spawn starts the shim, which goes on when this process has ended.
func spawn(c call, l *net.UnixListener) error {
	socket, err := l.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"-namespace", c.namespace, "-id", c.id, "-address", c.address}
	if c.debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command(self, args...)
	// A few threads are enough for what a pod asks, and each costs memory.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=4")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the shim: %w", err)
	}
	// A host that runs out of memory is to end what runs in a container before
	// what watches it, and the shim before containerd.
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil && !errors.Is(err, os.ErrPermission) {
		return errors.Join(err, cmd.Process.Kill(), cmd.Process.Release())
	}
	return cmd.Process.Release()
}

// groupOf says whose shim a container's is: its pod's, or its own.
func groupOf(config, id string) (string, error) {
	f, err := os.Open(config)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.NewDecoder(f).Decode(&spec); err != nil {
		return "", fmt.Errorf("reading %s: %w", config, err)
	}
	for _, g := range groups {
		if v := spec.Annotations[g]; v != "" {
			return v, nil
		}
	}
	return id, nil
}

// logLine is for what has no logger yet.
func logLine(format string, a ...any) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "time=%q level=error msg=%q\n", time.Now().Format(time.RFC3339), fmt.Sprintf(format, a...))
	_, _ = os.Stderr.Write(b.Bytes())
}
