// Package image turns an OCI image into a read-only ext4 root disk, once per
// image digest. It stands beside the way of a cold invocation: package node
// calls it when a function is deployed.
package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Config is what the image says about running it.
type Config struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
	User       string   `json:"user,omitempty"` // as in the image: name or uid, with optional :group
	StopSignal string   `json:"stop_signal,omitempty"`
	// Exposed are the ports at which the image says that it serves: "8080/tcp".
	Exposed []string `json:"exposed,omitempty"`
}

// Bounds of a Config. What a function adds to it by its own settings has room
// beside it: in the message that tells the guest what to run, and in what Linux
// lets a program have.
const (
	maxConfig = 1 << 20     // bytes as JSON, with a pointer for each argument and variable
	maxString = 128<<10 - 1 // bytes of one argument or variable, as in Linux
	pointer   = 8           // bytes
)

// check refuses a Config that no guest could take.
func (c Config) check() error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	all := slices.Concat(c.Entrypoint, c.Cmd, c.Env)
	if n := len(b) + pointer*len(all); n > maxConfig {
		return as(ErrTooLarge, fmt.Errorf("its configuration, most of it arguments and environment, takes %d bytes: %d are allowed", n, maxConfig))
	}
	for _, s := range append(all, c.WorkingDir, c.User, c.StopSignal) {
		if len(s) > maxString {
			return as(ErrTooLarge, fmt.Errorf("its configuration has an argument or variable of %d bytes (%.32q…): Linux takes %d", len(s), s, maxString))
		}
		if strings.ContainsRune(s, 0) {
			return as(ErrMalformed, fmt.Errorf("its configuration has a NUL in %.64q", s))
		}
	}
	return nil
}

// Image is an image whose root disk is in the store.
type Image struct {
	Digest     string `json:"digest"`      // "sha256:…" of the platform's manifest; what docker save wrote has its configuration's, a directory one of its content
	Disk       string `json:"-"`           // path of the ext4 image
	DiskBytes  int64  `json:"disk_bytes"`  // its length
	DiskDigest string `json:"disk_digest"` // sha256 of it
	Config     Config `json:"config"`
}

// Progress is told how far a Fetch is, in rising order, by one goroutine at a time.
type Progress func(stage string, done, total int64)

// Fetcher is implemented by Store: what package node needs of this package.
type Fetcher interface {
	// Fetch makes the image that ref names into a root disk, or finds it there, and
	// uses it (see Store.Use).
	// Forms of ref: registry reference ("localhost:5000/hello:latest"),
	// "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]", "docker-archive:FILE[:TAG]",
	// "FILE.tar" (either kind of archive), "dir:DIR" (a root directory with
	// skep-image.json holding a Config). Archives may be compressed. p, which may
	// be nil, is told of the stages "pull" and "build", in bytes.
	Fetch(ctx context.Context, ref string, p Progress) (Image, error)
	// Get returns an image by digest; ErrNotFound if it is not there. A disk
	// that no longer is what it was made as is an error that says so.
	Get(digest string) (Image, error)
}
