package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
)

// Exit codes. They are promised in the root's help.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitUnreachable = 4
	exitFunction    = 5
)

// usageError is a command line or a configuration that is wrong.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), fmt.Sprintf("usage: %s\n`%s -h` tells more", cmd.UseLine(), cmd.CommandPath())}
}

// functionError is an answer of a function that is not a success; its body has
// been shown.
type functionError struct {
	function string
	status   int
}

func (e *functionError) Error() string {
	return fmt.Sprintf("function %s answered %d %s", e.function, e.status, http.StatusText(e.status))
}

// exitCode says which exit code an error means.
func exitCode(err error) int {
	var (
		usage       *usageError
		function    *functionError
		unreachable *api.UnreachableError
		answer      *api.Error
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &function):
		return exitFunction
	case errors.As(err, &unreachable):
		return exitUnreachable
	case errors.As(err, &answer) && answer.Status == http.StatusNotFound:
		return exitNotFound
	}
	return exitError
}

// hint says what to do about an error, if that is known.
func hint(err error) string {
	var (
		usage       *usageError
		unreachable *api.UnreachableError
		answer      *api.Error
	)
	switch {
	case errors.As(err, &usage):
		return usage.hint
	case errors.As(err, &unreachable) && errors.Is(err, fs.ErrPermission):
		return "the daemon's socket is its owner's alone: run this as the same user (sudo)"
	case errors.As(err, &unreachable):
		return "start the daemon with `skep up`, or say where it is with --socket or --address"
	case errors.As(err, &answer):
		return answer.Hint
	}
	return ""
}

func (c *cli) printError(err error) {
	if errors.Is(err, errSilent) {
		return
	}
	if c.json {
		_ = json.NewEncoder(c.err).Encode(api.Error{Message: err.Error(), Hint: hint(err)})
		return
	}
	fmt.Fprintf(c.err, "skep: %v\n", err)
	if h := hint(err); h != "" {
		fmt.Fprintln(c.err, indent(h))
	}
}
