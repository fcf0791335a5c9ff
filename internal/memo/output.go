package memo

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// said is what a program wrote, and how it ended.
type said struct {
	Stdout []byte `json:"stdout"`
	Code   int    `json:"code"`
}

// ErrExit says that a program ended with another exit code than 0.
var ErrExit = errors.New("exit code")

// Output is what the program at path, which is absolute, writes to its stdout with
// these arguments, such as its version. It is run again when its file has changed.
// The error wraps ErrExit when the program ends with another code than 0.
func Output(ctx context.Context, d Dir, path string, args ...string) ([]byte, error) {
	s, err := Ask(d, "output of "+path+" "+strings.Join(args, " "), func(read func(string)) (s said, err error) {
		read(path)
		s.Stdout, err = exec.CommandContext(ctx, path, args...).Output()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
			s.Code, err = exit.ExitCode(), nil
		}
		return s, err
	})
	if err == nil && s.Code != 0 {
		err = fmt.Errorf("%w %d", ErrExit, s.Code)
	}
	return s.Stdout, err
}
