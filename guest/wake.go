package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxSaid bounds what an agent may have to say before it is greeted, in bytes: more than
// its queue of output holds.
const maxSaid = 512 << 10

// Wake has the agent of a restored guest say hello and tell the time, ahead of being greeted: all
// that this takes of the guest it need not do when it is. What it has said is not lost: it
// is heard on the connection that Wake returns, by Connect or ConnectClone. conn is Wake's from then on,
// also when it fails.
func Wake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	said, err := hearWaking(conn)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("waking the guest's agent: %w", err), conn.Close())
	}
	return &heard{Conn: conn, r: io.MultiReader(bytes.NewReader(said), conn)}, nil
}

// hearWaking returns the frames that come before the answer to a time.
func hearWaking(conn net.Conn) ([]byte, error) {
	if err := WriteFrame(conn, KindTime, EncodeTime(time.Now().UnixNano())); err != nil {
		return nil, err
	}
	var said bytes.Buffer
	for {
		k, p, err := ReadFrame(conn, FromAgent, nil)
		if err != nil {
			return nil, err
		}
		if k == KindClock {
			return said.Bytes(), nil
		}
		if said.Len()+headLen+len(p) > maxSaid {
			return nil, fmt.Errorf("it says more than %d bytes before it is greeted", maxSaid)
		}
		if err := WriteFrame(&said, k, p); err != nil {
			return nil, err
		}
	}
}

// heard is a connection of which a part has been read.
type heard struct {
	net.Conn
	r io.Reader
}

func (h *heard) Read(b []byte) (int, error) { return h.r.Read(b) }
