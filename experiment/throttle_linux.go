package experiment

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A throttle limits what this process and the VMMs that it starts read from a
// device, by a control group of its own.
type throttle struct {
	root string // of the hierarchy
	v2   bool
}

const slowGroup = "skep-slow-"

// findThrottle finds a hierarchy that can limit reads.
func findThrottle() (*throttle, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("limiting a disk needs root")
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control"); err == nil && strings.Contains(string(b), "io") {
		return &throttle{"/sys/fs/cgroup", true}, nil
	}
	if _, err := os.Stat("/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device"); err == nil {
		return &throttle{"/sys/fs/cgroup/blkio", false}, nil
	}
	return nil, errors.New("no control group can limit reads here: neither io of cgroup v2 (enabled in the root's subtree_control) nor blkio.throttle of v1")
}

// slowed is this process in the group, until end.
type slowed struct {
	Storage
	dir, home string
}

// slowDown limits reads from the device of path. Groups that an interrupted run
// left are removed first; they limit nobody, since their processes are gone.
func slowDown(path string, limit Limit) (_ *slowed, err error) {
	t, err := findThrottle()
	if err != nil {
		return nil, err
	}
	left, _ := filepath.Glob(filepath.Join(t.root, slowGroup+"*"))
	for _, dir := range left {
		_ = os.Remove(dir) // fails while somebody is in it, who is not ours
	}
	device, err := deviceOf(path)
	if err != nil {
		return nil, fmt.Errorf("finding the disk of %s: %w", path, err)
	}
	home, err := t.home()
	if err != nil {
		return nil, err
	}
	s := &slowed{dir: filepath.Join(t.root, slowGroup+strconv.Itoa(os.Getpid())), home: home}
	s.Storage = Storage{Method: "blkio.throttle of cgroup v1", Device: device, BPS: limit.BPS, IOPS: limit.IOPS}
	if err := os.Mkdir(s.dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making a control group: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.end())
		}
	}()
	rules := map[string]string{
		"blkio.throttle.read_bps_device":  fmt.Sprintf("%s %d", device, limit.BPS),
		"blkio.throttle.read_iops_device": fmt.Sprintf("%s %d", device, limit.IOPS),
	}
	if t.v2 {
		s.Method = "io.max of cgroup v2"
		rules = map[string]string{"io.max": fmt.Sprintf("%s rbps=%d riops=%d", device, limit.BPS, limit.IOPS)}
	}
	for file, rule := range rules {
		if err := os.WriteFile(filepath.Join(s.dir, file), []byte(rule), 0); err != nil {
			return nil, fmt.Errorf("limiting reads: %w", err)
		}
	}
	return s, s.move(s.dir)
}

// home is the group that this process is in.
func (t *throttle) home() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (t.v2 && f[1] == "" || !t.v2 && f[1] == "blkio") {
			return filepath.Join(t.root, f[2]), nil
		}
	}
	return t.root, nil
}

func (s *slowed) move(to string) error {
	if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return fmt.Errorf("moving to control group %s: %w", to, err)
	}
	return nil
}

// end moves this process back and removes the group.
func (s *slowed) end() error {
	err := s.move(s.home)
	if rerr := os.Remove(s.dir); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("removing control group %s: %w", s.dir, rerr))
	}
	return err
}

// deviceOf is the whole disk that a file is on, as major:minor.
func deviceOf(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", err
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	dir, err := filepath.EvalSymlinks(filepath.Join("/sys/dev/block", dev))
	if err != nil {
		return "", fmt.Errorf("%s is on no block device of its own: %w", path, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
		return strings.TrimSpace(string(b)), err
	}
	return dev, nil
}
