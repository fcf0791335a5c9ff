package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
)

// Kind is the first byte of a frame.
type Kind byte

const (
	KindHello   Kind = 1  // agent: Hello, once, when a connection is taken
	KindStart   Kind = 2  // host: Start
	KindClone   Kind = 3  // host: Clone
	KindPrepare Kind = 4  // host: a snapshot is about to be made
	KindStop    Kind = 5  // host: Stop
	KindDone    Kind = 6  // agent: the answer to the host's last frame
	KindReady   Kind = 7  // agent: the function's server answers
	KindExit    Kind = 8  // agent: Exit, the function's process has ended
	KindStdout  Kind = 9  // agent: bytes that the function wrote
	KindStderr  Kind = 10 //
	KindDropped Kind = 11 // agent: Dropped, output that the host was too slow for
	KindTime    Kind = 12 // host: its clock, which the agent's is not to be behind
	KindClock   Kind = 13 // agent: its clock, the answer to each KindTime
)

// Frames on connections to ExecPort; KindStdout and KindStderr are used there,
// too.
const (
	KindExec     Kind = 20 // host: Process, first on its connection
	KindAttach   Kind = 21 // host: the ID of a process, first on its connection
	KindStdin    Kind = 22 // host: bytes for the process, no more than it has room for
	KindEOF      Kind = 23 // host: the end of stdin, or of what is copied in
	KindResize   Kind = 24 // host: the terminal's size
	KindSignal   Kind = 25 // host: a signal, and whom it is for
	KindDetach   Kind = 26 // host: leave the process running
	KindCopyIn   Kind = 27 // host: the directory to copy to, first on its connection
	KindCopyOut  Kind = 28 // host: the path to copy, first on its connection
	KindData     Kind = 29 // both: bytes of a tar stream
	KindStarted  Kind = 30 // agent: the process's pid
	KindTaken    Kind = 31 // agent: for how many bytes of stdin there is room again
	KindEnded    Kind = 32 // agent: ProcessExit, when all output is out
	KindRefused  Kind = 33 // agent: RefusedError
	KindDetached Kind = 34 // agent: the process runs on without this connection; why, if the host did not ask
	KindCopied   Kind = 35 // agent: the copy is complete, or nothing that is watched was opened
	KindWatch    Kind = 36 // host: the path of what is to be watched; none: whether it was opened
	KindDeliver  Kind = 37 // host: the path of a mount whose content comes, first on its connection
	KindRoom     Kind = 38 // host: for how many more bytes of stdout or stderr there is room
	KindNoted    Kind = 39 // host: it has KindEnded
)

// MaxOutput bounds the payload of a frame of output, in bytes.
const MaxOutput = 32 << 10

// maxText bounds the payload of frames that hold a text or a small value.
const maxText = 4 << 10

// MaxStart bounds what tells the agent what to run, in bytes: an image's
// arguments and environment, with the function's over them.
const MaxStart = 2 << 20

// FromHost returns how long the payload of a frame of the host may be; -1 for a
// kind that the host does not send.
func FromHost(k Kind) int {
	switch k {
	case KindStart:
		return MaxStart
	case KindClone:
		return 128 << 10
	case KindStop:
		return maxText
	case KindPrepare:
		return 0
	case KindTime:
		return timeLen
	}
	return -1
}

// FromAgent is the same for the agent, whose frames are hostile input.
func FromAgent(k Kind) int {
	switch k {
	case KindHello:
		return 1 + maxVersion
	case KindStdout, KindStderr:
		return MaxOutput
	case KindDone, KindExit, KindDropped:
		return maxText
	case KindReady:
		return 0
	case KindClock:
		return timeLen
	}
	return -1
}

