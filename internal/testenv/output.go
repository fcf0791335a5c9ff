package testenv

import (
	"bytes"
	"sync"
)

// Output takes what a program or a logger writes, while a test reads it. Its
// zero value is empty.
type Output struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

// maxOutput and half of it are what is kept: a daemon may run for hours.
const maxOutput = 8 << 20

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.b.Len() > maxOutput {
		o.b.Next(o.b.Len() - maxOutput/2)
	}
	return o.b.Write(p)
}

// String is what was written, or the last megabytes of it.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Tail is the last n bytes of it.
func (o *Output) Tail(n int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.b.Bytes()
	return string(b[max(0, len(b)-n):])
}
