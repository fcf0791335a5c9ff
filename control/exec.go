package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/guest"
)

// Visit is a connection into an instance, as the guest's agent speaks it.
type Visit interface {
	io.ReadWriteCloser
	Instance() string
	Err() error // why the instance ends; nil while it does not
}

func (s *Server) execFunction(w http.ResponseWriter, r *http.Request) error {
	f, err := s.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	return s.exec(w, r, f.Name, "")
}

func (s *Server) execInstance(w http.ResponseWriter, r *http.Request) error {
	return s.exec(w, r, "", r.PathValue("id"))
}

// exec makes of the request's connection one to the agent of an instance. What
// passes is checked: neither side gets what the other may not send.
func (s *Server) exec(w http.ResponseWriter, r *http.Request, function, instance string) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), api.ExecProtocol) {
		return &api.Error{Status: http.StatusUpgradeRequired, Message: "this call needs HTTP/1.1 and the header Upgrade: " + api.ExecProtocol, Hint: "`skep exec` and `skep cp` speak it"}
	}
	visit, err := s.o.Node.Visit(r.Context(), function, instance)
	if err != nil {
		return err
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return errors.Join(fmt.Errorf("taking over the connection: %w", err), visit.Close())
	}
	defer s.untilClosing(conn)()
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n\r\n", api.ExecProtocol, api.HeaderInstance, visit.Instance())
	if err != nil {
		conn.Close()
		visit.Close()
		return nil // the client has gone
	}
	if err := guest.Relay(&hijacked{conn, rw.Reader}, visit, visit.Err); err != nil {
		s.log.Debug("a visit ended early", "instance", visit.Instance(), "error", err)
	}
	return nil
}

// untilClosing closes the connection when the daemon ends, which does not wait
// for connections that it has handed out.
func (s *Server) untilClosing(conn net.Conn) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-s.o.Closing:
			conn.Close()
		case <-ctx.Done():
		}
	}()
	return cancel
}

// hijacked reads first what the server has read already.
type hijacked struct {
	net.Conn
	r *bufio.Reader
}

func (h *hijacked) Read(p []byte) (int, error) { return h.r.Read(p) }
