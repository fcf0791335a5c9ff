package snapshot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// stamp identifies a file's content without reading it: any write to the file
// changes its ctime, which nobody can set back. A part whose stamp is the one
// that was noted after its digest had been checked need not be read again.
type stamp struct {
	Dev   uint64 `json:"dev"`
	Ino   uint64 `json:"ino"`
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime_ns"`
	Ctime int64  `json:"ctime_ns"`
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{Dev: uint64(st.Dev), Ino: st.Ino, Size: st.Size,
		Mtime: unix.TimespecToNsec(st.Mtim), Ctime: unix.TimespecToNsec(st.Ctim)}
}

// stamps are those of every part, kept in verified.json.
type stamps map[string]stamp

func statParts(dir string) (stamps, error) {
	s := stamps{}
	for _, name := range []string{PartState, PartMemory} {
		var st unix.Stat_t
		path := filepath.Join(dir, name)
		if err := unix.Lstat(path, &st); err != nil {
			return nil, fmt.Errorf("looking at %s: %w", path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil, fmt.Errorf("%s is not a regular file", path)
		}
		s[name] = stampOf(&st)
	}
	return s, nil
}

func (s stamps) equal(o stamps) bool {
	if len(s) != len(o) || len(s) == 0 {
		return false
	}
	for name, v := range s {
		if o[name] != v {
			return false
		}
	}
	return true
}

// readStamps returns what was noted, or nothing: then the parts are checked.
func readStamps(dir string) stamps {
	b, err := os.ReadFile(filepath.Join(dir, stampName))
	if err != nil || len(b) > maxManifest {
		return nil
	}
	var s stamps
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if d.Decode(&s) != nil {
		return nil
	}
	return s
}

// writeStamps notes them. It needs no fsync: lost, they cost one check.
func writeStamps(dir string, s stamps) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.WriteUnsynced(filepath.Join(dir, stampName), b, 0o600)
}

// diskBytes is what the files of a snapshot occupy.
func diskBytes(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			total += st.Blocks * 512
		}
		return nil // what is gone occupies nothing
	})
	return total
}
