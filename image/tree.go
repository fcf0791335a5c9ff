package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
)

const (
	whiteout  = ".wh."
	opaque    = ".wh..wh..opq"
	auxiliary = ".wh..wh." // what storage drivers left in layers for themselves
)

// Bounds of what layers may make of a tree. The work and the memory that an
// entry costs are bounded by them, whatever the entries before it were.
const (
	maxPath  = 4095 // bytes, as in Linux without its NUL
	maxName  = 255  // bytes, as in ext4
	maxDepth = 256  // names in a path
	maxSteps = 4 * maxDepth
	maxLinks = 40 // symbolic links in a path, as in Linux

	rewrites   = 4   // times that layers may write all files anew, for each file that an image may have
	headerCost = 512 // bytes of names, targets and attributes, for the same
)

// inode is a file of the image: where its header and content are.
type inode struct {
	layer, entry int // layer -1: a directory that no layer describes
	dir          bool
	target       string // of a symbolic link
}

// node is a name in a directory.
type node struct {
	*inode
	name          string
	parent        *node // nil: the root's
	depth, length int   // of its path, in names and bytes
	children      map[string]*node
}

// add makes a name of a node's, which has none of that name.
func (n *node) add(name string, f *inode) {
	if n.children == nil {
		n.children = map[string]*node{}
	}
	name = strings.Clone(name) // or it would keep the entry's whole path
	n.children[name] = &node{inode: f, name: name, parent: n, depth: n.depth + 1, length: n.length + 1 + len(name)}
}

// tree is the file system as the layers so far make it: what an overlay of them
// would show.
type tree struct {
	root       *node
	files      int // names but the root's
	maxEntries int
	left       int64 // bytes of files that are still allowed
	made       int   // entries and the directories that they implied, also those that are gone
	headers    int64 // bytes of headers so far
	steps      int   // names looked up, made and removed: what all this costs
}

func newTree(maxEntries int, maxBytes int64) *tree {
	return &tree{root: &node{inode: &inode{layer: -1, dir: true}}, maxEntries: maxEntries, left: maxBytes}
}

// cleanName returns an entry's path without leading and trailing slashes; "" is
// the root. A path that leads out of the root is an error.
func cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("entry %.64q… has a path of %d bytes: Linux takes %d", name, len(name), maxPath)
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("entry %q has a NUL in its name", name)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "..":
			return "", fmt.Errorf("entry %q leads out of the root", name)
		case len(part) > maxName:
			return "", fmt.Errorf("entry %.64q… has a name of %d bytes: ext4 takes %d", name, len(part), maxName)
		case part != "" && part != ".":
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return "", fmt.Errorf("entry %.64q… is %d directories deep: at most %d are allowed", name, len(parts), maxDepth)
	}
	return strings.Join(parts, "/"), nil
}

// splitPath splits a clean path into its directory and its last name.
func splitPath(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// isWhiteout tells entries that hide files of lower layers from entries that are
// files.
func isWhiteout(name string) bool {
	_, base := splitPath(name)
	return strings.HasPrefix(base, whiteout)
}

// isAuxiliary tells what storage drivers left in layers for themselves.
func isAuxiliary(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, auxiliary) && part != opaque {
			return true
		}
	}
	return false
}

// hide applies one entry of a layer if it is a whiteout. All whiteouts of a
// layer go before its files, wherever they stand in it, since they are about the
// layers below.
func (t *tree) hide(h *tar.Header) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if !isWhiteout(name) || isAuxiliary(name) {
		return nil
	}
	dir, base := splitPath(name)
	if base == opaque {
		if d := t.lookup(dir); d != nil {
			for _, c := range d.children {
				t.forget(c)
			}
			d.children = nil
		}
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteout)
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("entry %q hides no file", h.Name)
	}
	if d := t.lookup(dir); d != nil {
		t.remove(d.children[hidden])
	}
	return nil
}

// apply puts one entry of a layer on top, unless it is a whiteout.
func (t *tree) apply(layer, entry int, h *tar.Header) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if err := t.admit(h); err != nil {
		return err
	}
	if isWhiteout(name) || isAuxiliary(name) || h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	// A sparse file may be far larger than its layer.
	if h.Size < 0 || h.Size > t.left {
		return as(ErrTooLarge, fmt.Errorf("entry %q: the image's files are larger than the limit", h.Name))
	}
	t.left -= h.Size
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return errors.New("the root is not a directory")
		}
		t.root.layer, t.root.entry = layer, entry
		return nil
	}
	dir, base := splitPath(name)
	parent, err := t.walk(dir, layer, true)
	if err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	if err := t.put(parent, base, layer, entry, h); err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	return nil
}

// admit counts an entry and its header against what an image may have.
func (t *tree) admit(h *tar.Header) error {
	t.headers += int64(len(h.Name) + len(h.Linkname))
	for k, v := range h.PAXRecords {
		t.headers += int64(len(k) + len(v))
	}
	if most := int64(t.maxEntries)*headerCost + 1<<20; t.headers > most {
		return as(ErrTooLarge, fmt.Errorf("the names, links and attributes of the image's files have more than %d bytes", most))
	}
	return t.count()
}

// count counts an entry, or a directory that one implies.
func (t *tree) count() error {
	if t.made++; t.made > rewrites*t.maxEntries {
		return as(ErrTooLarge, fmt.Errorf("the image's layers have more than %d files", rewrites*t.maxEntries))
	}
	return nil
}

