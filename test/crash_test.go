package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skep-dev/skep/api"
)

// TestKilledAtAnyMoment kills the daemon with SIGKILL while it deploys (pull,
// disk, boot, snapshot) and while it restores, at several points each, and
// wants a new daemon to be right at once: what was acknowledged is there, what
// was half made is gone, and nothing runs that nobody owns.
func TestKilledAtAnyMoment(t *testing.T) {
	d := start(t)
	d.hello("kept")
	for _, stage := range []string{"pull", "build", "boot", "ready", "snapshot"} {
		for _, delay := range []time.Duration{0, 40 * time.Millisecond} {
			name := fmt.Sprintf("during-%s-%d", stage, delay.Milliseconds())
			t.Run(name, func(t *testing.T) {
				d.killDuringDeploy(name, stage, delay)
				d.up()
				d.right(t, "kept")
			})
		}
	}
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, 40 * time.Millisecond, 120 * time.Millisecond, 250 * time.Millisecond} {
		t.Run(fmt.Sprintf("during-restore-%v", delay), func(t *testing.T) {
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				d.invoke(api.InvokeRequest{Function: "kept", Start: api.StartRestore})
			}()
			time.Sleep(delay) // the point of the test: a moment nobody chose
			d.kill()
			<-sent
			d.up()
			d.right(t, "kept")
		})
	}
}

// TestKilledDuringRedeploy kills the daemon with SIGKILL while it deploys anew a
// function that serves: afterwards the old one serves or the new one, whole, and
// the new one if that was acknowledged.
func TestKilledDuringRedeploy(t *testing.T) {
	d := start(t)
	image := d.imageDir("kept")
	deploy := api.Function{Name: "kept", Image: image, ReadyTimeout: d.ready(), Env: map[string]string{"GENERATION": "0"}}
	if _, err := d.client.Deploy(d.ctx(2*time.Minute), deploy, nil); err != nil {
		t.Fatal(err)
	}
	now := 0
	for i, stage := range []string{"boot", "snapshot", "done"} {
		t.Run("during-"+stage, func(t *testing.T) {
			next := i + 1
			f := api.Function{Name: "kept", Image: image, ReadyTimeout: d.ready(), Env: map[string]string{"GENERATION": fmt.Sprint(next)}}
			told, err := d.killDuring(f, stage, 0)
			if !told {
				t.Errorf("the deploy ended before it came to this: %v", err)
			}
			d.up()
			d.right(t, "kept")
			env := d.mustGet("kept", "/env").body
			if strings.Contains(env, fmt.Sprint("GENERATION=", next)) {
				now = next
			} else if err == nil || !strings.Contains(env, fmt.Sprint("GENERATION=", now)) {
				t.Errorf("generation %d served, %d was being deployed (%v), and what answers has\n%s", now, next, err, env)
			}
		})
	}
}

