package guest

import (
	"errors"
	"fmt"
	"io"
)

// Relay passes on the frames of one process or copy between a client, who speaks
// for the host, and the agent, until the agent's connection ends, or the client's
// or what it sends is no such frame. It closes both. When the agent's ends too
// early and why then returns an error, the client is told that.
func Relay(client, agent io.ReadWriteCloser, why func() error) error {
	up := make(chan error, 1)
	go func() {
		up <- pass(agent, client, FromExecHost)
		agent.Close() // which ends the other direction
	}()
	err := pass(client, agent, FromExecAgent)
	if reason := why(); reason != nil && !errors.Is(err, io.EOF) {
		err = reason
	}
	if reason := why(); reason != nil {
		// Between two frames; if the client has its last one, it reads no more.
		_ = WriteFrame(client, KindDetached, []byte(reason.Error()[:min(len(reason.Error()), maxText)]))
	}
	agent.Close()
	client.Close()
	if uperr := <-up; errors.Is(err, io.EOF) || err == nil {
		err = uperr
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// pass copies frames from one end to the other, one at a time: who does not read
// holds up who writes.
func pass(to io.Writer, from io.Reader, limit func(Kind) int) error {
	b := make([]byte, HeadLen+MaxOutput)
	for {
		k, p, err := ReadFrame(from, limit, b[HeadLen:])
		if err != nil {
			return err
		}
		if len(p) <= MaxOutput {
			err = WriteFilled(to, k, b[:HeadLen+len(p)])
		} else { // a process with many arguments
			err = WriteFrame(to, k, p)
		}
		if err != nil {
			return fmt.Errorf("passing on a frame of kind %d: %w", k, err)
		}
	}
}
