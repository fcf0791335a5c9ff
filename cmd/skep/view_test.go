package main

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"testing"

	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/node"
	"github.com/skep-dev/skep/snapshot"
)

// TestStatuses: what the caller can put right is a 4xx, what this host or another
// is at fault for is not.
func TestStatuses(t *testing.T) {
	for err, want := range map[error]int{
		image.ErrReference:       http.StatusBadRequest,
		image.ErrNoImage:         http.StatusNotFound,
		image.ErrUnauthorized:    http.StatusForbidden,
		image.ErrMalformed:       http.StatusUnprocessableEntity,
		image.ErrPlatform:        http.StatusUnprocessableEntity,
		image.ErrTooLarge:        http.StatusRequestEntityTooLarge,
		image.ErrUnreachable:     http.StatusBadGateway,
		image.ErrDamaged:         0, // 500, as whatever has no status
		syscall.ENOSPC:           0,
		node.ErrInvalid:          http.StatusBadRequest,
		node.ErrNoFunction:       http.StatusNotFound,
		node.ErrNotRunning:       http.StatusConflict,
		node.ErrNoSnapshot:       http.StatusConflict,
		node.ErrDeploying:        http.StatusConflict,
		node.ErrDraining:         http.StatusServiceUnavailable,
		snapshot.ErrNotFound:     http.StatusNotFound,
		errors.New("unheard of"): 0,
	} {
		if got, _ := statusOf(fmt.Errorf("deploying hello: %w", err)); got != want {
			t.Errorf("%v is status %d: want %d", err, got, want)
		}
	}
}
