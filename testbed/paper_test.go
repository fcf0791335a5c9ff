package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/experiment/report"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/internal/testenv"
	"github.com/skep-dev/skep/testbed/remote"
)

// Every experiment is there for every function that it is about, once, and what
// each has deployed once for it is one piece.
func TestPieces(t *testing.T) {
	all := functions.Bench()
	seen := map[string]int{}
	for _, p := range pieces(all, nil) {
		for _, e := range p.experiments {
			if _, err := experiment.Find(e); err != nil {
				t.Error(err)
			}
			seen[e+" "+p.function]++
		}
	}
	want := map[string]int{"steps helloworld": 1, "concurrency helloworld": 1}
	for _, f := range all {
		for _, e := range []string{"policies", "breakdown", "recording", "storage"} {
			want[e+" "+f] = 1
		}
	}
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("%v; want %v", seen, want)
	}
	for _, test := range []struct{ only, want string }{
		{"steps", "[{pyaes [steps]}]"},
		{"recording,policies", "[{pyaes [policies recording]} {chameleon [policies recording]}]"},
		{"storage,concurrency", "[{pyaes [concurrency]} {pyaes [storage]} {chameleon [storage]}]"},
	} {
		if got := fmt.Sprint(pieces([]string{"pyaes", "chameleon"}, strings.Split(test.only, ","))); got != test.want {
			t.Errorf("only %s: %s; want %s", test.only, got, test.want)
		}
	}
}

func TestPaperRefuses(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	good := func() paper {
		return paper{options: &options{firecracker: self}, out: filepath.Join(t.TempDir(), "out"), functions: []string{"hello"}, where: "vm"}
	}
	p := good()
	if err := p.check(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*paper){
		"no firecracker": func(p *paper) { p.options = &options{firecracker: "/nonexistent"} },
		"--functions is": func(p *paper) { p.functions = nil },
		`has "pyeas"`:    func(p *paper) { p.functions = []string{"pyeas"} },
		`has "native"`:   func(p *paper) { p.only = []string{"native"} },
		"--where moon":   func(p *paper) { p.where = "moon" },
		"--runs":         func(p *paper) { p.runs = -1 },
	} {
		p := good()
		spoil(&p)
		if err := p.run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
		if _, err := os.Stat(p.out); err == nil {
			t.Errorf("%s: a directory was made", want)
		}
	}
}

// here is a host that is this machine: what runs commands in one, run by the test.
func here(t *testing.T) *host {
	t.Helper()
	t.Setenv("HOME", t.TempDir()) // of the scripts
	return &host{done: func() error { return nil }, dial: func() (net.Conn, error) {
		client, server := net.Pipe()
		go remote.Serve(server)
		return client, nil
	}}
}

