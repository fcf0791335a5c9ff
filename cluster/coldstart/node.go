package coldstart

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Node is where the logs of a node's programs are.
type Node struct {
	Audit      string // of the API server
	Containerd string
	Var        string // the node's /var, as this host has it
}

// marks are how long logs were.
type marks map[string]int64

// Marks remembers where the logs end that a request is to be looked for in.
type Marks struct {
	node Node
	at   marks
}

// Mark is called before the request is sent.
func (n Node) Mark() (*Marks, error) {
	m := &Marks{node: n, at: marks{}}
	for _, path := range []string{n.Audit, n.Containerd} {
		if err := m.at.add(path); err != nil {
			return nil, fmt.Errorf("%w: `make cluster` has a cluster write it, once it was ended", err)
		}
	}
	for _, program := range []string{"activator", "autoscaler"} {
		paths, err := n.serving(program)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			if err := m.at.add(path); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

func (m marks) add(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	m[path] = st.Size()
	return nil
}

// serving are the logs of one of Knative's programs.
func (n Node) serving(program string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(n.Var, "log/pods/knative-serving_"+program+"-*", program, "*.log"))
	if err == nil && len(paths) == 0 {
		err = fmt.Errorf("no log of Knative's %s is below %s", program, n.Var)
	}
	return paths, err
}

// patience is how long logs may lag behind the answer.
const patience = 10 * time.Second

// Path finds the request in what was logged since. The pod has to be there still: its
// log goes with it.
func (m *Marks) Path(ctx context.Context, r Request) (p Path, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		f := &found{of: r}
		if err = m.read(f); err == nil {
			if p, err = f.path(r); err == nil {
				return p, nil
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return p, fmt.Errorf("looking for a cold start of %s in the logs: %w", r.Revision, err)
		}
	}
}

// read reads all logs: in this order, since each tells by what the next is searched.
func (m *Marks) read(f *found) error {
	if err := m.lines(m.node.Audit, f.audit); err != nil {
		return err
	}
	if f.pod == "" {
		return errors.New("no pod was bound to the node")
	}
	if err := m.lines(m.node.Containerd, f.containerd); err != nil {
		return err
	}
	for program, read := range map[string]func(string){
		"activator":  func(line string) { f.request(line, &f.activator) },
		"autoscaler": f.autoscaler,
	} {
		paths, err := m.node.serving(program)
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := m.lines(path, read); err != nil {
				return err
			}
		}
	}
	if err := m.network(f); err != nil {
		return err
	}
	queue, err := filepath.Glob(filepath.Join(m.node.Var, "log/pods", f.of.Namespace+"_"+f.pod+"_*", proxyContainer, "*.log"))
	for _, path := range queue {
		err = errors.Join(err, m.lines(path, func(line string) { f.request(line, &f.queue) }))
	}
	return err
}

// network finds when the pod had its network: CNI's library keeps the result then.
func (m *Marks) network(f *found) error {
	results, err := filepath.Glob(filepath.Join(m.node.Var, "lib/cni/results", "*-"+f.sandboxID+"-eth0"))
	if err != nil || f.sandboxID == "" || len(results) == 0 {
		return err
	}
	st, err := os.Stat(results[0])
	if err == nil {
		f.network = st.ModTime()
	}
	return err
}

// lines reads those that were written to a log since the marks; one that is not whole
// yet is not there.
func (m *Marks) lines(path string, read func(string)) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // turned over, or gone with its pod; what is missing is said
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(m.at[path], io.SeekStart); err != nil {
		return err
	}
	for in := bufio.NewReaderSize(f, 64<<10); ; {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		read(line[:len(line)-1])
	}
}
