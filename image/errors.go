package image

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Errors that callers branch on. The first three are about the store, the others
// about what a Fetch was asked for: whoever asked can do something about them.
var (
	ErrNotFound = errors.New("no such image in the store")
	ErrDamaged  = errors.New("the root disk is not what it was made as")
	ErrInUse    = errors.New("another process uses the image")

	ErrReference    = errors.New("it names no image")
	ErrNoImage      = errors.New("there is no such image")
	ErrUnauthorized = errors.New("the registry does not give out the image")
	ErrUnreachable  = errors.New("the registry does not answer")
	ErrMalformed    = errors.New("it is no image that can be run")
	ErrTooLarge     = errors.New("the image is larger than what is allowed")
	ErrPlatform     = errors.New("the image is not for this host")
)

// kinds are the errors that say what is wrong with what was asked for.
var kinds = []error{ErrReference, ErrNoImage, ErrUnauthorized, ErrUnreachable, ErrMalformed, ErrTooLarge, ErrPlatform}

// kindError gives an error a kind, and leaves its text.
type kindError struct{ kind, err error }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }

// as gives an error a kind; nil stays nil.
func as(kind, err error) error {
	if err == nil {
		return nil
	}
	return &kindError{kind, err}
}

// malformed gives an error that came up with content the kind of content that
// is no image, unless it has a kind, or it is this host that failed: its disk is
// full, or nobody waits any more.
func malformed(err error) error {
	if err == nil || hasKind(err) || isHosts(err) {
		return err
	}
	return as(ErrMalformed, err)
}

func hasKind(err error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

func isHosts(err error) bool {
	var errno syscall.Errno
	var path *os.PathError
	return errors.As(err, &errno) || errors.As(err, &path) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// ofPath gives an error about a path that was named the kind that fits.
func ofPath(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return as(ErrNoImage, err)
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EACCES):
		return as(ErrMalformed, err)
	}
	return malformed(err)
}

// ofRegistry gives an error of a registry's, or on the way to it, its kind.
func ofRegistry(err error) error {
	if err == nil || hasKind(err) || errors.Is(err, context.Canceled) {
		return err
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			return as(ErrNoImage, err)
		case http.StatusUnauthorized, http.StatusForbidden:
			return as(ErrUnauthorized, err)
		}
		return as(ErrUnreachable, err)
	}
	var network net.Error
	if errors.As(err, &network) {
		return as(ErrUnreachable, err)
	}
	if strings.HasPrefix(err.Error(), "no child with platform") { // it has no type
		return as(ErrPlatform, err)
	}
	return malformed(err)
}
