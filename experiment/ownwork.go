package experiment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/experiment/stat"
	"github.com/skep-dev/skep/image"
)

// Calls of a function's server that runs on this machine itself: those that warm
// it up and those that are measured, of each input.
const (
	warmUps   = 3
	workCalls = 7
)

// ownWork is what a function's own work takes with each of its inputs, from 1 on:
// the medians of warm calls of its server, run on this machine in the image's own
// root. inputs is where it gets its inputs from, "" if from nowhere.
func ownWork(ctx context.Context, img image.Image, inputs string) (_ [Inputs + 1]time.Duration, err error) {
	var work [Inputs + 1]time.Duration
	b, err := startBare(ctx, img, inputs)
	if err != nil {
		return work, err
	}
	defer func() { err = errors.Join(err, b.end()) }()
	for input := 1; input <= Inputs; input++ {
		var took []float64
		for i := range warmUps + workCalls {
			start := time.Now()
			if err := b.call(ctx, input); err != nil {
				return work, err
			}
			if i >= warmUps {
				took = append(took, float64(time.Since(start)))
			}
		}
		work[input] = time.Duration(stat.Median(took))
	}
	return work, nil
}

// loopDevices says why there are none, nil where there are.
func loopDevices() error {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return fmt.Errorf("no loop devices: %w", err)
	}
	return nil
}

// bare is a function's server as a process of this machine: the interpreter, the
// libraries and the code of its image, and no VM.
type bare struct {
	url    string
	dir    string // where its root is, in its own mount namespace
	cmd    *exec.Cmd
	said   bytes.Buffer  // to be read when it has ended
	ended  chan struct{} // closed when it has
	status error         // valid then
	client http.Client
}

// bareRoot is the root that a guest has: the image's disk, read-only, under an
// overlay in memory. All mounts are in a namespace that goes with the process.
const bareRoot = `set -e
d=$1 disk=$2 user=$3; shift 3
mount -t tmpfs tmpfs "$d"
mkdir "$d/disk" "$d/upper" "$d/work" "$d/root"
mount -t ext4 -o ro,loop "$disk" "$d/disk"
mount -t overlay -o "lowerdir=$d/disk,upperdir=$d/upper,workdir=$d/work" overlay "$d/root"
mkdir -p "$d/root/dev" "$d/root/proc" "$d/root/tmp"
mount --bind /dev "$d/root/dev"
mount -t proc proc "$d/root/proc"
exec chroot ${user:+--userspec="$user"} "$d/root" "$@"`

// startBare starts a function's server and waits until its port is open.
func startBare(ctx context.Context, img image.Image, inputs string) (_ *bare, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // asked for and given back
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	l.Close()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	b := &bare{url: "http://" + address, ended: make(chan struct{})}
	if b.dir, err = os.MkdirTemp("", "skep-bare-"); err != nil {
		return nil, err
	}
	args := append([]string{"--mount", "--pid", "--fork", "--kill-child", "sh", "-c", bareRoot, "sh", b.dir, img.Disk, img.Config.User}, img.Config.Entrypoint...)
	b.cmd = exec.Command("unshare", append(args, img.Config.Cmd...)...)
	b.cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, img.Config.Env...)
	b.cmd.Env = append(b.cmd.Env, "PORT="+port)
	if inputs != "" {
		b.cmd.Env = append(b.cmd.Env, "S3_ENDPOINT=http://"+inputs)
	}
	b.cmd.Stdout, b.cmd.Stderr = &b.said, &b.said
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // an interrupt is for skep
	if err := b.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting its server on this machine: %w", err), os.Remove(b.dir))
	}
	if err := b.await(ctx, address); err != nil {
		return nil, errors.Join(err, b.end())
	}
	return b, nil
}

// start starts the process, on a thread that lives as long: the signal at our
// death is sent at that of the thread.
func (b *bare) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := b.cmd.Start()
		started <- err
		if err == nil {
			b.status = b.cmd.Wait()
			close(b.ended)
		}
	}()
	return <-started
}

// await waits for the port to open, which it does when all that is slow is loaded.
func (b *bare) await(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-b.ended:
			return fmt.Errorf("its server ended on this machine: %w: %s", b.status, strings.TrimSpace(b.said.String()))
		case <-ctx.Done():
			return fmt.Errorf("waiting for its server on this machine: %w", context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (b *bare) call(ctx context.Context, input int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/?input=%d", b.url, input), nil)
	if err != nil {
		return err
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return fmt.Errorf("calling its server on this machine: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.300s", resp.Status, body)
	}
	if err != nil {
		return fmt.Errorf("its server on this machine, input %d: %w", input, err)
	}
	return nil
}

// end kills the server; its mounts go with it.
func (b *bare) end() error {
	b.client.CloseIdleConnections()
	_ = b.cmd.Process.Kill() // it may have ended
	<-b.ended
	return os.Remove(b.dir)
}
