package control

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path"

	"github.com/skep-dev/skep/api"
)

// web is the page: HTML, a style sheet and ES modules, as they are served.
//
//go:embed web
var web embed.FS

// pagePolicy lets the page have its own files and the API of where it came from, and
// nothing else: no script within HTML, no other host, no frame around it.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Page serves the page at / and its files below /ui/, without a token, since there is
// nothing of the node in them; and makes sessions of tickets. All else is next's, which
// wants a token.
func Page(sessions *Sessions, next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", asset("index.html"))
	entries, err := fs.ReadDir(web, "web")
	if err != nil { // which is compiled in
		return next
	}
	for _, e := range entries {
		mux.Handle("GET /ui/"+e.Name(), asset(e.Name()))
	}
	mux.HandleFunc("POST /ui/session", func(w http.ResponseWriter, r *http.Request) {
		var t api.TicketRequest
		if err := decode(w, r, &t); err != nil {
			WriteError(w, &api.Error{Status: http.StatusBadRequest, Message: err.Error()})
			return
		}
		session, ok := sessions.Redeem(t.Ticket)
		if !ok {
			WriteError(w, &api.Error{Status: http.StatusForbidden, Message: "the link has been used, or is too old", Hint: "`skep dashboard` makes another"})
			return
		}
		_ = answer(w, session) // strings
	})
	mux.Handle("/", next)
	return mux
}

// asset serves one of the page's files.
func asset(name string) http.Handler {
	b, err := web.ReadFile("web/" + name)
	sum := sha256.Sum256(b)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err != nil {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
		_, _ = w.Write(b)
	})
}
