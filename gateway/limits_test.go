package gateway

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// A limit that passes just when its stage ends blames nobody: the instance that
// was lent at that moment, or that has just answered, least of all.
func TestLimitOfAStageThatIsOver(t *testing.T) {
	long := api.Limits{Queue: time.Hour, Response: time.Hour, Idle: time.Hour, Total: time.Hour}
	_, end := context.WithCancelCause(t.Context())
	defer end(nil)
	l := &limits{of: long, began: time.Now(), end: func(c *cut) { end(c) }, client: http.NewResponseController(nil)}
	l.start(false)
	l.lent(nil)
	l.passStage(queued, "queue_timeout", long.Queue)
	if c := l.why.Load(); c != nil {
		t.Errorf("lent, and ended all the same: %v, %s", c, c.failure)
	}
	l.sent()
	l.answered(false)
	l.passStage(awaiting, "response_timeout", long.Response)
	if c := l.why.Load(); c != nil {
		t.Errorf("answered, and ended all the same: %v, %s", c, c.failure)
	}
	l.pass("timeout", long.Total)
	if c := l.why.Load(); c == nil || c.failure != api.FailureTimeout {
		t.Errorf("the limit of the whole: %v", c)
	}
	for _, timer := range []*time.Timer{l.total, l.step, l.look} {
		timer.Stop()
	}
}
