package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// answering is a registry that has one answer.
func answering(t *testing.T, status int, code string) (host string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"so it is"}]}`, code)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// TestErrorsHaveKinds: whoever asks for an image learns whether it is the
// reference, the registry or the image.
func TestErrorsHaveKinds(t *testing.T) {
	host := registry(t, nil)
	push(t, host+"/theirs:v1", platformed(t, imageOf(t, layerOf(t, file("serve", "x"))), "linux", "s390x"))
	push(t, host+"/mine:v1", imageOf(t, layerOf(t, file("serve", strings.Repeat("bees", 1<<16)))))
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	empty, notDir := t.TempDir(), filepath.Join(t.TempDir(), "file")
	write(t, notDir, "x")
	deep, _ := writeLayout(t, imageOf(t, layerOf(t, file(strings.Repeat("a/", 1000)+"b", ""))))
	large, _ := writeLayout(t, withConfig(t, func(f *v1.ConfigFile) { f.Config.Env = variables(1100, 1000) }))
	for ref, want := range map[string]error{
		"":                                       ErrReference,
		"Upper/Case":                             ErrReference,
		"oci:":                                   ErrReference,
		host + "/mine:v2":                        ErrNoImage,
		host + "/absent":                         ErrNoImage,
		host + "/theirs:v1":                      ErrPlatform,
		host + "/mine:v1":                        ErrTooLarge, // the store's limit is below it
		answering(t, 401, "UNAUTHORIZED") + "/a": ErrUnauthorized,
		answering(t, 403, "DENIED") + "/a":       ErrUnauthorized,
		answering(t, 404, "NAME_UNKNOWN") + "/a": ErrNoImage,
		answering(t, 429, "TOOMANYREQUESTS") + "/a":    ErrUnreachable,
		strings.TrimPrefix(dead.URL, "http://") + "/a": ErrUnreachable,
		"oci:/absent":                ErrNoImage,
		"docker-archive:/absent.tar": ErrNoImage,
		"dir:/absent":                ErrNoImage,
		"dir:" + empty:               ErrMalformed, // no skep-image.json
		"dir:" + notDir:              ErrNoImage,
		"oci:" + empty:               ErrNoImage,
		"oci-archive:" + notDir:      ErrMalformed,
		"docker-archive:" + empty:    ErrMalformed,
		deep:                         ErrMalformed,
		large:                        ErrTooLarge,
	} {
		s := open(t, Options{MaxBytes: 64 << 10})
		_, err := s.Fetch(t.Context(), ref, nil)
		if !errors.Is(err, want) {
			t.Errorf("%s: error %v, which is not %q", ref, err, want)
		}
		for _, k := range kinds {
			if k != want && errors.Is(err, k) {
				t.Errorf("%s: error %v is %q, too", ref, err, k)
			}
		}
		nothingLeft(t, s)
	}
}

// TestHostsErrorsHaveNoKind: a full disk here is not the image's fault.
func TestHostsErrorsHaveNoKind(t *testing.T) {
	for _, err := range []error{
		&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, context.Canceled, fmt.Errorf("reading it: %w", context.DeadlineExceeded),
	} {
		if got := malformed(err); got != err {
			t.Errorf("%v becomes %v", err, got)
		}
	}
	if malformed(nil) != nil || ofRegistry(nil) != nil || as(ErrPlatform, nil) != nil {
		t.Error("no error becomes one")
	}
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", "x"))))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Fetch(ctx, ref, nil); hasKind(err) || !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled fetch: %v", err)
	}
}
