package experiment

import (
	"bufio"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
)

// Session is one time that measuring was begun or resumed: the machine, the
// versions and the settings.
type Session struct {
	ID        int       `json:"id"`
	Time      time.Time `json:"time"`
	Skep      string    `json:"skep"`
	VMM       string    `json:"vmm"`
	CPU       string    `json:"cpu"`
	CPUs      int       `json:"cpus"`
	MemoryMiB int64     `json:"memory_mib"`
	Kernel    string    `json:"kernel"`
	Go        string    `json:"go"`
	Disk      string    `json:"disk"`                    // file system and device of the snapshots
	ReadAhead string    `json:"read_ahead_kb,omitempty"` // of that device
	Load      string    `json:"load"`                    // load averages when it began
	Learning  bool      `json:"memory_learning"`
	Settings  Settings  `json:"settings"`
	// Unadvised says that QEMU could not advise huge pages for a mapped snapshot.
	Unadvised bool `json:"unadvised,omitempty"`
}

// Emulated says that guest code was translated by software.
func (s Session) Emulated() bool { return strings.Contains(s.VMM, "tcg") }

// Nested says that the machine itself is emulated, as the testbed's host is, with
// the virtualisation that it offers.
func (s Session) Nested() bool { return strings.Contains(s.CPU, "QEMU TCG") }

// Describe says what the machine is.
func Describe(v api.Version, dataDir string, set Settings) Session {
	s := Session{
		Time: time.Now().UTC(), Skep: strings.TrimSpace(v.Version + " " + v.Commit), VMM: v.VMM,
		CPU: cpuModel(), CPUs: runtime.NumCPU(), Go: runtime.Version(), Settings: set, Unadvised: runtime.GOARCH == "amd64",
	}
	s.Disk, s.ReadAhead = disk(dataDir)
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		s.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		s.MemoryMiB = int64(si.Totalram) * int64(si.Unit) >> 20
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		s.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return s
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// disk names the file system and device below path, and the device's read-ahead.
func disk(path string) (name, readAhead string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", ""
	}
	best, device := -1, ""
	for line := range strings.Lines(string(mounts)) {
		left, right, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(g) < 2 {
			continue
		}
		mount := strings.TrimSuffix(f[4], "/")
		if (path == f[4] || strings.HasPrefix(path, mount+"/")) && len(mount) > best {
			best, name, device = len(mount), g[0]+" on "+g[1], f[2]
		}
	}
	for _, dir := range []string{"queue", "../queue"} { // of a disk, of a partition
		if b, err := os.ReadFile(filepath.Join("/sys/dev/block", device, dir, "read_ahead_kb")); err == nil {
			return name, strings.TrimSpace(string(b))
		}
	}
	return name, ""
}
