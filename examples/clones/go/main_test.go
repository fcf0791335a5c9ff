package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestHookMakesClonesDiffer: two generators with one seed, as two clones have
// one memory, say the same, unless the hook gave each its own entropy.
func TestHookMakesClonesDiffer(t *testing.T) {
	clone := func(hook string) (random, kernel string) {
		g := &generator{}
		g.seed([]byte("honey"))
		h := routes(g)
		if hook != "" {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("POST", "/clone", strings.NewReader(`{"instance":"i-1","entropy":"`+hook+`"}`)))
			if w.Code != http.StatusOK {
				t.Fatalf("the hook answers %d: %s", w.Code, w.Body)
			}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		var says map[string]string
		if err := json.Unmarshal(w.Body.Bytes(), &says); err != nil {
			t.Fatal(err)
		}
		return says["random"], says["kernel"]
	}
	one, another := strings.Repeat("0a", 64), strings.Repeat("0b", 64)
	a, kernelA := clone("")
	b, kernelB := clone("")
	if a != b {
		t.Errorf("without the hook: %s and %s, want the same: the example shows nothing", a, b)
	}
	if kernelA == kernelB {
		t.Errorf("the kernel said %s twice", kernelA)
	}
	if a, _ = clone(one); a == b {
		t.Error("the hook changes nothing")
	}
	if b, _ = clone(another); a == b {
		t.Errorf("with the hook both say %s", a)
	}
	if b, _ = clone(one); a != b {
		t.Errorf("with the same entropy: %s and %s: the hook does not take it", a, b)
	}
}
