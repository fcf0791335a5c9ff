package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Process is what the host wants run beside the function, or, in a guest that
// was started without one, as what the guest is for. It runs in the function's
// root and among its processes, and is frozen with them for a snapshot. A field
// that is empty is as the function has it.
type Process struct {
	// ID names the process to attach to it later: 1 to 128 letters, digits, ".",
	// "_" and "-", of no other process that runs.
	ID   string   `json:"id"`
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"` // over the function's
	Dir  string   `json:"dir,omitempty"`
	// MakeDir makes a directory that is missing; without it that is an error.
	MakeDir bool   `json:"make_dir,omitempty"`
	User    string `json:"user,omitempty"` // as an image names it: "name", "uid", "name:group", "uid:gid"
	IDs     *IDs   `json:"ids,omitempty"`  // in place of User: numbers, which no file is asked for
	// TTY gives the process a terminal, of so many rows and columns, as its
	// controlling one; all that is written there comes as stdout.
	TTY bool `json:"tty,omitempty"`
	// Console makes the terminal the root's /dev/console, too.
	Console bool   `json:"console,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
	Cols    uint16 `json:"cols,omitempty"`
	Stdin   bool   `json:"stdin,omitempty"` // the host will write to it; else it is /dev/null, or a silent terminal
	// Keep lets the process go on when its connection ends. What it writes then
	// waits in its pipes until somebody attaches to it, who is also told of its end
	// when that has been, and nobody has noted it. Without it the process is ended: SIGHUP, then SIGKILL to
	// all that it has started.
	Keep            bool          `json:"keep,omitempty"`
	Rlimits         []Rlimit      `json:"rlimits,omitempty"`
	NoNewPrivileges bool          `json:"no_new_privileges,omitempty"`
	Capabilities    *Capabilities `json:"capabilities,omitempty"`
	OOMScoreAdj     *int          `json:"oom_score_adj,omitempty"`
	Umask           *uint32       `json:"umask,omitempty"`
	// Init makes it the first of a PID namespace, as a container's process is: its
	// pid there is 1, those that are run after it are in there, too, and all end
	// with it. Without one processes see the guest's, whose first is the agent.
	Init bool `json:"init,omitempty"`
	// Neighbours says that others serve at the loopback of the network namespace that
	// the guest answers for: what nobody in the guest serves at 127.0.0.1, its processes
	// reach there, from now on.
	Neighbours bool `json:"neighbours,omitempty"`
}

// IDs are who a process runs as, in numbers.
type IDs struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"` // additional ones
}

// Rlimit bounds a resource, as an OCI runtime's specification has it.
type Rlimit struct {
	Type string `json:"type"` // "RLIMIT_NOFILE"
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Capabilities are sets of "CAP_…", as an OCI runtime's specification has them.
type Capabilities struct {
	Bounding    []string `json:"bounding,omitempty"`
	Effective   []string `json:"effective,omitempty"`
	Permitted   []string `json:"permitted,omitempty"`
	Inheritable []string `json:"inheritable,omitempty"`
	Ambient     []string `json:"ambient,omitempty"`
}

// ProcessExit says how a process ended.
type ProcessExit struct {
	Code     int   // its exit status; 128 and the signal's number where one ended it, as shells have it
	Signal   int   // that ended it; 0: none
	OOM      bool  // the guest's kernel ended it for want of memory
	UnixNano int64 // when, by the guest's clock
}

// Bounds of what the host asks for. Beyond them a connection waits for no other:
// it is refused.
const (
	maxID       = 128
	MaxPath     = 4 << 10 // bytes of a path that is copied from or to
	StdinWindow = 64 << 10
	// MaxProcesses bounds the processes and copies at once in a guest, MaxKept the
	// ends of processes that nobody has asked for yet.
	MaxProcesses = 256
	MaxKept      = 64
)

// validID is not a regular expression: their package would be a tenth of the agent.
func validID(id string) bool {
	for _, c := range []byte(id) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return len(id) >= 1 && len(id) <= maxID
}

// Validate says what is wrong with a process, without looking into any guest.
func (p Process) Validate() error {
	switch {
	case !validID(p.ID):
		return fmt.Errorf("process id %q: want 1 to %d letters, digits, \".\", \"_\" and \"-\"", p.ID, maxID)
	case len(p.Argv) == 0 || p.Argv[0] == "":
		return errors.New("no command given")
	case p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000):
		return fmt.Errorf("oom_score_adj %d: want -1000 to 1000", *p.OOMScoreAdj)
	case p.Umask != nil && *p.Umask > 0o777:
		return fmt.Errorf("umask %#o: want at most 0777", *p.Umask)
	}
	return nil
}

// Refusal is the class of an error of the guest's about a process or a copy.
type Refusal byte