// fakeSkep is a script in place of skep that gets the directory of results as $out.
func fakeSkep(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "skep")
	const head = "#!/bin/sh\nwhile [ $# -gt 0 ]; do if [ \"$1\" = --out ]; then out=$2; fi; shift; done\n"
	if err := os.WriteFile(path, []byte(head+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func measuringHere(t *testing.T, h *host, out, skep string) *measuring {
	return &measuring{
		paper: &paper{options: &options{}, out: out, every: time.Millisecond, progress: io.Discard},
		host:  h, dir: filepath.Join(t.TempDir(), "results"), program: skep, log: io.Discard,
	}
}

func sample(run int) string {
	return fmt.Sprintf(`{"experiment": "policies", "function": "hello", "variant": "reap", "run": %d, "of": 1}`, run)
}

// Samples are on this machine before a piece has ended, so that they outlive its
// host, and the next host is given them.
func TestSamplesOutliveTheHost(t *testing.T) {
	testenv.NoLeaks(t)
	out, h := t.TempDir(), here(t)
	ctx, died := context.WithCancelCause(t.Context())
	m := measuringHere(t, h, out, fakeSkep(t, "echo '"+sample(0)+"' >>$out/samples.jsonl; printf '{\"experi' >>$out/samples.jsonl; sleep 1000"))
	if err := m.bringIn(ctx); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("the host died")
	go func() {
		for m.measured() == 0 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		died(cause)
	}()
	if err := m.measure(ctx, piece{"hello", []string{"policies"}}); !errors.Is(err, cause) {
		t.Fatal(err)
	}
	next := measuringHere(t, h, out, fakeSkep(t, "grep -q '\"run\": 0' $out/samples.jsonl && echo '"+sample(0)+"\n"+sample(1)+"' >$out/samples.jsonl"))
	if err := next.bringIn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := next.measure(t.Context(), piece{"hello", []string{"policies"}}); err != nil {
		t.Fatal(err)
	}
	if n := next.measured(); n != 2 {
		t.Errorf("%d samples; want that of the first host and one more", n)
	}
}

// A piece that skep fails is told from a host that died, and its samples are kept.
func TestFailedPiece(t *testing.T) {
	testenv.NoLeaks(t)
	m := measuringHere(t, here(t), t.TempDir(), fakeSkep(t, "echo '"+sample(0)+"' >>$out/samples.jsonl; echo broken >&2; exit 3"))
	var log bytes.Buffer
	m.log = &log
	if err := m.bringIn(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := m.measure(t.Context(), piece{"hello", []string{"policies"}})
	if code := exitCode(0); !errors.As(err, &code) || code != 3 || m.measured() != 1 || log.String() != "broken\n" {
		t.Errorf("%v, %d samples, %q", err, m.measured(), log.String())
	}
}

// The disk of images has an image's layout without its layers, of which its root
// disk was made.
func TestArchiveImages(t *testing.T) {
	testenv.NoLeaks(t)
	t.Chdir(t.TempDir())
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "pyaes-1")
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := archiveImages(t.Context(), map[string]string{"pyaes": "oci:" + dir}, "", &b); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	layers, err := layersOf(dir)
	if err != nil || len(layers) != 2 {
		t.Fatal(layers, err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	blobs := "cache/functions/pyaes-1/blobs/sha256/"
	for name, want := range map[string]bool{
		"cache/functions/pyaes-1/index.json": true, blobs + d.Hex: true, blobs + m.Config.Digest.Hex: true,
		blobs + layers[0]: false, blobs + layers[1]: false,
		"disks/pyaes/" + d.Hex + "/rootfs.ext4": true, "disks/pyaes/" + d.Hex + "/image.json": true,
	} {
		if slices.Contains(names, name) != want {
			t.Errorf("%s: want %v; the archive has %s", name, want, strings.Join(names, " "))
		}
	}
	if left, err := os.ReadDir(cacheDir); err != nil || len(left) > 0 {
		t.Errorf("%v is left over, %v", left, err)
	}
}

// Of functions that the host makes by itself the disk has nothing, but it is one.
func TestArchiveNoImages(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := archiveImages(t.Context(), nil, "", &b); err != nil {
		t.Fatal(err)
	}
	if h, err := tar.NewReader(&b).Next(); err != nil || h.Name != "cache/" {
		t.Errorf("%+v, %v; want the directory that the host takes into its cache", h, err)
	}
}

// The experiments of hello, measured in a real host that is ended after the first
// sample, and gone on with in another.
func TestPaperInHosts(t *testing.T) {
	o := &options{memoryMiB: 4096, firecracker: os.Getenv("SKEP_FIRECRACKER")}
	if os.Getenv("SKEP_TEST_PAPER") == "" || o.findFirecracker() == "" {
		t.Skip("two hosts with Firecracker in them take minutes: set SKEP_TEST_PAPER=1, and SKEP_FIRECRACKER to firecracker's path")
	}
	runtime.LockOSThread() // QEMU ends with the thread that started it
	defer runtime.UnlockOSThread()
	t.Chdir("..")
	p := paper{
		options: o, out: t.TempDir(), functions: []string{"hello"}, only: []string{"breakdown"}, runs: 1,
		where: "vm", every: time.Second, progress: os.Stderr,
	}
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		for p.measured() == 0 && ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
		}
		interrupt()
	}()
	if err := p.run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v; want that it was interrupted", err)
	}
	before, err := experiment.Load(p.out)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := experiment.Load(p.out)
	if err != nil {
		t.Fatal(err)
	}
	if len(before.Samples) == 0 || len(after.Samples) != 2 || !after.Samples[0].Time.Equal(before.Samples[0].Time) {
		t.Errorf("%d samples, then %d; want the first kept and one more", len(before.Samples), len(after.Samples))
	}
	for _, s := range after.Samples {
		if s.Record == nil || s.Record.Status != http.StatusOK {
			t.Errorf("%s: %+v", s.Point, s.Record)
		}
	}
	if last := after.Sessions[len(after.Sessions)-1]; !strings.Contains(last.VMM, "firecracker") || !strings.Contains(last.VMM, "kvm") {
		t.Errorf("measured on %s", last.VMM)
	}
	if _, err := os.Stat(filepath.Join(p.out, report.File)); err != nil {
		t.Error(err)
	}
}
