package image

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestKilled kills a process at points of its fetch, and has the next one find
// nothing of it in the way.
func TestKilled(t *testing.T) {
	const dirEnv, refEnv, stageEnv = "SKEP_TEST_IMAGE_DIR", "SKEP_TEST_IMAGE_REF", "SKEP_TEST_IMAGE_STAGE"
	if dir := os.Getenv(dirEnv); dir != "" { // the process that is to die
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Fetch(t.Context(), os.Getenv(refEnv), func(stage string, done, total int64) {
			if s, whole := strings.CutSuffix(os.Getenv(stageEnv), " done"); s == stage && (!whole || done == total) {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		})
		t.Fatalf("it lives, %v", err)
	}
	for _, stage := range []string{"pull", "pull done", "build", "build done"} {
		s := open(t, Options{})
		ref, _ := writeLayout(t, imageOf(t, layerOf(t, file("serve", strings.Repeat("bee", 1<<20))), layerOf(t, file("more", "x"))))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), dirEnv+"="+s.dir, refEnv+"="+ref, stageEnv+"="+stage)
		if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("%s: %v: %s", stage, err, out)
		}
		left, err := os.ReadDir(s.dir)
		if err != nil || len(left) != 2 { // with the claim that it had
			t.Errorf("%s: the dead process left %v, %v: want a half-made image", stage, left, err)
		}
		if s, err = Open(s.dir, Options{}); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, s)
		img, err := s.Fetch(t.Context(), ref, nil)
		if err != nil {
			t.Errorf("%s: then: %v", stage, err)
		}
		checkDisk(t, img.Disk)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
