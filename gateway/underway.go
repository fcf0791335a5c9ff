package gateway

import (
	"context"
	"net/http"
	"sync"
)

// underWay counts the requests of a server, so that its end can wait for them.
// http.Server's Shutdown waits for connections: not for those that were upgraded,
// nor for requests over HTTP/2 whose connection has gone.
type underWay struct {
	http.Handler

	mu   sync.Mutex // guards below
	n    int
	none chan struct{} // if somebody waits: closed when there are none
}

func (u *underWay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.add(1)
	defer u.add(-1)
	u.Handler.ServeHTTP(w, r)
}

func (u *underWay) add(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n += n
	if u.n == 0 && u.none != nil {
		close(u.none)
		u.none = nil
	}
}

// wait waits until there are none.
func (u *underWay) wait(ctx context.Context) error {
	u.mu.Lock()
	if u.n == 0 {
		u.mu.Unlock()
		return nil
	}
	if u.none == nil {
		u.none = make(chan struct{})
	}
	none := u.none
	u.mu.Unlock()
	select {
	case <-none:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
