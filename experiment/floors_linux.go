package experiment

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/memory/replay"
)

// Names of the floors of a start, beside those of a replay.
const (
	floorExec    = "exec"    // fork, exec and exit of a static program of one page
	floorProgram = "program" // the VMM's program, asked for its version
	floorVMM     = "vmm"     // the VMM without a machine, until its control channel answers
	floorState   = "state"   // device state, past the page cache
	floorUnix    = "unix"    // a round trip over a Unix socket
	floorTCP     = "tcp"     // a round trip over loopback
	floorHTTP    = "http"    // a request over loopback to a server that answers at once
)

// startFloors measures what the parts of a start take at least. vmm is the VMM's
// program, state the file of device state.
func startFloors(ctx context.Context, vmm, state string) ([]replay.Floor, error) {
	var out []replay.Floor
	for _, f := range []struct {
		name    string
		measure func() (time.Duration, error)
	}{
		{floorExec, func() (time.Duration, error) { return execFloor(ctx) }},
		{floorProgram, func() (time.Duration, error) { return programFloor(ctx, vmm) }},
		{floorVMM, func() (time.Duration, error) { return vmmFloor(ctx, vmm) }},
		{floorState, func() (time.Duration, error) { return stateFloor(state) }},
		{floorUnix, func() (time.Duration, error) { return roundTrip(unixPair) }},
		{floorTCP, func() (time.Duration, error) { return roundTrip(tcpPair) }},
		{floorHTTP, func() (time.Duration, error) { return httpFloor(ctx) }},
	} {
		took, err := f.measure()
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		out = append(out, replay.Floor{Name: f.name, Total: took, Each: took})
	}
	return out, nil
}

// smallest is a program that ends at once: an ELF header, one segment, and
//
//	xor edi, edi; mov eax, exit_group; syscall
func smallest() []byte {
	const base, start = 0x400000, 64 + 56
	code := []byte{0x31, 0xff, 0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05}
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le := func(size int, v uint64) {
		for range size {
			b = append(b, byte(v))
			v >>= 8
		}
	}
	le(2, 2)          // executable
	le(2, 62)         // x86-64
	le(4, 1)          // version
	le(8, base+start) // entry
	le(8, 64)         // program headers
	le(8, 0)          // section headers
	le(4, 0)          // flags
	le(2, 64)         // size of this header
	le(2, 56)         // and of a program header,
	le(2, 1)          // of which there is one
	le(6, 0)          // no sections
	le(4, 1)          // load,
	le(4, 5)          // to be read and executed,
	le(8, 0)          // from the file's beginning
	le(8, base)       // to there
	le(8, base)       //
	le(8, start+9)    // so much of the file
	le(8, start+9)    // and of memory
	le(8, 0x1000)     // aligned
	return append(b, code...)
}

func execFloor(ctx context.Context) (time.Duration, error) {
	if runtime.GOARCH != "amd64" {
		return 0, errors.ErrUnsupported
	}
	dir, err := os.MkdirTemp("", "skep-floor-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "smallest")
	if err := os.WriteFile(path, smallest(), 0o700); err != nil {
		return 0, err
	}
	start := time.Now()
	err = exec.CommandContext(ctx, path).Run()
	return time.Since(start), err
}

func programFloor(ctx context.Context, vmm string) (time.Duration, error) {
	if vmm == "" {
		return 0, errors.ErrUnsupported
	}
	start := time.Now()
	err := exec.CommandContext(ctx, vmm, "--version").Run()
	return time.Since(start), err
}

// vmmFloor is QEMU's alone: Firecracker without a machine is what a start spawns.
func vmmFloor(ctx context.Context, vmm string) (_ time.Duration, err error) {
	if !strings.HasPrefix(filepath.Base(vmm), "qemu") {
		return 0, errors.ErrUnsupported
	}
	cmd := exec.CommandContext(ctx, vmm, "-no-user-config", "-nodefaults", "-display", "none", "-S", "-M", "none", "-qmp", "stdio")
	var words bytes.Buffer
	cmd.Stderr = &words
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // of one that was killed
	}()
	if _, err := io.WriteString(in, `{"execute":"qmp_capabilities"}`); err != nil {
		return 0, fmt.Errorf("%w: %s", err, words.Bytes())
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var answer struct{ Return *struct{} }
		if json.Unmarshal(lines.Bytes(), &answer) == nil && answer.Return != nil {
			return time.Since(start), nil
		}
	}
	return 0, fmt.Errorf("it has not answered: %w", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}

func stateFloor(path string) (time.Duration, error) {
	f, err := replay.DiskFloor(path)
	return f.Total, err
}

// roundTrip is the median time of a byte there and back, between two threads that
// block in the kernel.
func roundTrip(pair func() (near, far int, err error)) (time.Duration, error) {
	near, far, err := pair()
	if err != nil {
		return 0, err
	}
	defer unix.Close(near)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(far)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var b [1]byte
		for {
			if n, err := unix.Read(far, b[:]); n != 1 || err != nil {
				return
			}
			if _, err := unix.Write(far, b[:]); err != nil {
				return
			}
		}
	}()
	defer func() { _ = unix.Shutdown(near, unix.SHUT_RDWR); <-done }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return repeated(200, func() error {
		var b [1]byte
		if _, err := unix.Write(near, b[:]); err != nil {
			return err
		}
		if n, err := unix.Read(near, b[:]); n != 1 || err != nil {
			return errors.Join(io.ErrUnexpectedEOF, err)
		}
		return nil
	})
}

// repeated is the median time of n calls.
func repeated(n int, call func() error) (time.Duration, error) {
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		if err := call(); err != nil {
			return 0, err
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[n/2], nil
}

func unixPair() (near, far int, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	return p[0], p[1], err
}

func tcpPair() (near, far int, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, err
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return 0, 0, err
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		return 0, 0, err
	}
	defer b.Close()
	if near, err = blocking(a); err != nil {
		return 0, 0, err
	}
	if far, err = blocking(b); err != nil {
		unix.Close(near)
		return 0, 0, err
	}
	return near, far, nil
}

// blocking is a descriptor of a connection of its own, on which calls block.
func blocking(c net.Conn) (int, error) {
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	return n, unix.SetNonblock(n, false)
}

func httpFloor(ctx context.Context) (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") }), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	return repeated(100, func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String(), nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return errors.Join(err, resp.Body.Close())
	})
}
