package link

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// echo answers every connection with what it is sent, until the test ends.
func echo(t *testing.T) string {
	t.Helper()
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := in.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() { in.Close(); wg.Wait() })
	return in.Addr().String()
}

// All bytes arrive in order and nothing before it can: a round trip after another for the handshake,
// and what the rate makes of it.
func TestLink(t *testing.T) {
	l := Link{RTT: 20 * time.Millisecond, Rate: 4 << 20}
	p, err := Open(l, echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dialled := time.Now()
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	trip := func(began time.Time, data []byte) time.Duration {
		go c.Write(data)
		got := make([]byte, len(data))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came back changed, or not: %v", len(data), err)
		}
		return time.Since(began)
	}
	// Lower bounds hold however busy the machine is.
	if took := trip(dialled, data[:1]); took < 2*l.RTT {
		t.Errorf("the first byte was back after %v", took)
	}
	if took := trip(time.Now(), data[:1]); took < l.RTT {
		t.Errorf("a byte was back after %v", took)
	}
	if took := trip(time.Now(), data); took < 250*time.Millisecond+l.RTT {
		t.Errorf("a MiB was back after %v", took)
	}
}

// Close ends what stands, and is idempotent; a connection whose other side is not there ends.
func TestLinkEnds(t *testing.T) {
	p, err := Open(Link{Rate: 1 << 30}, echo(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of a link that is closed", n)
	}
	dead, err := Open(Link{Rate: 1 << 30}, "127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	d, err := net.Dial("tcp", dead.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n, err := d.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of nobody", n)
	}
	if _, err := Open(Link{}, "127.0.0.1:1"); err == nil {
		t.Error("a link without a rate was opened")
	}
}
