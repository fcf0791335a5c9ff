package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
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
	KindDone    Kind = 6  // agent: Done, the answer to the host's last frame
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
	Version string `json:"version"`
	Started bool   `json:"started"` // it has been told what to run
	Ready   bool   `json:"ready"`
}

// Done answers a frame of the host; Error is empty when it worked.
type Done struct {
	Error string `json:"error,omitempty"`
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
