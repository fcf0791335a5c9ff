package control

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/api"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
	minToken      = 16 // bytes
	lastRead      = 2 * time.Second
)

// ListenUnix listens on a unix socket of mode 0600. A socket file that is
// there is replaced only if nobody answers on it.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// The mode is set before bind, which gives it to the file: the socket is
	// never open to others, not even for a moment.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("making the control socket %s: got a %T", path, l), l.Close())
	}
	ul.SetUnlinkOnClose(false)
	return &unixListener{UnixListener: ul, path: path}, nil
}

// unixListener removes its socket file when it is closed, unless another
// daemon's has taken its place.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil && !answers(l.path) {
		_ = os.Remove(l.path)
	}
	return err
}

func answers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("control socket %s: a file that is not a socket is in the way: remove it or choose another path", path)
	}
	if answers(path) {
		return fmt.Errorf("control socket %s: another daemon answers on it", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing a dead daemon's control socket: %w", err)
	}
	return nil
}

// ReadToken reads a bearer token from a file that only its owner may read.
func ReadToken(path string) (string, error) {
	if path == "" {
		return "", errors.New("the control API is served over TCP only with a token: set control_token_file")
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("reading the control token: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("control token %s can be read by others (mode %04o): chmod 600 it", path, st.Mode().Perm())
	}
	if st.Size() > 4096 {
		return "", fmt.Errorf("control token %s: larger than 4096 bytes", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the control token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minToken || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("control token %s: want one line of at least %d characters, such as from `openssl rand -hex 32`", path, minToken)
	}
	return token, nil
}

// RequireToken lets through requests that carry the bearer token, or that of one of the
// sessions (nil: there are none), and those that ask how the daemon is.
func RequireToken(token string, sessions *Sessions, next http.Handler) (http.Handler, error) {
	if len(token) < minToken {
		return nil, fmt.Errorf("control token: want at least %d characters", minToken)
	}
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && (r.URL.Path == "/healthz" || r.URL.Path == "/readyz") {
			next.ServeHTTP(w, r)
			return
		}
		// Hashed first, so that the comparison tells nothing of the length either.
		given := bearer(r)
		have := sha256.Sum256([]byte(given))
		if subtle.ConstantTimeCompare(have[:], want[:]) != 1 && (sessions == nil || !sessions.Valid(given)) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			WriteError(w, &api.Error{
				Status:  http.StatusUnauthorized,
				Message: "the control API needs a bearer token",
				Hint:    "give the token with --control-token-file or SKEP_CONTROL_TOKEN_FILE",
			})
			return
		}
		r.Header.Del("Authorization") // is none of a function's business
		next.ServeHTTP(w, r)
	}), nil
}

// bounded bounds how long the rest of a request is waited for that has been answered without
// it: one without a token is nobody's who may keep a connection.
func bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(lastRead)) }() // there is none where the connection is another's now
		}
		h.ServeHTTP(w, r)
	})
}

// Serve answers requests on l until ctx ends, then gives those under way
// until grace is over. It closes l.
func Serve(ctx context.Context, l net.Listener, h http.Handler, grace time.Duration) error {
	// Requests live on past ctx: those under way are given their grace.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           bounded(h),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancelStop := context.WithTimeout(base, grace)
	defer cancelStop()
	err := srv.Shutdown(stop)
	if err != nil {
		cancel()
		err = srv.Close() // what is left after the grace is cut
	}
	<-served
	return err
}
