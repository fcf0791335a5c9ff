// Package cause puts the reason for which a context ended into the errors that it
// led to.
package cause

import (
	"context"
	"errors"
	"fmt"
)

// Because puts the reason for which ctx ended before an error that it caused. An
// error of a context that goes on stays as it is.
func Because(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
		return fmt.Errorf("%w (%w)", why, err)
	}
	return err
}
