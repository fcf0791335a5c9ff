package cluster

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
)

// What no second try mends is said after the first: as kubectl 1.34 says it.
func TestRefusedAtOnce(t *testing.T) {
	c := place(t)
	if err := os.MkdirAll(filepath.Dir(c.Kubectl()), 0o755); err != nil {
		t.Fatal(err)
	}
	const program = "#!/bin/sh\ncat >&2 \"$(dirname \"$0\")\"/said\nexit 1\n"
	if err := os.WriteFile(c.Kubectl(), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	goesOn := errors.New("it is tried again")
	for said, refused := range map[string]bool{
		`error: error parsing x.yaml: error converting YAML to JSON: yaml: line 2: mapping values are not allowed in this context`:                                                                                                                          true,
		`resource mapping not found for name: "x" namespace: "" from "two.yaml": no matches for kind "Later" in version "later/v1"` + "\nError from server: failed to create typed patch object (default/x; /v1, Kind=ConfigMap): .data.a: expected string": true,
		`error: unable to decode "x.yaml": Object 'Kind' is missing in '{"apiVersion":"v1"}'`:                                                                                                                                                               true,
		`error: error validating "x.yaml": error validating data: kind not set; if you choose to ignore these errors, turn validation off`:                                                                                                                  true,
		`error: error validating "x.yaml": error validating data: failed to download openapi: Get "https://127.0.0.1:1/openapi": connection refused; if`:                                                                                                    false,
		`Error from server (BadRequest): error when creating "x.yaml": admission webhook "validation.webhook" denied the request: validation failed`:                                                                                                        true,
		`The ConfigMap "X_y" is invalid: metadata.name: Invalid value: "X_y": a lowercase RFC 1123 subdomain must consist`:                                                                                                                                  true,
		`Error from server: failed to create typed patch object (default/x; apps/v1, Kind=Deployment): .spec.replicas: expected numeric (int or float), got string`:                                                                                         true,
		`error: resource mapping not found for name: "x" namespace: "" from "x.yaml": no matches for kind "Later" in version "x/v1"` + "\nensure CRDs are":                                                                                                  false,
		`Error from server (InternalError): error when creating "x.yaml": Internal error occurred: failed calling webhook "w": connection refused`:                                                                                                          false,
		`Error from server (NotFound): namespaces "later" not found`:                                                                                                                                                                                        false,
		`error: timed out waiting for the condition`:                       false,
		`Unable to connect to the server: net/http: TLS handshake timeout`: false,
	} {
		if err := os.WriteFile(c.path("bin/said"), []byte(said+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := retry(t.Context(), c.asks("apply", "-f", "x.yaml"), func() error { return goesOn })
		if errors.Is(err, goesOn) == refused {
			t.Errorf("%q is refused: %v, want %v", said, !errors.Is(err, goesOn), refused)
		}
		if refused && !strings.Contains(err.Error(), said) {
			t.Errorf("of %q it says %v", said, err)
		}
	}
}

// A program that is missing for an image is named at once: no try finds it later.
func TestImageWithoutProgram(t *testing.T) {
	c := place(t)
	c.opts.Skep = t.TempDir()
	c.opts.Pause = filepath.Join(c.opts.Skep, "pause")
	if err := os.WriteFile(c.opts.Pause, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	goesOn := errors.New("it is tried again")
	err := retry(t.Context(), func(ctx context.Context) error { return c.importImages(ctx, c.opts.Pause) }, func() error { return goesOn })
	if errors.Is(err, goesOn) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "skep-hello") {
		t.Errorf("without skep-hello: %v", err)
	}
}

// What fails is tried until it succeeds.
func TestRetry(t *testing.T) {
	tries := 0
	err := retry(t.Context(), func(context.Context) error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	}, func() error { return nil })
	if err != nil || tries != 3 {
		t.Errorf("after %d tries: %v", tries, err)
	}
}

// TestLastReason has a try be ended by the time: what is told is the reason that the one before it had.
func TestLastReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reason, tries := errors.New("namespace not found"), 0
		err := retry(t.Context(), func(ctx context.Context) error {
			if tries++; tries < 3 {
				return reason
			}
			<-ctx.Done()
			return errors.New("signal: killed")
		}, func() error { return nil })
		if !errors.Is(err, reason) || !strings.Contains(err.Error(), "not within 3m0s") {
			t.Errorf("%v", err)
		}
	})
}