const (
	RefusedOther         Refusal = 0
	RefusedNotFound      Refusal = 1 // there is no such program
	RefusedNotExecutable Refusal = 2 // it is there, but cannot be run
	RefusedDirectory     Refusal = 3 // the working directory is missing, or none
	RefusedUser          Refusal = 4 // no such user or group
	RefusedNoProcess     Refusal = 5 // nothing of that id to attach to
	RefusedBusy          Refusal = 6 // the id is taken, or the guest holds too much
	RefusedOpened        Refusal = 7 // something was opened that is watched
	lastRefusal                  = RefusedOpened
)

// RefusedError is the guest's answer to what it did not do.
type RefusedError struct {
	Why  Refusal
	Text string
}

func (e *RefusedError) Error() string { return e.Text }

// Encode returns the payload of a KindRefused frame.
func (e *RefusedError) Encode() []byte {
	return append([]byte{byte(e.Why)}, e.Text[:min(len(e.Text), maxText-1)]...)
}

// DecodeRefused reads what Encode returns.
func DecodeRefused(p []byte) (*RefusedError, error) {
	if len(p) < 1 || Refusal(p[0]) > lastRefusal {
		return nil, errors.New("malformed refusal")
	}
	return &RefusedError{Refusal(p[0]), string(p[1:])}, nil
}

const (
	resizeLen  = 4
	signalLen  = 2
	startedLen = 4
	takenLen   = 4
	endedLen   = 11
	roomLen    = 5
)

// EncodeResize returns the payload of a KindResize frame.
func EncodeResize(rows, cols uint16) []byte {
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, rows), cols)
}

// DecodeResize reads what EncodeResize returns.
func DecodeResize(p []byte) (rows, cols uint16, err error) {
	if len(p) != resizeLen {
		return 0, 0, errors.New("malformed size of a terminal")
	}
	return binary.LittleEndian.Uint16(p), binary.LittleEndian.Uint16(p[2:]), nil
}

// maxSignal is the last of the realtime signals.
const maxSignal = 64

// SignalTo says who is to get a signal.
type SignalTo byte

const (
	ToProcess SignalTo = iota
	ToAll              // the process and everything that it has started
	// ToBeginning is a process to which the signal was sent before it ran. The kernel
	// keeps from the first of a PID namespace what it does not handle: one that does not
	// handle it yet is ended as any other would be.
	ToBeginning
)

// EncodeSignal returns the payload of a KindSignal frame.
func EncodeSignal(signal int, to SignalTo) ([]byte, error) {
	if signal < 1 || signal > maxSignal {
		return nil, fmt.Errorf("signal %d: want 1 to %d", signal, maxSignal)
	}
	return []byte{byte(signal), byte(to)}, nil
}

// DecodeSignal reads what EncodeSignal returns.
func DecodeSignal(p []byte) (signal int, to SignalTo, err error) {
	if len(p) != signalLen || p[0] < 1 || p[0] > maxSignal || SignalTo(p[1]) > ToBeginning {
		return 0, 0, errors.New("malformed signal")
	}
	return int(p[0]), SignalTo(p[1]), nil
}

// EncodeCount returns the payload of a KindStarted (a pid) or KindTaken (bytes)
// frame.
func EncodeCount(n int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }

// DecodeCount reads what EncodeCount returns.
func DecodeCount(p []byte) (int, error) {
	if len(p) != takenLen {
		return 0, errors.New("malformed count")
	}
	return int(binary.LittleEndian.Uint32(p)), nil
}

// EncodeRoom returns the payload of a KindRoom frame, for KindStdout or KindStderr.
func EncodeRoom(k Kind, bytes int) []byte {
	return binary.LittleEndian.AppendUint32([]byte{byte(k)}, uint32(bytes))
}

// DecodeRoom reads what EncodeRoom returns.
func DecodeRoom(p []byte) (k Kind, bytes int, err error) {
	if len(p) != roomLen || Kind(p[0]) != KindStdout && Kind(p[0]) != KindStderr {
		return 0, 0, errors.New("malformed room for output")
	}
	return Kind(p[0]), int(binary.LittleEndian.Uint32(p[1:])), nil
}

// Encode returns the payload of a KindEnded frame.
func (e ProcessExit) Encode() []byte {
	b := []byte{byte(e.Code), byte(e.Signal), 0}
	if e.OOM {
		b[2] = 1
	}
	return binary.LittleEndian.AppendUint64(b, uint64(e.UnixNano))
}

// DecodeProcessExit reads what Encode returns.
func DecodeProcessExit(p []byte) (ProcessExit, error) {
	if len(p) != endedLen || p[1] > maxSignal || p[2] > 1 || p[1] != 0 && p[0] != 128+p[1] {
		return ProcessExit{}, errors.New("malformed end of a process")
	}
	return ProcessExit{Code: int(p[0]), Signal: int(p[1]), OOM: p[2] == 1, UnixNano: int64(binary.LittleEndian.Uint64(p[3:]))}, nil
}
