package userfaultfd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/sys"
)

// maxHandover bounds the message of a VMM: 64 KiB are some hundred regions.
const maxHandover = 64 << 10

// handoverRegion is one element of the JSON array that Firecracker sends.
type handoverRegion struct {
	BaseHostVirtAddr uint64 `json:"base_host_virt_addr"`
	Size             uint64 `json:"size"`
	Offset           uint64 `json:"offset"`
	PageSize         uint64 `json:"page_size"`
	PageSizeKiB      uint64 `json:"page_size_kib"` // deprecated, and in bytes in spite of its name
}

func (r handoverRegion) region() Region {
	size := r.PageSize
	if size == 0 {
		size = r.PageSizeKiB
		if size != 0 && size < 4096 {
			size <<= 10 // should a VMM ever mean what the name says
		}
	}
	return Region{HostAddr: r.BaseHostVirtAddr, Size: r.Size, Offset: r.Offset, PageSize: size}
}

// Receive takes over guest memory from a VMM that made the userfaultfd itself,
// as Firecracker does: on conn it sends a JSON array of regions and, by
// SCM_RIGHTS, the descriptor, which has been through UFFDIO_API and whose
// regions are registered. Message and descriptor may come together or apart
// and in several pieces. What is received is checked; a VMM is not trusted.
//
// The guest's Gone is a duplicate of conn, so conn may be closed afterwards.
func Receive(ctx context.Context, conn *net.UnixConn) (Guest, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	h := &handover{}
	g, err := h.receive(conn)
	if err != nil {
		h.closeFDs()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Guest{}, fmt.Errorf("taking over guest memory from the VMM: %w", err)
	}
	return g, nil
}

// handover is what has arrived so far.
type handover struct {
	msg []byte
	fds []int
}

func (h *handover) closeFDs() {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
	h.fds = nil
}

func (h *handover) receive(conn *net.UnixConn) (Guest, error) {
	buf, oob := make([]byte, 8<<10), make([]byte, unix.CmsgSpace(16*4))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil && !errors.Is(err, io.EOF) {
			return Guest{}, err
		}
		if ferr := h.takeRights(oob[:oobn], flags); ferr != nil {
			return Guest{}, ferr
		}
		if err != nil || (n == 0 && oobn == 0) {
			return Guest{}, fmt.Errorf("it closed the connection after %d bytes and %d descriptors: %w", len(h.msg), len(h.fds), io.ErrUnexpectedEOF)
		}
		h.msg = append(h.msg, buf[:n]...)
		if len(h.msg) > maxHandover {
			return Guest{}, fmt.Errorf("its message is over %d bytes", maxHandover)
		}
		regions, complete, err := decodeHandover(h.msg)
		if err != nil {
			return Guest{}, err
		}
		if complete && len(h.fds) > 0 {
			return h.guest(conn, regions)
		}
	}
}

func (h *handover) takeRights(oob []byte, flags int) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("its control message: %w", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials or the like
		}
		h.fds = append(h.fds, fds...)
	}
	if flags&unix.MSG_CTRUNC != 0 || len(h.fds) > 1 {
		return errors.New("it sent more than one descriptor")
	}
	return nil
}

// decodeHandover reads the array; complete is false while more must come.
func decodeHandover(msg []byte) (regions []Region, complete bool, err error) {
	var in []handoverRegion
	if err := json.Unmarshal(msg, &in); err != nil {
		// Only the end of what there is may be wrong with it so far.
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) && syntax.Offset >= int64(len(msg)) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("its list of regions: %w", err)
	}
	for _, r := range in {
		regions = append(regions, r.region())
	}
	if err := CheckRegions(regions); err != nil {
		return nil, false, err
	}
	return regions, true, nil
}

func (h *handover) guest(conn *net.UnixConn, regions []Region) (Guest, error) {
	if !isUserfaultfd(h.fds[0]) {
		return Guest{}, errors.New("the descriptor that it sent is not a userfaultfd")
	}
	pid, err := sys.PeerPID(conn)
	if err != nil {
		return Guest{}, err
	}
	gone, err := conn.File()
	if err != nil {
		return Guest{}, fmt.Errorf("duplicating the connection: %w", err)
	}
	fd, err := newFD(h.fds[0])
	h.fds = nil
	if err != nil {
		gone.Close()
		return Guest{}, err
	}
	if err := fd.watch(); err != nil {
		gone.Close()
		fd.Close()
		return Guest{}, err
	}
	return Guest{FD: fd, Regions: regions, PID: pid, Gone: gone}, nil
}

// Send hands the FD over as a VMM does: msg, the JSON list of regions, and a
// duplicate of the descriptor. The other end is Receive.
func (f *FD) Send(conn *net.UnixConn, msg []byte) error {
	if !f.enter() {
		return os.ErrClosed
	}
	defer f.leave()
	_, _, err := conn.WriteMsgUnix(msg, unix.UnixRights(int(f.n)), nil)
	if err != nil {
		return fmt.Errorf("handing the userfaultfd over: %w", err)
	}
	return nil
}
