package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/load"
)

// TestLoad runs a trace of two functions on microVMs, four times as fast, kills the loader
// in the middle and lets it go on: every call is made, none is lost, and some were cold.
func TestLoad(t *testing.T) {
	d := start(t)
	dir := filepath.Join(d.dir, "trace")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"invocations.csv": "HashOwner,HashApp,HashFunction,Trigger,1,2\no,a,busy,http,15,15\no,b,rare,timer,1,1\n",
		"durations.csv": "HashOwner,HashApp,HashFunction,Average,percentile_Average_0,percentile_Average_1,percentile_Average_25,percentile_Average_50,percentile_Average_75,percentile_Average_99,percentile_Average_100\n" +
			"o,a,busy,20,10,10,15,20,25,40,50\no,b,rare,100,100,100,100,100,100,100,100\n",
		"memory.csv": "HashOwner,HashApp,SampleCount,AverageAllocatedMb\no,a,1,16\no,b,1,32\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(d.dir, "results")
	args := []string{"load", dir, "--speed", "4", "--deploy", "--keep-alive", "3s", "--max-instances", "2", "--out", out, "--json"}
	killed := d.command(args...)
	killed.Stderr = d.log
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- killed.Wait() }()
	eventually(t, "calls that are recorded", 4*time.Minute, func() error {
		b, err := os.ReadFile(filepath.Join(out, load.SamplesFile))
		if err == nil && bytes.Count(b, []byte(`"latency_ns"`)) < 5 {
			err = errors.New("too few")
		}
		return err
	})
	_ = killed.Process.Kill()
	<-ended
	before, err := load.Read(out)
	if err != nil {
		t.Fatal(err)
	}
	var r load.Report
	if err := json.Unmarshal([]byte(d.mustCLI(args...)), &r); err != nil {
		t.Fatal(err)
	}
	if r.Calls != 32 || r.Done != 32 || r.Lost != 0 || r.Cold < 2 || r.Untold != 0 || r.MemoryPeak == 0 {
		t.Errorf("%+v", r)
	}
	t.Logf("%d calls were over when it was killed; then %d, %d cold, latency %+v, slowdown %+v", before.Done, r.Done, r.Cold, r.Latency, r.Slowdown)
}
