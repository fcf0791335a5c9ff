package control_test

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/control"
	"github.com/skep-dev/skep/control/controltest"
)

func pageHandler(t *testing.T) (http.Handler, *control.Sessions) {
	t.Helper()
	sessions := control.NewSessions()
	h := control.New(control.Options{Node: controltest.New("hello"), Sessions: sessions, PageAddress: "127.0.0.1:1"}).Handler()
	guarded, err := control.RequireToken(strings.Repeat("t", 32), sessions, h)
	if err != nil {
		t.Fatal(err)
	}
	return control.Page(sessions, guarded), sessions
}

func ask(h http.Handler, method, path, body, token string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func redeem(h http.Handler, ticket string) (int, api.Session) {
	w := ask(h, "POST", "/ui/session", `{"ticket":"`+ticket+`"}`, "")
	var s api.Session
	_ = json.Unmarshal(w.Body.Bytes(), &s)
	return w.Code, s
}

// A ticket is good once and for a minute, what it becomes for half a day, and no cookie
// is set.
func TestSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, sessions := pageHandler(t)
		w := ask(h, "POST", "/v1/sessions", "", strings.Repeat("t", 32))
		var ticket api.Ticket
		if err := json.Unmarshal(w.Body.Bytes(), &ticket); err != nil || ticket.Address != "127.0.0.1:1" {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		if w := ask(h, "POST", "/v1/sessions", "", ""); w.Code != http.StatusUnauthorized {
			t.Errorf("a ticket for nobody: %d", w.Code)
		}
		code, session := redeem(h, ticket.Ticket)
		if code != http.StatusOK {
			t.Fatalf("status %d", code)
		}
		if code, _ := redeem(h, ticket.Ticket); code != http.StatusForbidden {
			t.Errorf("used twice: %d", code)
		}
		for token, want := range map[string]int{session.Token: 200, "": 401, "x": 401, ticket.Ticket: 401, session.Token + "x": 401} {
			w := ask(h, "GET", "/v1/functions", "", token)
			if w.Code != want || w.Header().Get("Set-Cookie") != "" {
				t.Errorf("token %.5q: %d, %v", token, w.Code, w.Header())
			}
		}
		// Whatever the case of the scheme's name, and no other scheme.
		for scheme, want := range map[string]int{"bearer ": 200, "BEARER ": 200, "": 401, "Basic ": 401, "Bearer": 401, "Bearer  ": 401} {
			for _, token := range []string{session.Token, strings.Repeat("t", 32)} {
				r := httptest.NewRequest("GET", "/v1/functions", nil)
				r.Header.Set("Authorization", scheme+token)
				w := httptest.NewRecorder()
				if h.ServeHTTP(w, r); w.Code != want {
					t.Errorf("scheme %q: %d", scheme, w.Code)
				}
			}
		}
		old := sessions.Ticket()
		time.Sleep(time.Minute + time.Second)
		if code, _ := redeem(h, old.Ticket); code != http.StatusForbidden {
			t.Errorf("too old: %d", code)
		}
		time.Sleep(12 * time.Hour)
		if w := ask(h, "GET", "/v1/functions", "", session.Token); w.Code != http.StatusUnauthorized {
			t.Errorf("a session that has ended: %d", w.Code)
		}
		for range 3000 {
			sessions.Ticket() // which make room for each other
		}
	})
}

// The page is there without a token, and may load nothing but itself.
func TestPageFiles(t *testing.T) {
	h, _ := pageHandler(t)
	files, err := fs.Glob(os.DirFS("web"), "*")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	foreign := regexp.MustCompile(`(src|href)="?(https?:)?//|@import|from '[^./]|innerHTML|eval\(|document\.write`)
	for _, f := range append(files, "") {
		path := "/ui/" + f
		if f == "" {
			path = "/"
		}
		w := ask(h, "GET", path, "", "")
		if w.Code != http.StatusOK || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d, %v", path, w.Code, w.Header())
		}
		if bad := foreign.FindString(w.Body.String()); bad != "" {
			t.Errorf("%s has %q", path, bad)
		}
	}
	if w := ask(h, "GET", "/ui/../listen.go", "", ""); w.Code == http.StatusOK {
		t.Error("a file that is none of the page's")
	}
}
