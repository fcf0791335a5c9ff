package test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/functions"
	"github.com/skep-dev/skep/internal/testenv"
)

// result is what a function of FunctionBench answers.
type result map[string]any

func (r result) number(key string) float64 {
	v, _ := r[key].(float64)
	return v
}

// benchCases say what each function must answer to its inputs; small ones are
// tested always, the others when they are asked for.
var benchCases = map[string]struct {
	small  bool
	inputs int
	wrong  func(n int, r result) bool
}{
	"helloworld": {true, 4, func(n int, r result) bool {
		return r["message"] != "Hello, "+[]string{"world", "bee", "skep", "meadow"}[n-1]+"!"
	}},
	"chameleon": {true, 4, func(n int, r result) bool {
		rows, columns := []int{60, 10, 50, 70}[n-1], []int{10, 60, 12, 8}[n-1]
		return r.number("rows") != float64(rows) || r.number("cells") != float64(rows*columns)
	}},
	// What AES in counter mode makes of these texts, known from another implementation.
	"pyaes": {true, 4, func(n int, r result) bool {
		begins := []string{"e139a03482c69a51e4b2e18c94628dc6", "ee70a62498dbc55ae9fce6c99270c0d4", "f471ad6180c39b40a0fae28dd177c2c4", "e177ac6182c79e51f2b2eb889531c4c5"}
		return r["same"] != true || r["begins"] != begins[n-1]
	}},
	"image_rotate": {false, 4, func(n int, r result) bool {
		width := []int{1200, 1440, 1680, 2240}[n-1]
		return fmt.Sprint(r["from"], r["to"]) != fmt.Sprintf("[%d %d] [%[2]d %[1]d]", width, width*3/4) || r.number("bytes") < 500_000
	}},
	"json_serdes": {false, 4, func(n int, r result) bool {
		return r.number("hives") != float64([]int{3000, 4000, 5000, 7500}[n-1]) || r.number("written") <= r.number("read")
	}},
	"lr_serving": {false, 4, func(n int, r result) bool { return r["good"] != (n%2 == 1) }},
	"lr_training": {false, 4, func(n int, r result) bool {
		return r.number("reviews") != float64(4000+1000*n) || r.number("accuracy") < 0.8
	}},
	"cnn_serving": {false, 5, func(n int, r result) bool {
		return r["kind"] != []string{"ring", "square", "cross", "stripes", "honeycomb"}[n-1]
	}},
	"rnn_serving": {false, 4, func(n int, r result) bool {
		names, _ := r["names"].([]any)
		return r["language"] != []string{"english", "finnish", "german", "italian"}[n-1] || len(names) != 12
	}},
	"video_processing": {false, 4, func(n int, r result) bool {
		return r.number("frames") != float64([]int{40, 50, 60, 80}[n-1]) || r.number("brightness") < 100 || r.number("brightness") > 156
	}},
}

// TestFunctionBench deploys each function, calls it with each of its inputs, and
// again after a cold start: the same input has the same answer, another input
// another one.
func TestFunctionBench(t *testing.T) {
	testenv.Need(t, "root", "mmdebstrap", "uffd", "tap", "qemu", "kernel")
	var settings []string
	if testenv.Has("functions") { // the small ones need no S3
		settings = append(settings, "host_services = ['7090="+s3(t)+"']")
	}
	d := start(t, settings...)
	for _, name := range functions.Bench() {
		t.Run(name, func(t *testing.T) {
			c, ok := benchCases[name]
			if !ok {
				t.Fatal("nothing says what it should answer")
			}
			if !c.small {
				testenv.Need(t, "functions")
			}
			checkBench(t, d, name, c.inputs, c.wrong)
		})
	}
}

func checkBench(t *testing.T, d *daemon, name string, inputs int, wrong func(int, result) bool) {
	fn := strings.ReplaceAll(name, "_", "-")
	if _, err := d.cli("deploy", "functions/"+name); err != nil {
		t.Fatal(err)
	}
	defer d.mustCLI("rm", fn)
	seen := map[string]int{}
	for n := 1; n <= inputs; n++ {
		a := d.get(fn, fmt.Sprintf("/?input=%d", n))
		var r result
		if err := json.Unmarshal([]byte(a.body), &r); a.err != nil || a.status != 200 || err != nil || wrong(n, r) {
			t.Errorf("input %d: status %d, %v: %s", n, a.status, a.err, a.body)
		}
		if other, ok := seen[a.body]; ok {
			t.Errorf("inputs %d and %d have the same answer: %s", other, n, a.body)
		}
		seen[a.body] = n
	}
	again := d.invoke(api.InvokeRequest{Function: fn, Method: "GET", Path: "/?input=2", Start: api.StartRestore})
	if again.err != nil || again.status != 200 || seen[again.body] != 2 {
		t.Errorf("input 2 after a cold start: status %d, %v: %s", again.status, again.err, again.body)
	}
	if a := d.get(fn, fmt.Sprintf("/?input=%d", inputs+1)); a.err != nil || a.status != 400 {
		t.Errorf("an input that is not there: status %d, %v: %s", a.status, a.err, a.body)
	}
}

// s3 starts the S3 server with the inputs and returns its address.
func s3(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "skep-s3")
	build := exec.Command("go", "build", "-o", program, "../functions/s3")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the S3 server: %v\n%s", err, out)
	}
	address := testenv.FreeAddress(t)
	cmd := exec.Command(program, "-listen", address, "-dir", filepath.Join(dir, "data"))
	log := &testenv.Output{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("the S3 server: %v\n%s", err, log.Tail(4000))
		}
	})
	eventually(t, "the S3 server serves", time.Minute, func() error {
		if !strings.Contains(log.Tail(4000), "serving") {
			return fmt.Errorf("it says %q", log.Tail(4000))
		}
		return nil
	})
	return address
}