// FromExecHost returns how long the payload of a frame of the host on a
// connection to ExecPort may be; -1 for a kind that it does not send there.
func FromExecHost(k Kind) int {
	switch k {
	case KindExec:
		return MaxStart
	case KindAttach:
		return maxID
	case KindCopyIn, KindCopyOut, KindWatch, KindDeliver:
		return MaxPath
	case KindStdin, KindData:
		return MaxOutput
	case KindResize:
		return resizeLen
	case KindSignal:
		return signalLen
	case KindRoom:
		return roomLen
	case KindEOF, KindDetach, KindNoted:
		return 0
	}
	return -1
}

// FromExecAgent is the same for the agent, whose frames are hostile input.
func FromExecAgent(k Kind) int {
	switch k {
	case KindStdout, KindStderr, KindData:
		return MaxOutput
	case KindStarted:
		return startedLen
	case KindTaken:
		return takenLen
	case KindEnded:
		return endedLen
	case KindRefused, KindDetached:
		return maxText
	case KindCopied:
		return 0
	}
	return -1
}

// Hello is the agent's first frame on each connection.
type Hello struct {
	Version string
	Started bool // it has been told what to run
	Ready   bool
}

// maxVersion bounds the version in a hello, in bytes.
const maxVersion = 100

// Encode returns the payload of a KindHello frame.
func (h Hello) Encode() []byte {
	b := []byte{0}
	if h.Started {
		b[0] |= 1
	}
	if h.Ready {
		b[0] |= 2
	}
	return append(b, h.Version...)
}

// DecodeHello reads what Encode returns.
func DecodeHello(p []byte) (Hello, error) {
	if len(p) < 1 || len(p) > 1+maxVersion || p[0] > 3 {
		return Hello{}, errors.New("malformed hello")
	}
	return Hello{Version: string(p[1:]), Started: p[0]&1 != 0, Ready: p[0]&2 != 0}, nil
}

// timeLen is the length of a clock's time, in bytes.
const timeLen = 8

// EncodeTime returns the payload of a KindTime or KindClock frame.
func EncodeTime(unixNano int64) []byte {
	return binary.LittleEndian.AppendUint64(nil, uint64(unixNano))
}

// DecodeTime reads what EncodeTime returns.
func DecodeTime(p []byte) (unixNano int64, err error) {
	if len(p) != timeLen {
		return 0, fmt.Errorf("a time of %d bytes: want %d", len(p), timeLen)
	}
	return int64(binary.LittleEndian.Uint64(p)), nil
}

