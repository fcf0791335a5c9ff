package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// CopyIn unpacks a tar stream below a directory of the guest's root, which is
// made where it is missing, over conn, a connection to its ExecPort that CopyIn
// closes. Each file replaces one of its name at once, whole, with its mode, owner
// and time, but for one that is a mount, which is written to; nothing is put outside of the directory. It works before a Clone, too.
// An error of the guest's is a *RefusedError; what has come before it stays.
func CopyIn(ctx context.Context, conn io.ReadWriteCloser, dir string, tar io.Reader) error {
	return copyIn(ctx, conn, KindCopyIn, dir, tar)
}

// Delivered is what a tar stream of Deliver calls the mount.
const Delivered = "mount"

// Deliver is CopyIn to what is mounted at a path as the host's, or as one of the files of
// Names, also where nobody in the guest may write to that. The stream has the
// directory or file as Delivered; a file keeps its identity, so that who has it open
// sees what it becomes.
func Deliver(ctx context.Context, conn io.ReadWriteCloser, path string, tar io.Reader) error {
	return copyIn(ctx, conn, KindDeliver, path, tar)
}

func copyIn(ctx context.Context, conn io.ReadWriteCloser, k Kind, to string, tar io.Reader) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	answer := make(chan error, 1)
	go func() {
		err := readCopied(conn, nil)
		answer <- err
		if err != nil {
			conn.Close() // nothing more need be sent
		}
	}()
	err := sendTar(conn, k, to, tar)
	if err != nil && !errors.Is(err, ErrLost) {
		return err // what is copied cannot be read; the answer's reader ends with conn
	}
	if answered := <-answer; answered != nil {
		err = answered // why nothing more could be sent
	}
	return orEnded(ctx, err)
}

func sendTar(conn io.Writer, k Kind, to string, tar io.Reader) error {
	if len(to) == 0 || len(to) > MaxPath {
		return fmt.Errorf("a path of %d bytes: want 1 to %d", len(to), MaxPath)
	}
	if err := WriteFrame(conn, k, []byte(to)); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	if err := sendData(conn, tar); err != nil {
		return err
	}
	if err := WriteFrame(conn, KindEOF, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

func sendData(conn io.Writer, from io.Reader) error {
	buf := make([]byte, HeadLen+MaxOutput)
	for {
		n, err := from.Read(buf[HeadLen:])
		if n > 0 {
			if err := WriteFilled(conn, KindData, buf[:HeadLen+n]); err != nil {
				return fmt.Errorf("%w: %w", ErrLost, err)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// CopyOut writes a file or directory of the guest's, by its path in the
// function's root, to w as a tar stream, in which it has its own name. It closes
// conn, a connection to the guest's ExecPort. What comes is hostile: unpack it
// with care.
func CopyOut(ctx context.Context, conn io.ReadWriteCloser, path string, w io.Writer) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if len(path) == 0 || len(path) > MaxPath {
		return fmt.Errorf("a path of %d bytes: want 1 to %d", len(path), MaxPath)
	}
	if err := WriteFrame(conn, KindCopyOut, []byte(path)); err != nil {
		return orEnded(ctx, fmt.Errorf("%w: %w", ErrLost, err))
	}
	return orEnded(ctx, readCopied(conn, w))
}

// readCopied reads what comes of a copy until the agent says that it is done; w
// is nil where no data may come.
func readCopied(conn io.Reader, w io.Writer) error {
	buf := make([]byte, MaxOutput)
	for {
		k, p, err := ReadFrame(conn, FromExecAgent, buf)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
		switch {
		case k == KindCopied:
			return nil
		case k == KindRefused:
			refused, err := DecodeRefused(p)
			if err != nil {
				return err
			}
			return refused
		case k == KindData && w != nil:
			if _, err := w.Write(p); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: a frame of kind %d of a copy", ErrLost, k)
		}
	}
}

func orEnded(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
