// Package memo keeps what was found out about files, so that the next process need
// not find it out again: a digest, or what a program says of itself. An answer
// holds while every file that it was found in is what it was.
//
// Short-lived processes that start microVMs use it: a shim of containerd's lives
// as long as one container.
package memo

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Dir is a directory of answers, which several processes may use at once. In ""
// nothing is kept. Who can write to it is believed.
type Dir string

// kept is one answer on disk.
type kept[T any] struct {
	Question string `json:"question"`
	Files    []file `json:"files"`
	Answer   T      `json:"answer"`
}

// file is what a file was. Whoever changes its content changes its Changed, which
// cannot be set.
type file struct {
	Path    string `json:"path"`
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"` // 0: there is none
	Size    int64  `json:"size"`
	Changed int64  `json:"changed_ns"` // ctime
}

// settled is for how long a file must not have changed, when find begins, for an
// answer to be kept: a change while it reads, or within one tick of the file
// system's clock, would go unseen.
var settled = time.Second

// Ask returns the answer to the question: from d if it is there and holds, else
// from find, which calls read with each file that it depends on, or directory for
// the names in it; that one is missing counts, too. Errors are find's, and are not
// kept.
func Ask[T any](d Dir, question string, find func(read func(path string)) (T, error)) (T, error) {
	var path string
	if d != "" {
		sum := sha256.Sum256([]byte(question))
		path = filepath.Join(string(d), hex.EncodeToString(sum[:8])+".json")
		if k, ok := load[T](path, question); ok {
			return k.Answer, nil
		}
	}
	now := time.Now()
	k := kept[T]{Question: question}
	sure := true
	answer, err := find(func(name string) {
		f, err := look(name)
		if err != nil || now.Sub(time.Unix(0, f.Changed)) < settled {
			sure = false
		}
		k.Files = append(k.Files, f)
	})
	if err != nil || !sure || d == "" {
		return answer, err
	}
	k.Answer = answer
	if b, err := json.Marshal(k); err == nil && os.MkdirAll(string(d), 0o700) == nil {
		_ = atomicfile.WriteUnsynced(path, b, 0o600) // else it is found out again
	}
	return answer, nil
}

func load[T any](path, question string) (k kept[T], ok bool) {
	b, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(b, &k) != nil || k.Question != question {
		return k, false
	}
	for _, was := range k.Files {
		if is, err := look(was.Path); err != nil || is != was {
			return k, false
		}
	}
	return k, true
}

func look(path string) (file, error) {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, fs.ErrNotExist):
		return file{Path: path}, nil
	case err != nil:
		return file{}, err
	}
	return file{Path: path, Device: uint64(st.Dev), Inode: st.Ino, Size: st.Size, Changed: st.Ctim.Nano()}, nil
}