// Encode returns the payload of a KindClone frame.
func (c Clone) Encode() []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 256), uint64(c.UnixNano))
	fields := [][]byte{[]byte(c.Instance), c.Entropy, []byte(c.Hook)}
	if c.Names != (Names{}) || len(c.Files) > 0 {
		fields = append(fields, []byte(c.Hostname), []byte(c.Hosts), []byte(c.Resolv))
	}
	for _, f := range c.Files {
		fields = append(fields, []byte(f.Path), f.Data)
	}
	for _, f := range fields {
		b = append(binary.LittleEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return b
}

// validate says whether Encode can hold it.
func (c Clone) validate() error {
	for name, n := range map[string]int{"instance": len(c.Instance), "entropy": len(c.Entropy), "hook": len(c.Hook),
		"hostname": len(c.Hostname), "hosts": len(c.Hosts), "resolv": len(c.Resolv)} {
		if n > math.MaxUint16 {
			return fmt.Errorf("the clone's %s has %d bytes: at most %d are allowed", name, n, math.MaxUint16)
		}
	}
	if n := FilesLen(c.Files); n > MaxCloneFiles {
		return fmt.Errorf("the clone's files have %d bytes: at most %d are allowed", n, MaxCloneFiles)
	}
	return nil
}

// FilesLen is how much of MaxCloneFiles these take.
func FilesLen(files []File) (n int) {
	for _, f := range files {
		n += 4 + len(f.Path) + len(f.Data)
	}
	return n
}

// DecodeClone reads what Encode returns.
func DecodeClone(p []byte) (Clone, error) {
	if len(p) < 8 {
		return Clone{}, errors.New("clone message ends early")
	}
	c := Clone{UnixNano: int64(binary.LittleEndian.Uint64(p))}
	p = p[8:]
	var fields [6][]byte
	next := func() (field []byte, err error) {
		if len(p) < 2 || len(p)-2 < int(binary.LittleEndian.Uint16(p)) {
			return nil, errors.New("clone message ends early")
		}
		n := int(binary.LittleEndian.Uint16(p))
		field, p = p[2:2+n], p[2+n:]
		return field, nil
	}
	var err error
	for i := range fields {
		if i == 3 && len(p) == 0 {
			break // it has no names of its own
		}
		if fields[i], err = next(); err != nil {
			return Clone{}, err
		}
	}
	for len(p) > 0 {
		path, err := next()
		if err != nil {
			return Clone{}, err
		}
		data, err := next()
		if err != nil {
			return Clone{}, err
		}
		c.Files = append(c.Files, File{string(path), append([]byte(nil), data...)})
	}
	c.Instance, c.Entropy, c.Hook = string(fields[0]), append([]byte(nil), fields[1]...), string(fields[2])
	c.Names = Names{Hostname: string(fields[3]), Hosts: string(fields[4]), Resolv: string(fields[5])}
	return c, nil
}

// Exit says how the function's process ended.
type Exit struct {
	Status string `json:"status"` // "exit status 3", "signal: killed"
}

// Stop asks for the function's end: its stop signal, SIGKILL after the grace.
type Stop struct {
	GraceMillis int64 `json:"grace_ms"`
}

// Dropped counts bytes of output that were lost.
type Dropped struct {
	Bytes int64 `json:"bytes"`
}

// headLen is the length of a frame's head: payload length and kind.
const headLen = 5

// WriteFrame writes one frame with one call of Write. One that its reader would
// refuse is not written.
func WriteFrame(w io.Writer, k Kind, payload []byte) error {
	if most := longest(k); len(payload) > most {
		return fmt.Errorf("a frame of kind %d with %d bytes: at most %d are allowed", k, len(payload), most)
	}
	b := make([]byte, headLen+len(payload))
	copy(b[headLen:], payload)
	return WriteFilled(w, k, b)
}

// HeadLen is for how many bytes WriteFilled needs room before the payload.
const HeadLen = headLen

// WriteFilled writes a frame whose payload stands in b after HeadLen bytes, which
// it fills: for who reads the payload to there and copies nothing.
func WriteFilled(w io.Writer, k Kind, b []byte) error {
	binary.LittleEndian.PutUint32(b, uint32(len(b)-headLen))
	b[4] = byte(k)
	_, err := w.Write(b)
	return err
}

func longest(k Kind) int { return max(FromHost(k), FromAgent(k), FromExecHost(k), FromExecAgent(k)) }

// WriteJSON writes a frame whose payload is v as JSON.
func WriteJSON(w io.Writer, k Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteFrame(w, k, b)
}

// ReadFrame reads one frame whose kind and length limit (FromHost, FromAgent)
// allows; both are checked before the payload is read. The payload lies in buf
// where that is long enough, and is valid until buf is used again.
func ReadFrame(r io.Reader, limit func(Kind) int, buf []byte) (Kind, []byte, error) {
	var head [headLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	k, n := Kind(head[4]), binary.LittleEndian.Uint32(head[:4])
	switch most := limit(k); {
	case most < 0:
		return 0, nil, fmt.Errorf("a frame of kind %d, which this side does not send", k)
	case uint64(n) > uint64(most):
		return 0, nil, fmt.Errorf("a frame of kind %d announces %d bytes: at most %d are allowed", k, n, most)
	}
	if int(n) > len(buf) {
		buf = make([]byte, n)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, nil, fmt.Errorf("a frame of kind %d ends early: %w", k, err)
	}
	return k, buf[:n], nil
}

// Decode reads a frame's JSON payload. Unknown fields, trailing data and an
// empty payload are errors.
func Decode(payload []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("data after the JSON value")
	}
	return nil
}
