package gateway

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/skep-dev/skep/node"
)

func TestRetryAfter(t *testing.T) {
	for after, want := range map[time.Duration]int{0: 1, time.Millisecond: 1, 1500 * time.Millisecond: 2, time.Minute: 60, time.Hour: 120} {
		err := fmt.Errorf("lending: %w", &node.QueueFullError{Function: "fn", Limit: 3, After: after})
		if got := retryAfter(err); got != want || !errors.Is(err, node.ErrQueueFull) {
			t.Errorf("%v: %d, want %d", after, got, want)
		}
	}
	if got := retryAfter(node.ErrDraining); got != 1 {
		t.Errorf("while the daemon ends: %d", got)
	}
}
