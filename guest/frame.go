package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
)

// MaxPayload bounds a frame's payload in bytes, in both directions.
const MaxPayload = 128 << 10

// Hello is the agent's first frame on each connection.
type Hello struct {
	Version string
	Started bool // it has been told what to run
	Ready   bool
}

// Hello, Clone and Done are on the way of every cold start, where the guest has
// to page in, and an emulator to translate, all code that reads them. So they
// are not JSON but:
//
//	Hello  1 byte: 1 started, 2 ready; the rest: version
//	Clone  8 bytes: UnixNano, little-endian; three times 2 bytes length and so
//	       many bytes: Instance, Entropy, Hook
//	Done   the error's text; empty when it worked

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
	if len(p) < 1 || len(p) > 100 || p[0] > 3 {
		return Hello{}, errors.New("malformed hello")
	}
	return Hello{Version: string(p[1:]), Started: p[0]&1 != 0, Ready: p[0]&2 != 0}, nil
}

// Encode returns the payload of a KindClone frame.
func (c Clone) Encode() []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 256), uint64(c.UnixNano))
	for _, f := range [][]byte{[]byte(c.Instance), c.Entropy, []byte(c.Hook)} {
		b = append(binary.LittleEndian.AppendUint16(b, uint16(len(f))), f...)
	}
	return b
}

// DecodeClone reads what Encode returns.
func DecodeClone(p []byte) (Clone, error) {
	if len(p) < 8 {
		return Clone{}, errors.New("clone message ends early")
	}
	c := Clone{UnixNano: int64(binary.LittleEndian.Uint64(p))}
	p = p[8:]
	var fields [3][]byte
	for i := range fields {
		if len(p) < 2 || len(p)-2 < int(binary.LittleEndian.Uint16(p)) {
			return Clone{}, errors.New("clone message ends early")
		}
		n := int(binary.LittleEndian.Uint16(p))
		fields[i], p = p[2:2+n], p[2+n:]
	}
	if len(p) > 0 {
		return Clone{}, errors.New("clone message has bytes after its end")
	}
	c.Instance, c.Entropy, c.Hook = string(fields[0]), append([]byte(nil), fields[1]...), string(fields[2])
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

// WriteFrame writes one frame: payload length (4 bytes, little-endian), kind
// (1 byte), payload.
func WriteFrame(w io.Writer, k Kind, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("frame of kind %d has %d bytes: at most %d are allowed", k, len(payload), MaxPayload)
	}
	b := make([]byte, 5, 5+len(payload))
	binary.LittleEndian.PutUint32(b, uint32(len(payload)))
	b[4] = byte(k)
	_, err := w.Write(append(b, payload...))
	return err
}

// WriteJSON writes a frame whose payload is v as JSON; nil has no payload.
func WriteJSON(w io.Writer, k Kind, v any) error {
	if v == nil {
		return WriteFrame(w, k, nil)
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteFrame(w, k, b)
}

// ReadFrame reads one frame. The payload lies in buf, which has MaxPayload
// bytes, and is valid until the next call. The length is checked before
// anything of that size is read.
func ReadFrame(r io.Reader, buf []byte) (Kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[:4])
	if n > MaxPayload || int(n) > len(buf) {
		return 0, nil, fmt.Errorf("frame of kind %d announces %d bytes: at most %d are allowed", head[4], n, MaxPayload)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, nil, fmt.Errorf("frame of kind %d ends early: %w", head[4], err)
	}
	return Kind(head[4]), buf[:n], nil
}

// NextFrame finds the first frame in what has been read so far. size is the
// bytes that it takes, 0 when it is not all there yet.
func NextFrame(b []byte) (k Kind, payload []byte, size int, err error) {
	if len(b) < 5 {
		return 0, nil, 0, nil
	}
	n := binary.LittleEndian.Uint32(b)
	if n > MaxPayload {
		return 0, nil, 0, fmt.Errorf("frame of kind %d announces %d bytes: at most %d are allowed", b[4], n, MaxPayload)
	}
	size = 5 + int(n)
	if len(b) < size {
		return 0, nil, 0, nil
	}
	return Kind(b[4]), b[5:size], size, nil
}

// Decode reads a frame's JSON payload. Unknown fields, trailing data and an
// empty payload are errors.
func Decode(payload []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("data after the JSON value")
	}
	return nil
}
