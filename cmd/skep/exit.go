package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/gateway"
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

// functionError is an answer of a function that is not a success, whose body
// has been shown, or says why there was none.
type functionError struct {
	function string
	status   int
	why      string // "" when it answered
}

func (e *functionError) Error() string {
	if e.why != "" {
		return fmt.Sprintf("function %s: %s", e.function, e.why)
	}
	return fmt.Sprintf("function %s answered %d %s", e.function, e.status, http.StatusText(e.status))
}

// exitCode says which exit code an error means.
func exitCode(err error) int {
	var (
		usage       *usageError
		function    *functionError
		unreachable *api.UnreachableError
		answer      *api.Error
		command     *commandError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &command):
		return command.code
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
		function    *functionError
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
	case errors.As(err, &function) && function.why != "":
		return "`skep logs " + function.function + "` shows what it wrote"
	}
	return ""
}

// maxProblem is in bytes.
const maxProblem = 1 << 20

// skepError returns an error for an answer to an invocation that is skep's own
// and not the function's, nil for the function's.
func skepError(function string, resp *http.Response) error {
	if resp.Header.Get(gateway.HeaderError) == "" && resp.Header.Get(api.HeaderInvocation) != "" {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil {
		return err
	}
	e := &api.Error{}
	if json.Unmarshal(b, e) != nil || e.Message == "" {
		e.Message = resp.Status
	}
	e.Status = resp.StatusCode
	switch e.Status {
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return &functionError{function, e.Status, e.Message}
	case http.StatusNotFound:
		e.Hint = "`skep ls` lists the functions that exist"
	case http.StatusConflict:
		e.Hint = "for --start warm, call it once without: its instance stays for keep_alive; for --start restore, `skep snapshot create` makes a snapshot"
	}
	return e
}

func (c *cli) printError(err error) {
	var command *commandError
	if errors.Is(err, errSilent) || errors.As(err, &command) && command.text == "" {
		return
	}
	if c.json {
		_ = json.NewEncoder(c.err).Encode(api.Error{Message: err.Error(), Hint: hint(err)})
		return
	}
	fmt.Fprintf(c.err, "skep: %s\n", printable(err.Error()))
	if h := hint(err); h != "" {
		fmt.Fprintln(c.err, indent(h))
	}
}

// printable takes out what could drive a terminal: messages quote what guests
// have written.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
}
