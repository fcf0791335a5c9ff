package export

import (
	"log/slog"
	"sync"
	"time"
)

// seldom says what goes wrong with sending spans, and not for each of them.
type seldom struct {
	log *slog.Logger

	mu   sync.Mutex // guards last
	last time.Time
}

const seldomEvery = time.Minute

// Handle is OpenTelemetry's.
func (s *seldom) Handle(err error) {
	s.mu.Lock()
	now := time.Now()
	say := s.last.IsZero() || now.Sub(s.last) >= seldomEvery
	if say {
		s.last = now
	}
	s.mu.Unlock()
	if say && s.log != nil {
		s.log.Warn("spans are not sent", "error", err)
	}
}
