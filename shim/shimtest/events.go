package shimtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Events are what containerd tells to who listens.
type Events struct {
	c    *Containerd
	cmd  *exec.Cmd
	path string
}

// Events listens from now on, until Close.
func (c *Containerd) Events() *Events {
	c.t.Helper()
	e := &Events{c: c, cmd: c.Ctr("events"), path: filepath.Join(c.Dir, "events")}
	out, err := os.Create(e.path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer out.Close()
	e.cmd.Stdout = out
	if err := e.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	// It listens when it hears of something.
	for i := 0; e.String() == ""; i++ {
		if i == 100 {
			c.t.Fatalf("containerd %s tells of nothing\n%s", c.Version, c.Log())
		}
		ns := fmt.Sprint("heard", i)
		c.Must("namespaces", "create", ns)
		c.Must("namespaces", "remove", ns)
	}
	return e
}

// String is all that was heard so far.
func (e *Events) String() string {
	b, _ := os.ReadFile(e.path)
	return string(b)
}

// Saw says whether an event of a topic, of a container, has come, or comes within
// some seconds.
func (e *Events) Saw(topic, id string) bool {
	for end := time.Now().Add(e.c.Limit(5 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		for line := range strings.Lines(e.String()) {
			if strings.Contains(line, " "+topic+" ") && strings.Contains(line, `"`+id+`"`) {
				return true
			}
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// Close ends it.
func (e *Events) Close() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait()
}
