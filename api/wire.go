package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// Error is the body of every answer of the control API that is not a success, and what
// Client's methods return for it: a problem of RFC 9457, whose title is the status in
// words, with a hint.
type Error struct {
	Status  int    `json:"status,omitempty"` // HTTP status
	Message string `json:"detail"`           // what failed, on which thing, and why
	Hint    string `json:"hint,omitempty"`   // what to do about it
}

// ProblemType is the media type of an Error.
const ProblemType = "application/problem+json"

func (e *Error) Error() string { return e.Message }

// MarshalJSON adds the title.
func (e Error) MarshalJSON() ([]byte, error) {
	type plain Error
	return json.Marshal(struct {
		Title string `json:"title,omitempty"`
		plain
	}{http.StatusText(e.Status), plain(e)})
}

// MaxRequest bounds the JSON that a client sends, in bytes.
const MaxRequest = 1 << 20

// UnreachableError says that no daemon answers at an address.
type UnreachableError struct {
	Address string
	Err     error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no daemon answers at %s: %v", e.Address, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// Version says what a daemon is.
type Version struct {
	Version  string    `json:"version"`
	Commit   string    `json:"commit,omitempty"`
	Go       string    `json:"go"`
	VMM      string    `json:"vmm,omitempty"`     // "qemu 7.2.22 tcg"
	Gateway  string    `json:"gateway,omitempty"` // address, host:port
	Domain   string    `json:"domain,omitempty"`
	Policies []string  `json:"policies,omitempty"` // memory policies that can be chosen
	PID      int       `json:"pid,omitempty"`
	Started  time.Time `json:"started,omitzero"`
}

// FunctionStatus is a line of `skep ls`.
type FunctionStatus struct {
	Function
	URL       string                `json:"url,omitempty"` // where the gateway answers for it
	Instances map[InstanceState]int `json:"instances,omitempty"`
	Snapshots int                   `json:"snapshots"`
}

// FunctionDetail is what `skep inspect` shows of a function.
type FunctionDetail struct {
	FunctionStatus
	InstanceList []Instance   `json:"instance_list"`
	SnapshotList []Snapshot   `json:"snapshot_list"`
	Recent       []Invocation `json:"recent"` // newest first
}

// LogQuery selects a function's output. The zero value of all but Function is
// everything that is kept, of every instance.
type LogQuery struct {
	Function string
	Instance string
	// Invocation selects the lines of one, of functions whose instances take one
	// at a time.
	Invocation string
	Since      time.Time // zero: no bound
	Tail       int       // the last so many lines; 0: all
	Follow     bool      // go on until the context ends
}

// SnapshotRequest asks for a snapshot of a function to be made now.
type SnapshotRequest struct {
	Function string `json:"function"`
}

// Headers that the gateway reads and writes.
const (
	HeaderStart      = "Skep-Start"      // request: the start kind that is wanted; response: the one that was
	HeaderPolicy     = "Skep-Policy"     // request: memory policy
	HeaderInvocation = "Skep-Invocation" // response: id of the record
	HeaderInstance   = "Skep-Instance"   // response: id of the instance that was entered
)
