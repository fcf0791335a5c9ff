// Command probe is the function of the agent's tests: it tells, over HTTP, what
// it finds itself in, and does what it is asked to.
package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Place is where the function runs, as it sees it.
type Place struct {
	UID, GID int
	Groups   []int
	Dir      string
	Env      []string
	Args     []string
	Hostname string
	Files    map[string]string // content of some files
	Mounts   []string          // mount points
	Random   string            // 16 bytes
	UUID     string
	Time     time.Time
	Hooks    []string // bodies of clone hooks so far
	Cgroup   string
	OOMScore string
	Children []string // states of processes whose parent is PID 1
}

var (
	mu    sync.Mutex
	hooks []string
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "exit":
			fmt.Println("about to end")
			os.Exit(7)
		case "orphan":
			// Its child outlives it, and is PID 1's to reap.
			cmd := exec.Command("/probe", "sleep")
			cmd.Start()
			return
		case "sleep":
			time.Sleep(50 * time.Millisecond)
			return
		case "surroundings":
			json.NewEncoder(os.Stdout).Encode(surroundings())
			return
		case "cat":
			io.Copy(os.Stdout, os.Stdin)
			return
		case "read":
			for _, name := range os.Args[2:] {
				b, err := os.ReadFile(name)
				fmt.Printf("%s=%q %v\n", name, b, err)
			}
			return
		case "write":
			for _, name := range os.Args[2:] {
				fmt.Printf("%s %v\n", name, os.WriteFile(name, nil, 0o644))
			}
			return
		case "escape":
			escape(os.Args[2])
			return
		case "hog":
			hog()
		case "self":
			b, _ := os.ReadFile("/proc/self/limits")
			c, _ := os.ReadFile("/proc/self/status")
			d, _ := os.ReadFile("/proc/self/oom_score_adj")
			tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
			fmt.Printf("%s%soom %s\nterminal %v\n", b, c, d, err == nil)
			if err == nil {
				size, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
				fmt.Println("size", size.Row, size.Col, err)
			}
			return
		case "stubborn":
			signal.Ignore(syscall.SIGTERM)
		}
	}
	fmt.Println("probe: starting")
	fmt.Fprintln(os.Stderr, "probe: on stderr")
	terminated := make(chan os.Signal, 1)
	if len(os.Args) < 2 {
		signal.Notify(terminated, syscall.SIGTERM)
	}
	go func() { <-terminated; fmt.Println("probe: terminated"); os.Exit(3) }()
	http.HandleFunc("/place", place)
	http.HandleFunc("/time", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(time.Now()) })
	http.HandleFunc("/surroundings", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(surroundings()) })
	http.HandleFunc("/draws", func(w http.ResponseWriter, _ *http.Request) {
		once.Do(func() { go draw() }) // not before: others are to have the memory and the processor to themselves
		mu.Lock()
		defer mu.Unlock()
		json.NewEncoder(w).Encode(draws)
	})
	http.HandleFunc("/hook", func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		hooks = append(hooks, string(b))
		mu.Unlock()
	})
	http.HandleFunc("/refuse", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) })
	http.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		if err := os.WriteFile(r.FormValue("path"), []byte(r.FormValue("data")), 0o644); err != nil {
			http.Error(w, err.Error(), 500)
		}
	})
	http.HandleFunc("/log", func(_ http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("lines"))
		for i := range n {
			fmt.Printf("line %d %s\n", i, strings.Repeat("x", 1000))
		}
	})
	http.HandleFunc("/orphans", func(_ http.ResponseWriter, _ *http.Request) {
		for range 20 {
			exec.Command("/probe", "orphan").Run()
		}
	})
	http.HandleFunc("/fork", func(http.ResponseWriter, *http.Request) {
		for range 20 {
			cmd := exec.Command("/probe", "stubborn")
			cmd.Env = []string{"PORT=0"}
			cmd.Start()
		}
	})
	http.HandleFunc("/hog", func(http.ResponseWriter, *http.Request) { hog() })
	fmt.Fprintln(os.Stderr, http.ListenAndServe(os.Getenv("HOST")+":"+os.Getenv("PORT"), nil))
}

// hog takes all memory.
func hog() {
	for held := [][]byte{}; ; {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
}

// drawn is what a thread that never waits for requests sees: a random number,
// and the host's name at that time.
type drawn struct{ Random, Hostname string }

var once sync.Once

var draws []drawn // guarded by mu

// draw draws until there are too many.
func draw() {
	for range 100_000 {
		random := make([]byte, 16)
		rand.Read(random)
		name, _ := os.Hostname()
		mu.Lock()
		draws = append(draws, drawn{fmt.Sprintf("%x", random), name})
		mu.Unlock()
		time.Sleep(2 * time.Millisecond)
	}
}

func place(w http.ResponseWriter, _ *http.Request) {
	p := Place{UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ(), Args: os.Args, Time: time.Now(), Files: map[string]string{}}
	p.Groups, _ = os.Getgroups()
	p.Dir, _ = os.Getwd()
	p.Hostname, _ = os.Hostname()
	for _, f := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/skep/instance", "/written", "/proc/1/status"} {
		b, err := os.ReadFile(f)
		if err == nil {
			p.Files[f] = string(b)
		}
	}
	b, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(b)) {
		p.Mounts = append(p.Mounts, strings.Fields(line)[1])
	}
	random := make([]byte, 16)
	rand.Read(random)
	p.Random = fmt.Sprintf("%x", random)
	b, _ = os.ReadFile("/proc/sys/kernel/random/uuid")
	p.UUID = string(b)
	b, _ = os.ReadFile("/proc/self/cgroup")
	p.Cgroup = string(b)
	b, _ = os.ReadFile("/proc/self/oom_score_adj")
	p.OOMScore = string(b)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		b, _ := os.ReadFile(s)
		if i := strings.LastIndexByte(string(b), ')'); i > 0 {
			if f := strings.Fields(string(b[i+1:])); f[1] == "1" {
				p.Children = append(p.Children, f[0])
			}
		}
	}
	mu.Lock()
	p.Hooks = hooks
	mu.Unlock()
	json.NewEncoder(w).Encode(p)
}

// escape leaves its root, as whoever may change that can, and tells what it finds there:
// which directories are not empty, and what a file of the root is by each of them.
func escape(dir string) {
	fmt.Println(os.Chdir("/"), os.MkdirAll(dir, 0o755), unix.Chroot(dir))
	for range 16 {
		os.Chdir("..")
	}
	fmt.Println(unix.Chroot("."))
	for _, name := range []string{"/rw", "/lower", "/delivered", "/root"} {
		entries, err := os.ReadDir(name)
		fmt.Printf("%s %v %v\n", name, len(entries) > 0, err)
	}
	fmt.Println(os.WriteFile("/root/srv/escaped", nil, 0o644))
}
