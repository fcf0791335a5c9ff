// Command probe is what tests run in containers: a few commands in one static
// program, each under its own name.
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	args := os.Args
	if filepath.Base(args[0]) == "probe" {
		args = args[1:]
	}
	if len(args) == 0 {
		args = []string{"pause"}
	}
	name := filepath.Base(args[0])
	f, ok := commands[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "probe: no command %q\n", name)
		os.Exit(127)
	}
	if err := f(args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

var commands = map[string]func(args []string) error{
	"echo":     func(a []string) error { _, err := fmt.Println(strings.Join(a, " ")); return err },
	"true":     func([]string) error { return nil },
	"false":    func([]string) error { os.Exit(1); return nil },
	"env":      func([]string) error { _, err := fmt.Println(strings.Join(os.Environ(), "\n")); return err },
	"cat":      cat,
	"sleep":    sleep,
	"id":       id,
	"hostname": hostname,
	"tty":      tty,
	"size":     size,
	"exit":     exit,
	"serve":    serve,
	"rigid":    rigid,
	"nginx":    webServer,
	"httpd":    webServer,
	"euid":     func([]string) error { fmt.Println("Effective uid:", os.Geteuid()); return nil },
	"pause":    func([]string) error { wait(); return nil },
	"read":     read,
	"write":    write,
	"burst":    burst,
	"eat":      eat,
	"hold":     hold,
	"burn":     burn,
	"random":   random,
	"trap":     trap,
	"get":      get,
	"serves":   func([]string) error { return get([]string{"http://127.0.0.1:" + os.Getenv("PORT")}) },
	"mounts":   func([]string) error { return cat([]string{"/proc/self/mounts"}) },
	"cwd":      func([]string) error { d, err := os.Getwd(); fmt.Println(d); return err },
	"tar":      tarball,
	"orphan":   func([]string) error { return exec.Command("/proc/self/exe", "sleep", "1000").Start() },
}

// rigid serves at a port, and ends at the first request for which its host name is not
// what it was: it does not bear being a clone.
func rigid(a []string) error {
	was, err := os.Hostname()
	if err != nil {
		return err
	}
	before = func() {
		if now, _ := os.Hostname(); now != was {
			os.Exit(9)
		}
	}
	return serve(a)
}

// before is called before each request is answered.
var before = func() {}

// wait ends with a signal, as pause does.
func wait() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	<-c
}

func cat(a []string) error {
	if len(a) == 0 {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	for _, name := range a {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		os.Stdout.Write(b)
	}
	return nil
}

func sleep(a []string) error {
	s, err := strconv.ParseFloat(a[0], 64)
	time.Sleep(time.Duration(s * float64(time.Second)))
	return err
}

func id([]string) error {
	groups, err := os.Getgroups()
	fmt.Println(os.Getuid(), os.Getgid(), groups)
	return err
}

func hostname([]string) error {
	h, err := os.Hostname()
	fmt.Println(h)
	return err
}

func tty([]string) error {
	for fd := range 3 {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		fmt.Print(err == nil, " ")
	}
	fmt.Println()
	return nil
}

// size tells the terminal's, at once and whenever it changes, until one of a
// width of 1.
func size([]string) error {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGWINCH)
	for {
		w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		fmt.Println(w.Row, w.Col)
		if w.Col == 1 {
			return nil
		}
		<-c
	}
}

func exit(a []string) error {
	n, err := strconv.Atoi(a[0])
	if err == nil {
		os.Exit(n)
	}
	return err
}

// webServer serves at a port, and says in a file which process it is.
func webServer(a []string) error {
	if err := os.WriteFile(a[1], []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return err
	}
	fmt.Println(os.Args[0], "serves")
	return serve(a[:1])
}

