package control

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
)

const (
	ticketLife  = time.Minute
	sessionLife = 12 * time.Hour
	maxSessions = 1000 // and tickets
)

// Sessions let browsers in: a ticket, which is good once and for a minute, becomes a
// session's token, which is good as the control token is. A page sends it as a header;
// there is no cookie, which a browser would send to functions on another port of the
// same host too, and for others' pages.
type Sessions struct {
	mu      sync.Mutex // guards what follows
	tickets map[[32]byte]time.Time
	tokens  map[[32]byte]time.Time // by their digests; until when
}

// NewSessions returns sessions, none yet.
func NewSessions() *Sessions {
	return &Sessions{tickets: map[[32]byte]time.Time{}, tokens: map[[32]byte]time.Time{}}
}

// Ticket makes a ticket.
func (s *Sessions) Ticket() api.Ticket {
	s.mu.Lock()
	defer s.mu.Unlock()
	secret, until := add(s.tickets, ticketLife)
	return api.Ticket{Ticket: secret, Expires: until}
}

// Redeem makes a session of a ticket; false: it is none, or used, or too old.
func (s *Sessions) Redeem(ticket string) (api.Session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sha256.Sum256([]byte(ticket))
	until, ok := s.tickets[key]
	delete(s.tickets, key)
	if !ok || time.Now().After(until) {
		return api.Session{}, false
	}
	secret, until := add(s.tokens, sessionLife)
	return api.Session{Token: secret, Expires: until}, true
}

// Valid says whether a token is a session's. The digest is looked up, so that how long
// it takes tells nothing of the token.
func (s *Sessions) Valid(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.tokens[sha256.Sum256([]byte(token))]
	return ok && time.Now().Before(until)
}

// add makes a secret that is good for so long; the oldest makes room.
func add(to map[[32]byte]time.Time, life time.Duration) (string, time.Time) {
	now := time.Now()
	var oldest [32]byte
	for key, until := range to {
		if now.After(until) {
			delete(to, key)
		} else if first, ok := to[oldest]; !ok || until.Before(first) {
			oldest = key
		}
	}
	if len(to) >= maxSessions {
		delete(to, oldest)
	}
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	until := now.Add(life).UTC().Truncate(time.Second)
	to[sha256.Sum256([]byte(secret))] = until
	return secret, until
}

// createSession makes a ticket, for who may use the API already.
func (s *Server) createSession(w http.ResponseWriter, _ *http.Request) error {
	t := s.sessions.Ticket()
	t.Address = s.o.PageAddress
	return answer(w, t)
}

// bearer is the token that a request carries; "" is none. Schemes are the same in
// upper and lower case (RFC 9110).
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}
