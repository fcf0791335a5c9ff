package control

import (
	_ "embed"
	"encoding/json"
	"net/http"
)

// document is the API's description, of OpenAPI 3.1. It is made of the table of routes
// and of package api's types, by this package's tests.
//
//go:embed openapi.json
var document []byte

func (s *Server) document(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, json.RawMessage(document))
}
