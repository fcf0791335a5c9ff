package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// listen opens the port, on all addresses or on HELLO_LISTEN alone. With
// HELLO_SERIAL one connection is served at a time, and with HELLO_EXIT_AFTER_MS
// the server ends by itself, as if all were well, so long after it has begun.
func listen(port string) (net.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("HELLO_LISTEN"), port))
	if err != nil {
		return nil, err
	}
	if os.Getenv("HELLO_SERIAL") != "" {
		l = &serial{Listener: l, turn: make(chan struct{}, 1)}
	}
	if ms, _ := strconv.Atoi(os.Getenv("HELLO_EXIT_AFTER_MS")); ms > 0 {
		time.AfterFunc(time.Duration(ms)*time.Millisecond, func() {
			fmt.Println("hello: told by HELLO_EXIT_AFTER_MS to end")
			os.Exit(0)
		})
	}
	return l, nil
}

// serial accepts a connection when the one before is closed, as servers with one
// thread do.
type serial struct {
	net.Listener
	turn chan struct{} // full while a connection is open
}

func (s *serial) Accept() (net.Conn, error) {
	s.turn <- struct{}{}
	c, err := s.Listener.Accept()
	if err != nil {
		<-s.turn
		return nil, err
	}
	return &serialConn{Conn: c, over: func() { <-s.turn }}, nil
}

type serialConn struct {
	net.Conn
	once sync.Once
	over func()
}

func (c *serialConn) Close() error {
	defer c.once.Do(c.over)
	return c.Conn.Close()
}
