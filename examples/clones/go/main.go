// Command go is a function whose random numbers differ between the clones of
// its snapshot. Deploy it with --clone-hook /clone.
//
// The functions of math/rand and math/rand/v2 draw from the runtime's own
// generator, which was seeded when the process began and cannot be seeded again:
// they repeat in every clone. What may not repeat comes from crypto/rand, which
// asks the kernel, or from a generator of one's own, which the hook replaces.
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"

	crand "crypto/rand"
)

// generator may be seeded again.
type generator struct {
	mu  sync.Mutex // guards rng
	rng *rand.ChaCha8
}

func (g *generator) seed(entropy []byte) {
	var seed [32]byte
	copy(seed[:], entropy) // any 32 of the 64 bytes are as good
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rng = rand.NewChaCha8(seed)
}

func (g *generator) token() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Sprintf("%016x%016x", g.rng.Uint64(), g.rng.Uint64())
}

// hook is what the agent sends to each clone before its first request.
type hook struct {
	Instance string `json:"instance"`
	Entropy  string `json:"entropy"` // hexadecimal, 64 bytes
}

func routes(g *generator) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]string{
			"random": g.token(),    // repeats without the hook
			"kernel": crand.Text(), // never repeats
		})
	})
	mux.HandleFunc("POST /clone", func(w http.ResponseWriter, r *http.Request) {
		var h hook
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&h)
		entropy, hexErr := hex.DecodeString(h.Entropy)
		if err != nil || hexErr != nil || len(entropy) < 32 {
			http.Error(w, "want the clone hook's JSON with 32 bytes of entropy or more", http.StatusBadRequest)
			return
		}
		g.seed(entropy)
	})
	return mux
}

func main() {
	seed := []byte(os.Getenv("EXAMPLE_SEED")) // two processes with one seed are as two clones
	if len(seed) == 0 {
		seed = make([]byte, 32)
		crand.Read(seed)
	}
	g := &generator{}
	g.seed(seed)
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	log.Fatal(http.ListenAndServe(":"+port, routes(g)))
}
