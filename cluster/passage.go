package cluster

import (
	"io"
	"net"
	"sync"
)

// passage passes connections on. The listener may be of another network namespace
// than this process: that is how the host's clients come to the API server, with no
// interface between the two.
type passage struct{ to string }

// serve returns when the listener is closed. Connections go on until they end.
func (p *passage) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go p.pass(conn.(*net.TCPConn))
	}
}

func (p *passage) pass(from *net.TCPConn) {
	defer from.Close()
	conn, err := net.Dial("tcp", p.to)
	if err != nil {
		return // the client sees its connection end, as when nobody listens
	}
	to := conn.(*net.TCPConn)
	defer to.Close()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{to, from}, {from, to}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].CloseWrite()
		})
	}
	both.Wait()
}
