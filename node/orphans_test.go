package node

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/cgroup"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/vmm"
)

// orphanRoot, in the environment, makes the test binary a process that wipes its
// environment and arguments, changes its root to the directory named, becomes the
// user orphanUser, and goes on until it is killed.
const (
	orphanRoot = "SKEP_TEST_ORPHAN_ROOT"
	orphanUser = "SKEP_TEST_ORPHAN_USER"
)

func beOrphan() error {
	if err := wipe(); err != nil {
		return err
	}
	uid, err := strconv.Atoi(os.Getenv(orphanUser)) // Go has a copy of its own
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Chroot(os.Getenv(orphanRoot)), os.Chdir("/"), syscall.Setuid(uid)); err != nil {
		return err
	}
	fmt.Println("up")
	time.Sleep(time.Hour)
	return nil
}

// wipe overwrites environment and arguments where the kernel shows them.
func wipe() error {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	const argStart = 48
	for _, n := range []int{argStart, argStart + 2} {
		from, err1 := strconv.ParseInt(fields[n-3], 10, 64)
		to, err2 := strconv.ParseInt(fields[n-2], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if _, err := mem.WriteAt(make([]byte, to-from), from); err != nil {
			return err
		}
	}
	return nil
}

// orphan is a process that a crashed daemon might have left.
type orphan struct {
	cmd    *exec.Cmd
	exited chan error // what init would see
}

func startOrphan(t *testing.T, cmd *exec.Cmd) *orphan {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	o := &orphan{cmd, make(chan error, 1)}
	go func() { o.exited <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return o
}

// ended waits for its end by a signal.
func (o *orphan) ended(t *testing.T) {
	t.Helper()
	select {
	case err := <-o.exited:
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the orphan ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the orphan lives")
	}
}

func (o *orphan) lives(t *testing.T) {
	t.Helper()
	select {
	case err := <-o.exited:
		t.Errorf("another's process ended: %v", err)
	default:
	}
}

func TestOrphansAreEnded(t *testing.T) {
	w := newWorld(t)
	start := func(env string) *orphan {
		cmd := exec.Command("sh", "-c", "echo up; exec sleep 300")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), env}
		return startOrphan(t, cmd)
	}
	cfg, err := Config{DataDir: w.dir}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	ours := start(cfg.mark())
	other := start(cfg.mark() + "2") // of a data directory whose name begins the same
	w.open(t, nil)
	ours.ended(t)
	other.lives(t)
}

// A VMM that was taken over by its guest can overwrite the mark, but not where it
// is: in its root directory, its network slot, its cgroup.
func TestOrphansThatHideAreEnded(t *testing.T) {
	testenv.Need(t, "root")
	w := newWorld(t)
	cfg, err := Config{DataDir: w.dir, Limits: vmm.Limits{CgroupRoot: cgroup.Root()}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	start := func(root string, uid int, attr *syscall.SysProcAttr) *orphan {
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{cfg.mark(), orphanRoot + "=" + root, orphanUser + "=" + strconv.Itoa(uid)}
		cmd.SysProcAttr = attr
		return startOrphan(t, cmd)
	}
	root := filepath.Join(cfg.RunDir, newID("i-"), "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	inRoot := start(root, cfg.UIDBase+7, nil)
	inSlot := start("/", cfg.UIDBase+7, nil)
	operator := start("/", 0, nil)            // who looks around in a slot
	another := start("/", cfg.UIDBase+7, nil) // of another data directory
	var inGroup *orphan
	if cfg.Limits.CgroupRoot != "" {
		g, err := cgroup.Create(cfg.Limits.CgroupRoot, newID("i-"), cgroup.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		f, err := g.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		inGroup = start("/", cfg.UIDBase+7, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())})
	}
	deps := w.deps()
	deps.Inhabitants = func() ([]int, error) {
		return []int{inSlot.cmd.Process.Pid, operator.cmd.Process.Pid}, nil
	}
	n, err := Open(t.Context(), Config{DataDir: w.dir, Limits: vmm.Limits{CgroupRoot: cgroup.Root()}}, deps)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close(t.Context())
	inRoot.ended(t)
	inSlot.ended(t)
	if inGroup != nil {
		inGroup.ended(t)
		if left := n.instancesIn(cfg.Limits.CgroupRoot); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	} else {
		t.Log("no cgroup v2 here; run as root: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	operator.lives(t)
	another.lives(t)
}

// What of a crashed daemon's cannot be ended or removed is told of; it blocks no
// start for good.
func TestWhatACrashLeftBlocksNoStart(t *testing.T) {
	testenv.Need(t, "root")
	w := newWorld(t)
	cfg, err := Config{DataDir: w.dir, Limits: vmm.Limits{CgroupRoot: t.TempDir()}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	busy := filepath.Join(cfg.RunDir, newID("i-"))
	for _, dir := range []string{busy, filepath.Join(cfg.Limits.CgroupRoot, newID("i-"), "more")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("busy", busy, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(busy, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	var said bytes.Buffer
	deps := w.deps()
	deps.Log = slog.New(slog.NewTextHandler(&said, nil))
	n, err := Open(t.Context(), Config{DataDir: w.dir, UIDBase: -1, Limits: vmm.Limits{CgroupRoot: filepath.Dir(cfg.Limits.CgroupRoot)}}, deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, want := range []string{busy, cfg.Limits.CgroupRoot} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("nothing is said of %s:\n%s", want, said.String())
		}
	}
}
