package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/experiment/stat"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/link"
	"github.com/skep-dev/skep/remote/bucket"
)

// wantsStore says that an experiment is among those that need an object store.
func wantsStore(set experiment.Settings) bool { return slices.Contains(set.Experiments, "remote") }

// The bucket of an experiment's object store, and both halves of the server's one account.
const (
	storeBucket = "snapshots"
	storeKey    = "functionbench"
)

// objectStore is an S3 server of a verb's own, with an empty bucket.
type objectStore struct {
	address string
	stop    func() error // and removes what it holds
}

// startStore starts an object store that the daemon which is started next has, without pushing to it by itself.
func (c *cli) startStore(ctx context.Context, dataDir string) (_ *objectStore, err error) {
	program, err := s3Server()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(dataDir, "store-")
	if err != nil {
		return nil, err
	}
	address, stop, err := startS3(ctx, program, "-dir", dir, "-bucket", storeBucket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting an object store: %w", err), os.RemoveAll(dir))
	}
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": storeKey, "AWS_SECRET_ACCESS_KEY": storeKey, "AWS_EC2_METADATA_DISABLED": "true"} {
		if err := os.Setenv(name, value); err != nil { // where AWS's client looks first
			return nil, errors.Join(err, stop(), os.RemoveAll(dir))
		}
	}
	for name, value := range map[string]string{"store_bucket": storeBucket, "store_endpoints": "http://" + address, "store_prefix": "", "store_push": "false", "store_cache_mib": "0", "store_fill_rate": "0"} {
		c.flags[name] = value
	}
	return &objectStore{address, func() error { return errors.Join(stop(), os.RemoveAll(dir)) }}, nil
}

// nodes are daemons beside an experiment's own, as experiment.Nodes. Their data directories are in that of the
// experiment's, and go with them, but for those that have a snapshot whole and those that are copied.
type nodes struct {
	c     *cli
	lab   *labHost
	store *objectStore

	// Of one goroutine at a time, as all of it is.
	links map[link.Link]*link.Proxy
	made  map[string]bool // directories that stay until close
}

var _ experiment.Nodes = (*nodes)(nil)

func (c *cli) newNodes(lab *labHost, store *objectStore) (*nodes, error) {
	n := &nodes{c: c, lab: lab, store: store, links: map[link.Link]*link.Proxy{}, made: map[string]bool{}}
	return n, os.RemoveAll(n.dir()) // what an interruption left
}

func (n *nodes) dir() string { return filepath.Join(n.lab.p.d.cfg.DataDir, "nodes") }