// serve answers requests with a body per path: /env/NAME, /file/PATH, /random, /start
// (the same as long as the process lives), /hostname, /log/TEXT, which it writes,
// /burst/BYTES, so many of which it writes, /touch/MIB, for which it takes memory that it has not had before. A second argument is for how many seconds it does
// not listen; /health fails for so long again, and for good after /fail. A third names a file that it reads first,
// which /told has.
func serve(a []string) error {
	port := os.Getenv("PORT")
	if len(a) > 0 {
		port = a[0]
	}
	slow := 0.0
	if len(a) > 1 {
		var err error
		if slow, err = strconv.ParseFloat(a[1], 64); err != nil {
			return err
		}
	}
	var told []byte
	if len(a) > 2 {
		var err error
		if told, err = os.ReadFile(a[2]); err != nil {
			return err
		}
		fmt.Printf("told %q\n", told)
	}
	pause := time.Duration(slow * float64(time.Second))
	time.Sleep(pause)
	began := time.Now()
	var failing atomic.Bool
	start := hexRandom()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch what, arg, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); what {
		case "env":
			fmt.Fprint(w, os.Getenv(arg))
		case "file":
			b, err := os.ReadFile("/" + arg)
			if err != nil {
				http.Error(w, err.Error(), http.StatusNotFound)
				return
			}
			w.Write(b)
		case "random":
			fmt.Fprint(w, hexRandom())
		case "start":
			fmt.Fprint(w, start)
		case "touch":
			if err := eat([]string{arg}); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			fmt.Fprint(w, "touched ", arg)
		case "log":
			fmt.Println(arg)
		case "burst":
			if err := burst([]string{arg}); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
			}
		case "told":
			w.Write(told)
		case "health":
			if failing.Load() || time.Since(began) < pause {
				http.Error(w, "not yet", http.StatusServiceUnavailable)
			}
		case "fail":
			failing.Store(true)
		case "hostname":
			h, _ := os.Hostname()
			fmt.Fprint(w, h)
		default:
			fmt.Fprint(w, "hello")
		}
	})
	fmt.Println("serving at", port)
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before()
		http.DefaultServeMux.ServeHTTP(w, r)
	}))
}

func hexRandom() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// read tells each line that it reads.
func read([]string) error {
	s := bufio.NewScanner(os.Stdin)
	for s.Scan() {
		fmt.Println("read", s.Text())
	}
	fmt.Println("end")
	return s.Err()
}

func write(a []string) error { return os.WriteFile(a[0], []byte(strings.Join(a[1:], " ")), 0o644) }

// burst writes so many bytes; with a second argument it says so first, and waits for
// SIGUSR1.
func burst(a []string) error {
	n, err := strconv.Atoi(a[0])
	if err != nil {
		return err
	}
	if len(a) > 1 {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1)
		fmt.Println("ready")
		<-c
	}
	_, err = io.CopyN(os.Stdout, strings.NewReader(strings.Repeat("0123456789abcde\n", n/16+1)), int64(n))
	return err
}

// eat takes so many MiB of memory.
func eat(a []string) error {
	held, err := taken(a)
	fmt.Println("ate", len(held))
	return err
}

// hold takes so many MiB of memory, and keeps them.
func hold(a []string) error {
	held, err := taken(a)
	if err != nil {
		return err
	}
	fmt.Println("holds", len(held))
	wait()
	fmt.Println("held", len(held))
	return nil
}

// taken is so many MiB of memory.
func taken(a []string) (held [][]byte, err error) {
	n, err := strconv.Atoi(a[0])
	if err != nil {
		return nil, err
	}
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	return held, nil
}

// burn uses all of one processor.
func burn([]string) error {
	fmt.Println("burns")
	//lint:ignore SA5002 that is what it is for
	for {
	}
}

func random([]string) error { _, err := fmt.Println(hexRandom()); return err }

// trap says which signal has come, and ends with 10.
func trap([]string) error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1)
	fmt.Println("ready")
	s := <-c
	fmt.Println("got", s)
	os.Exit(10)
	return nil
}

func get(a []string) error {
	r, err := http.Get(a[0])
	if err != nil {
		return err
	}
	defer r.Body.Close()
	_, err = io.Copy(os.Stdout, r.Body)
	fmt.Println()
	return err
}
