// Command hello is skep's built-in function: a small HTTP server on $PORT that
// says hello, and, below other paths, does what functions do to their host, so
// that tests can watch.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

func main() {
	if code := os.Getenv("HELLO_EXIT"); code != "" {
		n, _ := strconv.Atoi(code)
		fmt.Fprintln(os.Stderr, "hello: told by HELLO_EXIT to end")
		os.Exit(n)
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	fillTable()
	calibrate()
	l, err := listen(port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("hello: listening on port", port)
	log.Fatal(server().Serve(l))
}

// server speaks HTTP/1.1, and HTTP/2 without encryption to who begins with it.
func server() *http.Server {
	srv := &http.Server{Handler: routes(), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}

// clones counts calls of the clone hook.
var clones atomic.Int64

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("requested_cpu") != "" {
			dirigent(w, r)
			return
		}
		name := r.FormValue("name")
		if name == "" {
			name = "world"
		}
		fmt.Fprintf(w, "Hello, %s!\n", name)
	})
	mux.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, strings.Join(os.Environ(), "\n")) })
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			for _, v := range r.Header[name] {
				fmt.Fprintf(w, "%s: %s\n", name, v)
			}
		}
	})
	mux.HandleFunc("/hostname", func(w http.ResponseWriter, _ *http.Request) { answer(w)(os.Hostname()) })
	mux.HandleFunc("/time", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, time.Now().UnixNano()) })
	mux.HandleFunc("/uuid", func(w http.ResponseWriter, _ *http.Request) {
		b, err := os.ReadFile("/proc/sys/kernel/random/uuid")
		answer(w)(string(b), err)
	})
	mux.HandleFunc("/urandom", func(w http.ResponseWriter, _ *http.Request) {
		b := make([]byte, 32)
		_, err := io.ReadFull(rand.Reader, b)
		answer(w)(hex.EncodeToString(b), err)
	})
	mux.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		answer(w)("written", os.WriteFile(r.FormValue("path"), []byte(r.FormValue("data")), 0o644))
	})
	mux.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		b, err := os.ReadFile(r.FormValue("path"))
		answer(w)(string(b), err)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(flusher{w}, r.Body)
	})
	mux.HandleFunc("/zeros", func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 64<<10)
		for n := number(r, "mib") << 20; n > 0; n -= len(b) {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/table", sumTable)
	mux.HandleFunc("/sse", serveEvents)
	mux.HandleFunc("/ws", serveWebSocket)
	mux.HandleFunc("/sleep", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(time.Duration(number(r, "ms")) * time.Millisecond):
			fmt.Fprintln(w, "slept")
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("POST /clone", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
		fmt.Fprintln(w, clones.Add(1))
	})
	mux.HandleFunc("GET /clone", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, clones.Load()) })
	mux.HandleFunc("/work", work)
	misdeeds(mux)
	return mux
}

// misdeeds are what a host must survive.
func misdeeds(mux *http.ServeMux) {
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) { os.Exit(number(r, "code")) })
	mux.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { select {} })
	mux.HandleFunc("/log", func(w http.ResponseWriter, r *http.Request) {
		line := strings.Repeat("x", 1023) + "\n"
		for n := number(r, "bytes"); n > 0; n -= len(line) {
			os.Stdout.WriteString(line)
		}
		fmt.Fprintln(w, "logged")
	})
	mux.HandleFunc("/alloc", func(w http.ResponseWriter, r *http.Request) {
		held := make([][]byte, 0, 1024)
		for range number(r, "mib") {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			held = append(held, b)
		}
		fmt.Fprintln(w, len(held), "MiB")
	})
	mux.HandleFunc("/fork", func(w http.ResponseWriter, r *http.Request) {
		started, want := 0, number(r, "n")
		for range want {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = []string{"PORT=0"} // each listens on a port of its own until the machine ends
			if err := cmd.Start(); err != nil {
				fmt.Fprintf(w, "started %d of %d: %v\n", started, want, err)
				return
			}
			started++
		}
		fmt.Fprintf(w, "started %d\n", started)
	})
}

// table is memory that is filled before the function is ready, HELLO_TABLE_MIB of
// it: which pages of it a request touches depends on the request.
var table []uint64

func fillTable() {
	mib, _ := strconv.Atoi(os.Getenv("HELLO_TABLE_MIB"))
	table = make([]uint64, mib<<20/8)
	for i := range table {
		table[i] = uint64(i)
	}
}

// sumTable adds up part n of as many as are asked for.
func sumTable(w http.ResponseWriter, r *http.Request) {
	parts, n := max(1, number(r, "parts")), number(r, "part")
	if n < 0 || n >= parts {
		http.Error(w, "part is not below parts", http.StatusBadRequest)
		return
	}
	sum := uint64(0)
	for _, v := range table[len(table)*n/parts : len(table)*(n+1)/parts] {
		sum += v
	}
	fmt.Fprintln(w, sum)
}

func serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range max(1, number(r, "n")) {
		if _, err := fmt.Fprintf(flusher{w}, "data: %d\n\n", i); err != nil {
			return
		}
		time.Sleep(time.Duration(number(r, "ms")) * time.Millisecond)
	}
}

// serveWebSocket sends back what it gets.
func serveWebSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, b); err != nil {
			return
		}
	}
}

// flusher sends each piece at once.
type flusher struct{ w http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}

func answer(w http.ResponseWriter) func(string, error) {
	return func(s string, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, s)
	}
}

func number(r *http.Request, name string) int {
	n, _ := strconv.Atoi(r.FormValue(name))
	return n
}