// close ends the links and removes all data. Every node has ended.
func (n *nodes) close() error {
	errs := []error{os.RemoveAll(n.dir())}
	for _, p := range n.links {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Push implements experiment.Nodes.
func (n *nodes) Push(ctx context.Context, function string) (api.PushedSnapshot, error) {
	list, err := n.lab.p.client.Snapshots(ctx, function)
	if err != nil {
		return api.PushedSnapshot{}, err
	}
	for _, s := range list {
		if s.Usable {
			return n.lab.p.client.PushSnapshot(ctx, s.ID)
		}
	}
	return api.PushedSnapshot{}, fmt.Errorf("function %s has no usable snapshot", function)
}

// through is the store's URL over a link.
func (n *nodes) through(l link.Link) (string, error) {
	if n.links[l] == nil {
		p, err := link.Open(l, n.store.address)
		if err != nil {
			return "", err
		}
		n.links[l] = p
	}
	return "http://" + n.links[l].Address(), nil
}

// Speed implements experiment.Nodes: medians of some reads.
func (n *nodes) Speed(ctx context.Context, l link.Link) (s experiment.LinkSpeed, err error) {
	const reads, part = 4, 4 << 20
	url, err := n.through(l)
	if err != nil {
		return s, err
	}
	b, err := bucket.Open(ctx, bucket.Options{Name: storeBucket, Endpoints: []string{url}})
	if err != nil {
		return s, err
	}
	defer b.Close()
	if err := b.Put(ctx, "link", make([]byte, reads*part)); err != nil {
		return s, err
	}
	var one, rate []float64
	read := func(p []byte, off int64) (time.Duration, error) {
		began := time.Now()
		err := b.ReadAt(ctx, "link", p, off)
		return time.Since(began), err
	}
	for range 11 {
		took, err := read(make([]byte, 1), 0)
		if err != nil {
			return s, err
		}
		one = append(one, float64(took))
	}
	for range 5 {
		errs := make([]error, reads)
		began := time.Now()
		var wg sync.WaitGroup
		for i := range reads {
			wg.Go(func() { _, errs[i] = read(make([]byte, part), int64(i)*part) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return s, err
		}
		rate = append(rate, reads*part/1e6/time.Since(began).Seconds())
	}
	return experiment.LinkSpeed{Request: time.Duration(stat.Median(one)), MBps: stat.Median(rate)}, nil
}

// Start implements experiment.Nodes.
func (n *nodes) Start(ctx context.Context, s experiment.NodeSpec) (_ experiment.Node, err error) {
	var names []string
	for _, d := range s.Deployed {
		names = append(names, d.Function.Name)
	}
	model, err := n.model(ctx, strings.Join(names, "+"), s.Deployed)
	if err != nil {
		return nil, err
	}
	if s.Local {
		return n.local(ctx, model, s)
	}
	dir := filepath.Join(n.dir(), fmt.Sprintf("node-%d", s.ID))
	if err := errors.Join(os.RemoveAll(dir), copyNode(dir, model, s.Disk)); err != nil {
		return nil, err
	}
	url, err := n.through(s.Link)
	if err != nil {
		return nil, err
	}
	return n.open(ctx, dir, url, s.CacheMiB, func() error { return os.RemoveAll(dir) })
}

// model makes a data directory whose daemon knows the functions, to be copied. It has their root disks, too.
func (n *nodes) model(ctx context.Context, name string, deployed []experiment.Deployed) (string, error) {
	dir := filepath.Join(n.dir(), "model-"+name)
	if n.made[dir] {
		return dir, nil
	}
	node, err := n.open(ctx, dir, "http://"+n.store.address, 0, nil)
	if err != nil {
		return "", err
	}
	for _, d := range deployed {
		err = errors.Join(err, node.Deploy(ctx, d.Builtin, d.Function))
	}
	err = errors.Join(err, node.Close())
	for _, of := range []string{"snapshots", "logs"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, of)))
	}
	n.made[dir] = err == nil
	return dir, err
}

// local is a node that has had all of a snapshot for long.
func (n *nodes) local(ctx context.Context, model string, s experiment.NodeSpec) (experiment.Node, error) {
	dir := filepath.Join(n.dir(), fmt.Sprintf("%s-local-%d", filepath.Base(model), s.ID))
	url := "http://" + n.store.address
	if !n.made[dir] {
		if err := errors.Join(os.RemoveAll(dir), copyNode(dir, model, false)); err != nil {
			return nil, err
		}
		node, err := n.open(ctx, dir, url, 0, nil)
		if err != nil {
			return nil, err
		}
		for _, d := range s.Deployed {
			_, perr := node.Client().PullSnapshot(ctx, api.PullRequest{Function: d.Function.Name})
			err = errors.Join(err, perr)
		}
		if err = errors.Join(err, node.Close()); err != nil {
			return nil, err
		}
		n.made[dir] = true
	}
	return n.open(ctx, dir, url, 0, nil)
}

// open starts a daemon on a data directory. It learns nothing, so that its tenth start is like its first.
func (n *nodes) open(ctx context.Context, dir, url string, cacheMiB int, closed func() error) (*storeNode, error) {
	cfg := n.lab.p.d.cfg
	cfg.DataDir, cfg.StoreEndpoints, cfg.StoreCacheMiB = dir, []string{url}, cacheMiB
	cfg.Learning, cfg.Slots = false, 1
	p, err := n.c.openPrivate(ctx, config.Result{Config: cfg})
	if err != nil {
		return nil, err
	}
	return &storeNode{&labHost{c: n.c, p: p, images: n.lab.images}, closed}, nil
}

// storeNode is one of the nodes, as experiment.Node.
type storeNode struct {
	*labHost
	closed func() error // what is to be done then; nil: nothing
}

func (s *storeNode) Stats() api.StoreStats { return *s.p.d.node.StoreStats() }

// Files are those that are here.
func (s *storeNode) Files(ctx context.Context, function string) ([]string, error) {
	files, err := s.labHost.Files(ctx, function)
	if errors.Is(err, image.ErrNotFound) {
		return nil, nil
	}
	return files, err
}

func (s *storeNode) Close() error {
	err := s.p.stop()
	if s.closed != nil {
		err = errors.Join(err, s.closed())
	}
	return err
}

// copyNode copies the data directory of a daemon that has ended; of root disks, which never change, only the name,
// and only where they are asked for.
func copyNode(to, from string, disks bool) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		at := filepath.Join(to, name)
		switch {
		case e.IsDir() && name == "images" && !disks:
			return fs.SkipDir
		case e.IsDir():
			info, err := e.Info()
			if err != nil {
				return err
			}
			return os.MkdirAll(at, info.Mode().Perm())
		case !e.Type().IsRegular():
			return nil
		case strings.HasPrefix(name, "images"+string(filepath.Separator)) && filepath.Ext(name) != ".json":
			return os.Link(path, at)
		}
		return copyFile(at, path)
	})
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