// TestKilledAfterSnapshotRemoval removes a snapshot that an instance runs from,
// and kills the daemon at once: the snapshot is gone for good.
func TestKilledAfterSnapshotRemoval(t *testing.T) {
	d := start(t)
	d.hello("kept")
	d.hello("shorn")
	snaps, err := d.client.Snapshots(d.ctx(5*time.Second), "shorn")
	if err != nil || len(snaps) != 1 {
		t.Fatalf("%v, %+v", err, snaps)
	}
	if a := d.invoke(api.InvokeRequest{Function: "shorn", Start: api.StartRestore}); a.err != nil || a.status != 200 {
		t.Fatalf("%+v", a)
	}
	is, err := d.client.Instances(d.ctx(5*time.Second), "shorn")
	if err != nil || len(is) == 0 || is[0].Snapshot != snaps[0].ID {
		t.Fatalf("no instance runs from the snapshot: %v, %+v", err, is)
	}
	if err := d.client.RemoveSnapshot(d.ctx(time.Minute), snaps[0].ID); err != nil {
		t.Fatal(err)
	}
	d.kill()
	d.up()
	if again, err := d.client.Snapshots(d.ctx(5*time.Second), "shorn"); err != nil || len(again) != 0 {
		t.Errorf("snapshots after the crash: %v, %+v", err, again)
	}
	if _, err := os.Stat(filepath.Join(d.data(), "snapshots", snaps[0].ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its files are still there: %v", err)
	}
	d.right(t, "kept")
	if a := d.mustGet("shorn", "/"); a.header.Get(api.HeaderStart) != string(api.StartBoot) {
		t.Errorf("without a snapshot it starts by %q", a.header.Get(api.HeaderStart))
	}
}

// killDuringDeploy deploys and kills the daemon some time after the deploy has
// told of a stage. A deploy that ended before is as good: it must then be there.
func (d *daemon) killDuringDeploy(name, stage string, delay time.Duration) {
	if _, err := d.killDuring(api.Function{Name: name, Image: d.imageDir(name), ReadyTimeout: d.ready()}, stage, delay); err == nil {
		d.acknowledged = append(d.acknowledged, name)
	}
}

// killDuring returns whether it came to the stage, and what was said of the deploy.
func (d *daemon) killDuring(f api.Function, stage string, delay time.Duration) (bool, error) {
	told := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		_, err := d.client.Deploy(d.ctx(2*time.Minute), f, func(e api.DeployEvent) {
			if strings.Contains(string(e.Stage), stage) {
				select {
				case told <- struct{}{}:
				default:
				}
			}
		})
		ended <- err
	}()
	select {
	case <-told:
		time.Sleep(delay) // the point of the test: a moment nobody chose
		d.kill()
		return true, <-ended
	case err := <-ended:
		d.kill()
		return len(told) > 0, err
	}
}

// imageDir copies the hello image to a directory of its own with different
// content, so that its deploy makes a new disk.
func (d *daemon) imageDir(name string) string {
	d.t.Helper()
	dir := filepath.Join(d.dir, "images-in", name)
	if out, err := exec.Command("sh", "-c", `mkdir -p "$1/app" && cp "$2" "$1/app/hello" && echo "$3" > "$1/name" && echo '{"entrypoint":["/app/hello"]}' > "$1/skep-image.json"`,
		"sh", dir, filepath.Join(d.bin, "skep-hello"), name).CombinedOutput(); err != nil {
		d.t.Fatalf("laying out an image: %v\n%s", err, out)
	}
	return "dir:" + dir
}

// right checks a daemon that has just started after a crash.
func (d *daemon) right(t *testing.T, function string) {
	t.Helper()
	is, err := d.client.Instances(d.ctx(5*time.Second), "")
	if err != nil || len(is) != 0 {
		t.Errorf("instances of a daemon that has just started: %v, %+v", err, is)
	}
	for what := range leftovers(d.data()) { // among which are processes that wait by now
		if !d.orphaned[what] {
			continue
		}
		if strings.HasPrefix(what, "process ") || strings.HasPrefix(what, "half-made") || strings.HasPrefix(what, "run directory") || strings.HasPrefix(what, "mount ") {
			t.Errorf("left from before the crash: %s", what)
		}
	}
	a := d.get(function, "/?name=after")
	if a.err != nil || a.status != 200 || !strings.Contains(a.body, "after") {
		t.Errorf("after the crash: %+v", a)
	} else if a.header.Get(api.HeaderStart) != "restore" {
		t.Errorf("after the crash the start kind is %q: the snapshot is lost", a.header.Get(api.HeaderStart))
	}
	for _, name := range d.acknowledged {
		if _, err := d.client.Function(d.ctx(5*time.Second), name); err != nil {
			t.Errorf("the deploy of %s was acknowledged: %v", name, err)
		}
	}
}

// TestSecondDaemonRefuses starts a second daemon on the same data directory.
func TestSecondDaemonRefuses(t *testing.T) {
	d := start(t)
	cmd := exec.Command(filepath.Join(d.bin, "skep"), "--config", filepath.Join(d.dir, "config.toml"), "up")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatal("the second daemon ended well")
	}
	if want := fmt.Sprint(d.cmd.Process.Pid); !strings.Contains(string(out), want) {
		t.Errorf("the second daemon's error does not name the first one's pid %s: %s", want, out)
	}
	if _, err := d.client.Version(d.ctx(5 * time.Second)); err != nil {
		t.Errorf("the first daemon: %v", err)
	}
}
