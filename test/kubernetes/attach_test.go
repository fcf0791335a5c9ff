package kubernetes

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/skep-dev/skep/internal/testenv"
)

// attached is kubectl attach while it runs.
type attached struct {
	*node
	cmd   *exec.Cmd
	input io.WriteCloser // also its terminal, where it has one
	said  testenv.Output
}

// attach attaches to a pod. With a terminal its size is given.
func (n *node) attach(pod string, terminal *pty.Winsize, flags ...string) *attached {
	n.Helper()
	a := &attached{node: n, cmd: exec.Command(n.c.Kubectl(), append([]string{"--kubeconfig=" + n.c.Kubeconfig(), "attach", pod}, flags...)...)}
	if terminal != nil {
		f, err := pty.StartWithSize(a.cmd, terminal)
		if err != nil {
			n.Fatal(err)
		}
		a.input = f
		go func() { _, _ = io.Copy(&a.said, f) }() // until the terminal's other end is closed
	} else {
		a.cmd.Stdout, a.cmd.Stderr = &a.said, &a.said
		var err error
		if a.input, err = a.cmd.StdinPipe(); err == nil {
			err = a.cmd.Start()
		}
		if err != nil {
			n.Fatal(err)
		}
	}
	n.Cleanup(a.detach)
	return a
}

// detach ends it as a client does that goes away.
func (a *attached) detach() {
	if a.cmd.ProcessState != nil {
		return
	}
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
	_ = a.input.Close()
}

// write writes to the container's process.
func (a *attached) write(text string) {
	a.Helper()
	if _, err := io.WriteString(a.input, text); err != nil {
		a.Fatal(err)
	}
}

// reads waits until it has read something of the container's process.
func (a *attached) reads(want string) {
	a.Helper()
	a.eventually("whether "+strings.Join(a.cmd.Args[2:], " ")+" reads "+want, "true", func() (string, error) {
		if strings.Contains(a.said.String(), want) {
			return "true", nil
		}
		return a.said.String(), nil
	})
}

// ends waits for the end of attach, which comes with the container's.
func (a *attached) ends() {
	a.Helper()
	stop := time.AfterFunc(a.limit(), func() { _ = a.cmd.Process.Kill() })
	defer stop.Stop()
	if err := a.cmd.Wait(); err != nil {
		a.Errorf("attach ends with %v: %s", err, a.said.String())
	}
	_ = a.input.Close()
}

// Who attaches has the container's own process: what it writes, its input, and its
// terminal. Who goes away ends nothing, and can come again; so can one after the end of
// containerd.
func TestAttach(t *testing.T) {
	n := onNodeOfAll(t)
	never := "restartPolicy: Never"
	n.apply(pod("serves", nil, "", "serve", "8080") + "---" +
		with(pod("reads", nil, "stdin: true", "read"), never) + "---" +
		with(pod("once", nil, "stdin: true\nstdinOnce: true", "read"), never) + "---" +
		with(pod("sized", nil, "stdin: true\ntty: true", "size"), never))
	for _, name := range []string{"serves", "reads", "once", "sized"} {
		n.becomes("pod/"+name, ".status.phase", "Running")
	}

	n.ready("serves")
	listener := n.attach("serves", nil)
	url := "http://" + n.get("pod/serves", ".status.podIP") + ":8080/log/"
	n.eventually("what who attached has read", "true", func() (string, error) {
		_, err := fetch(n.client(), url+"was-asked") // what was written before it had attached it has not
		return map[bool]string{true: "true", false: listener.said.String()}[strings.Contains(listener.said.String(), "was-asked")], err
	})
	listener.detach()
	n.answers(url, "")

	first := n.attach("reads", nil, "-i")
	first.write("one\n")
	first.reads("read one")
	first.detach()
	second := n.attach("reads", nil, "-i")
	second.write("two\n")
	second.reads("read two")
	if strings.Contains(second.said.String(), "read one") {
		t.Errorf("who attached later reads %q", second.said.String())
	}
	n.killed("containerd")
	second.detach()
	n.eventually("what is read after the end of containerd", "read three", func() (string, error) {
		a := n.attach("reads", nil, "-i")
		defer a.detach()
		a.write("three\n")
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			if strings.Contains(a.said.String(), "read three") {
				return "read three", nil
			}
		}
		return a.said.String(), nil
	})
	if out := n.kubectl("logs", "reads"); !strings.HasPrefix(out, "read one\nread two\n") || strings.Contains(out, "end") {
		t.Errorf("its log has %q", out)
	}

	// With stdinOnce the input ends with the first who has it.
	last := n.attach("once", nil, "-i")
	last.write("three\n")
	last.reads("read three")
	if err := last.input.Close(); err != nil {
		t.Fatal(err)
	}
	last.ends()
	n.becomes("pod/once", ".status.phase", "Succeeded")
	if out := n.kubectl("logs", "once"); out != "read three\nend\n" {
		t.Errorf("its log has %q", out)
	}

	large := n.attach("sized", &pty.Winsize{Rows: 50, Cols: 132}, "-it")
	large.reads("50 132")
	if err := pty.Setsize(large.input.(*os.File), &pty.Winsize{Rows: 30, Cols: 70}); err != nil {
		t.Fatal(err)
	}
	large.reads("30 70")
	large.detach()
	small := n.attach("sized", &pty.Winsize{Rows: 20, Cols: 60}, "-it")
	small.reads("20 60")
	if err := pty.Setsize(small.input.(*os.File), &pty.Winsize{Rows: 20, Cols: 1}); err != nil {
		t.Fatal(err)
	}
	small.ends()
	n.becomes("pod/sized", ".status.phase", "Succeeded")
}
