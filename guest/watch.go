package guest

import (
	"context"
	"fmt"
	"io"
)

// Watch has the agent notice when a process opens what is at path, or below it: for
// files that are to get their content only when a snapshot has been made. Once that
// has happened no snapshot can be made, and Watch, also with the path "", which adds
// nothing, returns a *RefusedError of RefusedOpened. It closes conn, a connection to
// the guest's ExecPort. Clones watch nothing.
func Watch(ctx context.Context, conn io.ReadWriteCloser, path string) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if len(path) > MaxPath {
		return fmt.Errorf("a path of %d bytes: want at most %d", len(path), MaxPath)
	}
	if err := WriteFrame(conn, KindWatch, []byte(path)); err != nil {
		return orEnded(ctx, fmt.Errorf("%w: %w", ErrLost, err))
	}
	return orEnded(ctx, readCopied(conn, nil))
}
