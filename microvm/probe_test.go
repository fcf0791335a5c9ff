package microvm

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// Whatever a server answers to a probe, in HTTP/1.1 or in HTTP/2 alone, shows
// that it is there; at a ready path only a 2xx does.
func TestProbeTakesAnyAnswer(t *testing.T) {
	protocols := func(h1, h2 bool) *http.Protocols {
		p := new(http.Protocols)
		p.SetHTTP1(h1)
		p.SetUnencryptedHTTP2(h2)
		return p
	}
	for name, tc := range map[string]struct {
		protocols *http.Protocols
		status    int
		path      string
		raw       string // what it answers, whatever it is asked
		resets    bool   // it speaks HTTP/2 alone, and answers no request
		want      bool
	}{
		"http":            {protocols: protocols(true, false), status: 200, want: true},
		"h2c only":        {protocols: protocols(false, true), status: 200, want: true},
		"ready":           {protocols: protocols(true, false), status: 204, path: "/ready", want: true},
		"not ready":       {protocols: protocols(true, false), status: 503, path: "/ready"},
		"not implemented": {raw: "HTTP/1.0 501 Unsupported method ('OPTIONS')\r\n\r\n", want: true},
		"not HTTP":        {raw: "220 mail.example.org ESMTP\r\n"},
		"hangs up":        {},
		"resets streams":  {resets: true, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if tc.protocols != nil {
				s := &http.Server{Protocols: tc.protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(tc.status) })}
				go s.Serve(l)
				defer s.Close()
			} else {
				go func() {
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						if tc.resets {
							go resetStreams(c)
							continue
						}
						_, _ = http.ReadRequest(bufio.NewReader(c))
						_, _ = c.Write([]byte(tc.raw))
						c.Close()
					}
				}()
				defer l.Close()
			}
			v := &VM{spec: Spec{Server: Server{Name: "f", ReadyPath: tc.path, Port: 8080}, Dial: func(ctx context.Context, _ int) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
			}}}
			v.connect(nil)
			defer v.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := v.Ask(ctx); (err == nil) != tc.want {
				t.Errorf("%v, want an answer: %v", err, tc.want)
			}
		})
	}
}

// resetStreams serves a connection as a server of gRPC may one that brings no call.
func resetStreams(c net.Conn) {
	defer c.Close()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
		return
	}
	f := http2.NewFramer(c, c)
	for err := f.WriteSettings(); err == nil; {
		var frame http2.Frame
		if frame, err = f.ReadFrame(); err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			err = f.WritePing(true, frame.Data)
		case *http2.HeadersFrame:
			err = f.WriteRSTStream(frame.StreamID, http2.ErrCodeProtocol)
		}
	}
}