// put sets a name in a directory to an entry.
func (t *tree) put(parent *node, base string, layer, entry int, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return t.setDir(parent, base, layer, entry)
	case tar.TypeLink:
		return t.link(parent, base, layer, h)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.ContainsRune(h.Linkname, 0) {
			return fmt.Errorf("the target of the symbolic link is empty, longer than %d bytes, or has a NUL", maxPath)
		}
		return t.set(parent, base, &inode{layer: layer, entry: entry, target: h.Linkname})
	case tar.TypeReg, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeGNUSparse:
		return t.set(parent, base, &inode{layer: layer, entry: entry})
	}
	return fmt.Errorf("it is of unknown type %q", h.Typeflag)
}

// link makes a name another name of the file that a hard link is to.
func (t *tree) link(parent *node, base string, layer int, h *tar.Header) error {
	to, err := cleanName(h.Linkname)
	if err != nil {
		return fmt.Errorf("the target of the hard link: %w", err)
	}
	target := t.lookup(to)
	if target == nil { // perhaps below a symbolic link
		dir, last := splitPath(to)
		if d, err := t.walk(dir, layer, false); err == nil && d != nil {
			target = d.children[last]
		}
	}
	if target == nil || target.dir {
		return fmt.Errorf("no file %q to link to", h.Linkname)
	}
	if target.parent == parent && target.name == base {
		return nil
	}
	return t.set(parent, base, target.inode)
}

// lookup returns what a clean path names, symbolic links not followed; nil if
// there is nothing.
func (t *tree) lookup(name string) *node {
	n := t.root
	for name != "" && n != nil {
		var first string
		first, name, _ = strings.Cut(name, "/")
		t.steps++
		n = n.children[first]
	}
	return n
}

// walk returns the directory that a path leads to. It follows symbolic links
// that the layer itself has put into the path: its archiver wrote through them.
// One of a lower layer is not followed but replaced, as an overlay of the layers
// would; so is a parent that is no directory: the upper layer is right. With
// make, parents that are not there are made; without, the result is then nil.
func (t *tree) walk(dir string, layer int, make bool) (*node, error) {
	at, links, begin := t.root, 0, t.steps
	for rest := dir; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if t.steps++; t.steps-begin > maxSteps {
			return nil, fmt.Errorf("its path takes more than %d steps through symbolic links", maxSteps)
		}
		switch name {
		case "", ".":
			continue
		case "..": // of a link; the root's is the root
			if at.parent != nil {
				at = at.parent
			}
			continue
		}
		next := at.children[name]
		switch {
		case next != nil && next.target != "" && next.layer == layer:
			if links++; links > maxLinks || len(next.target)+len(rest) > maxPath {
				return nil, fmt.Errorf("%q is a loop of symbolic links", next.path())
			}
			if strings.HasPrefix(next.target, "/") {
				at = t.root
			}
			rest = next.target + "/" + rest
		case next != nil && next.dir:
			at = next
		case !make:
			return nil, nil
		default:
			if err := t.imply(at, name); err != nil {
				return nil, err
			}
			at = at.children[name]
		}
	}
	return at, nil
}

// imply makes a directory that no layer describes.
func (t *tree) imply(parent *node, name string) error {
	if len(name) > maxName {
		return fmt.Errorf("a link leads to a name of %d bytes: ext4 takes %d", len(name), maxName)
	}
	if err := t.count(); err != nil {
		return err
	}
	return t.setDir(parent, name, -1, 0)
}

func (t *tree) setDir(parent *node, name string, layer, entry int) error {
	if n := parent.children[name]; n != nil && n.dir {
		n.layer, n.entry = layer, entry
		return nil
	}
	return t.set(parent, name, &inode{layer: layer, entry: entry, dir: true})
}

func (t *tree) set(parent *node, name string, f *inode) error {
	switch {
	case parent.depth >= maxDepth:
		return fmt.Errorf("it is more than %d directories deep", maxDepth)
	case parent.length+len(name) > maxPath:
		return fmt.Errorf("its path is longer than %d bytes", maxPath)
	}
	t.remove(parent.children[name])
	if t.files >= t.maxEntries {
		return as(ErrTooLarge, fmt.Errorf("the image has more than %d files", t.maxEntries))
	}
	parent.add(name, f)
	t.files++
	t.steps++
	return nil
}

// remove takes a name and all below it away; nil is nothing.
func (t *tree) remove(n *node) {
	if n == nil || n.parent == nil {
		return
	}
	delete(n.parent.children, n.name)
	t.forget(n)
}

// forget counts a name and all below it as gone.
func (t *tree) forget(n *node) {
	t.files--
	t.steps++
	for _, c := range n.children {
		t.forget(c)
	}
}

// path is a node's path in the tree; "" is the root's.
func (n *node) path() string {
	var names []string
	for ; n.parent != nil; n = n.parent {
		names = append(names, n.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// all goes through the tree with the paths of its nodes, parents first and in an
// order that is always the same.
func (t *tree) all() iter.Seq2[string, *node] {
	return func(yield func(string, *node) bool) { t.root.each("", yield) }
}

func (n *node) each(path string, yield func(string, *node) bool) bool {
	if !yield(path, n) {
		return false
	}
	if path != "" {
		path += "/"
	}
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		if !n.children[name].each(path+name, yield) {
			return false
		}
	}
	return true
}
