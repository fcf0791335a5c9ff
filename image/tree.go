package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

const (
	whiteout  = ".wh."
	opaque    = ".wh..wh..opq"
	auxiliary = ".wh..wh." // what storage drivers left in layers for themselves

	maxPath = 4095 // bytes, as in Linux without its NUL
	maxName = 255
)

// inode is a file of the image: where its header and content are.
type inode struct {
	layer, entry int // layer -1: a directory that no layer describes
	dir          bool
	target       string // of a symbolic link
	first        string // path that it is written under; the others are links to it
}

// tree is the file system as the layers so far make it: what an overlay of them
// would show.
type tree struct {
	files      map[string]*inode          // by path; "" is the root
	children   map[string]map[string]bool // of directories, by path
	maxEntries int
	left       int64 // bytes of files that are still allowed
}

func newTree(maxEntries int, maxBytes int64) *tree {
	return &tree{
		files:    map[string]*inode{"": {layer: -1, dir: true}},
		children: map[string]map[string]bool{"": {}}, maxEntries: maxEntries, left: maxBytes,
	}
}

// dirOf and baseOf split a path of the tree.
func dirOf(name string) string  { return path.Dir("/" + name)[1:] }
func baseOf(name string) string { return path.Base("/" + name) }

// cleanName returns an entry's path without leading and trailing slashes; "" is
// the root. A path that leads out of the root is an error.
func cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("entry %.64q… has a path of %d bytes: Linux takes %d", name, len(name), maxPath)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("entry %q leads out of the root", name)
		}
		if len(part) > maxName {
			return "", fmt.Errorf("entry %.64q… has a name of %d bytes: ext4 takes %d", name, len(part), maxName)
		}
	}
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("entry %q has a NUL in its name", name)
	}
	return strings.TrimPrefix(filepath.Clean("/"+name), "/"), nil
}

// isWhiteout tells entries that hide files of lower layers from entries that are
// files.
func isWhiteout(name string) bool { return strings.HasPrefix(baseOf(name), whiteout) }

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
	parent, base := dirOf(name), baseOf(name)
	if base == opaque {
		for c := range t.children[parent] {
			t.remove(path.Join(parent, c))
		}
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteout)
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("entry %q hides no file", h.Name)
	}
	t.remove(path.Join(parent, hidden))
	return nil
}

// apply puts one entry of a layer on top, unless it is a whiteout.
func (t *tree) apply(layer, entry int, h *tar.Header) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if isWhiteout(name) || isAuxiliary(name) || h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if len(t.files) >= t.maxEntries {
		return fmt.Errorf("the image has more than %d files", t.maxEntries)
	}
	// A sparse file may be far larger than its layer.
	if h.Size < 0 || h.Size > t.left {
		return fmt.Errorf("entry %q: the image's files are larger than the limit", h.Name)
	}
	t.left -= h.Size
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return errors.New("the root is not a directory")
		}
		t.setDir(name, layer, entry)
		return nil
	}
	parent, err := t.makeParents(dirOf(name), layer)
	if err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	name = path.Join(parent, baseOf(name))
	if len(name) > maxPath {
		return fmt.Errorf("entry %q: its path is longer than %d bytes", h.Name, maxPath)
	}
	return t.put(name, layer, entry, h)
}

// put sets a path, whose parent is there, to an entry.
func (t *tree) put(name string, layer, entry int, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeDir:
		t.setDir(name, layer, entry)
	case tar.TypeLink:
		return t.link(name, layer, h)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.ContainsRune(h.Linkname, 0) {
			return fmt.Errorf("symbolic link %q: its target is empty, longer than %d bytes, or has a NUL", h.Name, maxPath)
		}
		t.set(name, &inode{layer: layer, entry: entry, target: h.Linkname})
	case tar.TypeReg, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeGNUSparse:
		t.set(name, &inode{layer: layer, entry: entry})
	default:
		return fmt.Errorf("entry %q is of unknown type %q", h.Name, h.Typeflag)
	}
	return nil
}

// link makes name another name of the file that a hard link is to.
func (t *tree) link(name string, layer int, h *tar.Header) error {
	to, err := cleanName(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link %q: %w", h.Name, err)
	}
	target, ok := t.files[to]
	if !ok { // perhaps below a symbolic link
		links := maxLinks
		if parent, err := t.follow(dirOf(to), layer, &links); err == nil {
			to = path.Join(parent, baseOf(to))
			target, ok = t.files[to]
		}
	}
	if !ok || target.dir {
		return fmt.Errorf("hard link %q: no file %q to link to", h.Name, h.Linkname)
	}
	if to != name {
		t.set(name, target)
	}
	return nil
}

// maxLinks bounds the symbolic links in one path, as Linux does.
const maxLinks = 40

// follow resolves symbolic links that the layer itself has put into the path of
// a directory: its archiver wrote through them. One of a lower layer is not
// followed but replaced, as an overlay of the layers would. links counts down.
func (t *tree) follow(dir string, layer int, links *int) (string, error) {
	f, ok := t.files[dir]
	if ok && f.target != "" && f.layer == layer {
		to := f.target
		if !path.IsAbs(to) {
			to = path.Join("/"+dirOf(dir), to)
		}
		if *links--; *links < 0 || len(to) > maxPath {
			return "", fmt.Errorf("%q is a loop of symbolic links", dir)
		}
		return t.follow(path.Clean("/" + to)[1:], layer, links)
	}
	if ok || dir == "" {
		return dir, nil
	}
	parent, err := t.follow(dirOf(dir), layer, links)
	if err != nil || parent == dirOf(dir) {
		return dir, err
	}
	return t.follow(path.Join(parent, baseOf(dir)), layer, links)
}

// makeParents adds the directories above an entry that no layer has, and returns
// which directory that is. A parent that is no directory is replaced: the upper
// layer is right.
func (t *tree) makeParents(dir string, layer int) (string, error) {
	links := maxLinks
	dir, err := t.follow(dir, layer, &links)
	if err != nil || dir == "" {
		return dir, err
	}
	if len(dir) > maxPath {
		return "", fmt.Errorf("its path is longer than %d bytes", maxPath)
	}
	if f, ok := t.files[dir]; ok && f.dir {
		return dir, nil
	}
	parent, err := t.makeParents(dirOf(dir), layer)
	if err != nil {
		return "", err
	}
	dir = path.Join(parent, baseOf(dir))
	t.setDir(dir, -1, 0)
	return dir, nil
}

func (t *tree) setDir(name string, layer, entry int) {
	if f, ok := t.files[name]; ok && f.dir {
		f.layer, f.entry = layer, entry
		return
	}
	t.set(name, &inode{layer: layer, entry: entry, dir: true})
	t.children[name] = map[string]bool{}
}

func (t *tree) set(name string, f *inode) {
	t.remove(name)
	t.files[name] = f
	t.children[dirOf(name)][baseOf(name)] = true
}

// remove deletes a path and all below it.
func (t *tree) remove(name string) {
	f, ok := t.files[name]
	if !ok || name == "" {
		return
	}
	if f.dir {
		for c := range t.children[name] {
			t.remove(path.Join(name, c))
		}
		delete(t.children, name)
	}
	delete(t.files, name)
	delete(t.children[dirOf(name)], baseOf(name))
}
