package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// op is one entry of a layer in short: "d/" is a directory, "a -> b" a symbolic
// link, "a = b" a hard link, the rest files.
func op(s string) *tar.Header {
	if name, to, ok := strings.Cut(s, " -> "); ok {
		return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	if name, to, ok := strings.Cut(s, " = "); ok {
		return &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
	}
	if strings.HasSuffix(s, "/") {
		return &tar.Header{Typeflag: tar.TypeDir, Name: s}
	}
	return &tar.Header{Typeflag: tar.TypeReg, Name: s, Size: 1}
}

func build(tr *tree, layers [][]string) error {
	for i, l := range layers {
		for _, e := range l {
			if err := tr.hide(op(e)); err != nil {
				return err
			}
		}
		for j, e := range l {
			if err := tr.apply(i, j, op(e)); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestTree(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]string
		want   string // paths, sorted; or an error after "!"
	}{
		{"plain", [][]string{{"a", "b/", "b/c"}}, "a b b/c"},
		{"dot and slash", [][]string{{"./", "./a", "/b//c"}}, "a b b/c"},
		{"whiteout", [][]string{{"a", "b"}, {".wh.a"}}, "b"},
		{"whiteout of a directory", [][]string{{"d/x/y", "e"}, {".wh.d"}}, "e"},
		{"whiteout of nothing", [][]string{{"a"}, {".wh.b", "c/.wh.d"}}, "a"},
		{"whiteout before the same name", [][]string{{"a/old"}, {".wh.a", "a/new"}}, "a a/new"},
		{"whiteout after the same name", [][]string{{"a/old"}, {"a/new", ".wh.a"}}, "a a/new"},
		{"whiteout of its own layer's file", [][]string{{"a", ".wh.a"}}, "a"},
		{"opaque first", [][]string{{"d/old", "d/s/old"}, {"d/.wh..wh..opq", "d/new"}}, "d d/new"},
		{"opaque last", [][]string{{"d/old", "d/s/old"}, {"d/", "d/new", "d/s/", "d/s/new", "d/.wh..wh..opq"}}, "d d/new d/s d/s/new"},
		{"opaque root", [][]string{{"a", "b/c"}, {".wh..wh..opq", "d"}}, "d"},
		{"opaque and a link into a lower layer", [][]string{{"d/old", "f"}, {"d/l = f", "d/.wh..wh..opq"}}, "d d/l f"},
		{"file over directory", [][]string{{"d/x"}, {"d"}}, "d"},
		{"directory over file", [][]string{{"d"}, {"d/", "d/x"}}, "d d/x"},
		{"directory implied over file", [][]string{{"d"}, {"d/x"}}, "d d/x"},
		{"directory over directory keeps", [][]string{{"d/x"}, {"d/"}}, "d d/x"},
		{"link outlives its target's name", [][]string{{"a", "l = a"}, {".wh.a"}}, "l"},
		{"link to a link", [][]string{{"a", "l = a", "m = l"}}, "a l m"},
		{"link replaced by a file", [][]string{{"a", "l = a"}, {"l"}}, "a l"},
		{"link to itself", [][]string{{"a", "a = a"}}, "a"},
		{"link to a directory", [][]string{{"d/", "l = d"}}, "!no file"},
		{"link to what is hidden", [][]string{{"a"}, {".wh.a", "l = a"}}, "!no file"},
		{"through a link of the layer", [][]string{{"lib -> usr/lib", "lib/x"}}, "lib usr usr/lib usr/lib/x"},
		{"through a chain of links", [][]string{{"a -> /b/c", "b -> d", "a/x"}}, "a b d d/c d/c/x"},
		{"hard link through a link", [][]string{{"usr/lib/x", "lib -> usr/lib", "l = lib/x"}}, "l lib usr usr/lib usr/lib/x"},
		{"through a link that climbs out", [][]string{{"l -> ../../..", "l/x"}}, "l x"},
		{"over a link of a lower layer", [][]string{{"usr/lib/x", "lib -> usr/lib"}, {"lib/y"}}, "lib lib/y usr usr/lib usr/lib/x"},
		{"links in a loop", [][]string{{"a -> b", "b -> a", "a/x"}}, "!loop"},
		{"link into itself", [][]string{{"a -> a/b", "a/x"}}, "!loop"},
		{"drivers' files", [][]string{{".wh..wh.aufs", ".wh..wh.plnk/1", "a"}}, "a"},
		{"dots in names are no escape", [][]string{{"..a", "b..", "..."}}, "... ..a b.."},
		{"escape", [][]string{{"a/../../b"}}, "!leads out"},
		{"escape of a link", [][]string{{"a", "l = ../a"}}, "!leads out"},
		{"escape of a whiteout", [][]string{{"a"}, {"../.wh.a"}}, "!leads out"},
		{"whiteout without a name", [][]string{{".wh."}}, "!hides no file"},
		{"whiteout of dots", [][]string{{".wh..."}}, "!hides no file"},
		{"long name", [][]string{{strings.Repeat("n", 256)}}, "!ext4 takes 255"},
		{"long path", [][]string{{strings.Repeat("n/", 3000)}}, "!Linux takes 4095"},
		{"root as a link", [][]string{{"a", "/ = a"}}, "!root is not a directory"},
		{"too many", [][]string{{"1/", "2/", "3/", "4/", "5/", "6/", "7/", "8/", "9/", "10/"}}, "!more than 8 files"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := newTree(8, 1<<20)
			err := build(tr, c.layers)
			if want, bad := strings.CutPrefix(c.want, "!"); bad {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v: want one with %q", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkTree(t, tr)
			var got []string
			for name := range tr.all() {
				got = append(got, name)
			}
			slices.Sort(got)
			if got := strings.Join(got[1:], " "); got != c.want { // without the root
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestSparseFilesCount(t *testing.T) {
	tr := newTree(8, 1<<20)
	h := &tar.Header{Typeflag: tar.TypeGNUSparse, Name: "a", Size: 1 << 60}
	if err := tr.apply(0, 0, h); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("a sparse file of an exbibyte: %v", err)
	}
}

// checkTree checks that a tree is whole: every node is where its directory says,
// counted, and within the bounds.
func checkTree(t *testing.T, tr *tree) {
	t.Helper()
	n := -1 // without the root
	for name, f := range tr.all() {
		n++
		if strings.Contains("/"+name+"/", "/../") || len(name) > maxPath || f.depth > maxDepth {
			t.Fatalf("%q escapes", name)
		}
		if f.path() != name || tr.lookup(name) != f || name != "" && f.depth != strings.Count(name, "/")+1 {
			t.Fatalf("%q is found at %q, depth %d", name, f.path(), f.depth)
		}
		if !f.dir && len(f.children) > 0 || f.parent != nil && !f.parent.dir {
			t.Fatalf("%q is below a file", name)
		}
	}
	if n != tr.files || n > tr.maxEntries {
		t.Fatalf("there are %d files, %d were counted, %d allowed", n, tr.files, tr.maxEntries)
	}
}

// FuzzTree also bounds the work: so many steps for each entry, whatever the
// entries are.
func FuzzTree(f *testing.F) {
	f.Add("a/b\x00.wh.a\x00a/.wh..wh..opq\x00../x")
	f.Add("lib -> usr/lib\x00lib/x\x00l = lib/x\x01.wh.lib\x00lib/y")
	f.Add("a -> b/c\x00b -> a\x00a/x\x01a/\x00d = a/x")
	f.Add(strings.Repeat(strings.Repeat("a/", 200)+"\x00a\x00", 5))
	f.Add("l -> " + strings.Repeat("../", 80) + "l2\x00l2 -> " + strings.Repeat("./", 80) + "l3\x00" + strings.Repeat("l/x\x00", 5))
	f.Fuzz(func(t *testing.T, s string) {
		var layers [][]string
		entries := 0
		for l := range strings.SplitSeq(s, "\x01") {
			layers = append(layers, strings.Split(l, "\x00"))
			entries += len(layers[len(layers)-1])
		}
		tr := newTree(1000, 1<<20)
		_ = build(tr, layers) // an error leaves it whole, too
		checkSteps(t, tr, entries)
		checkTree(t, tr)
	})
}

// checkSteps: an entry is looked up, walked to, and makes its parents, all of
// which may have to go again.
func checkSteps(t *testing.T, tr *tree, entries int) {
	t.Helper()
	if most := entries * (3*maxSteps + 2*maxDepth); tr.steps > most || tr.made > rewrites*tr.maxEntries+1 {
		t.Fatalf("%d entries take %d steps and make %d files: at most %d and %d", entries, tr.steps, tr.made, most, rewrites*tr.maxEntries)
	}
}

// TestHostileTrees has layers that cost far more than their size, if nothing
// bounds them.
func TestHostileTrees(t *testing.T) {
	deep := strings.Repeat("a/", maxDepth)
	var swing, chain []string
	for range 1000 {
		swing = append(swing, deep+"/", "a") // directories made, and replaced by a file
	}
	for i := range maxLinks + 1 {
		chain = append(chain, fmt.Sprintf("l%d -> l%d", i+1, i))
	}
	chain = append(chain, "l0/", fmt.Sprintf("l%d/x", len(chain)))
	dots := []string{"d/", "l -> " + strings.Repeat("d/../", 800) + "d", "l/x"}
	for _, c := range []struct {
		name   string
		layers [][]string
		kind   error // nil: it is taken
		want   string
	}{
		{"as deep as allowed", [][]string{{deep}}, nil, ""},
		{"too deep", [][]string{{strings.Repeat("a/", 2040), strings.Repeat("a/", 2040)}}, nil, "2040 directories deep"},
		{"too deep through a link", [][]string{{"l -> " + deep, "l/b/c/d"}}, nil, "more than 256"},
		{"too deep a whiteout", [][]string{{strings.Repeat("a/", 2040) + ".wh.a"}}, nil, "deep"},
		{"parents count", [][]string{{deep, "b" + deep, "c" + deep, "d" + deep}}, ErrTooLarge, "more than 1000 files"},
		{"parents count that are gone", [][]string{swing}, ErrTooLarge, "more than 4000 files"},
		{"parents count that later layers hide", [][]string{{deep}, {".wh.a", deep}, {".wh.a", deep}, {".wh.a", deep}, {".wh.a", deep}}, nil, ""},
		{"files count that are written over", [][]string{slices.Repeat([]string{"a"}, 5000)}, ErrTooLarge, "layers have more than 4000"},
		{"a chain of links", [][]string{chain}, nil, "loop"},
		{"a link that walks about", [][]string{dots}, nil, "steps through symbolic links"},
		{"a name too long by a link", [][]string{{"l -> " + strings.Repeat("n", 300), "l/x"}}, nil, "name of 300 bytes"},
		{"a path too long by a link", [][]string{{"l -> " + strings.Repeat(strings.Repeat("n", 200)+"/", 20), "l/" + strings.Repeat("x", 200)}}, nil, "path is longer than 4095"},
		{"long names", [][]string{slices.Repeat([]string{strings.Repeat(strings.Repeat("n", 200)+"/", 20)}, 500)}, ErrTooLarge, "names, links and attributes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := newTree(1000, 1<<20)
			err := build(tr, c.layers)
			entries := 0
			for _, l := range c.layers {
				entries += len(l)
			}
			checkSteps(t, tr, entries)
			checkTree(t, tr)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v: want one with %q", err, c.want)
			}
			if c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("error %v is not %v", err, c.kind)
			}
		})
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"localhost:5000/a:b", "oci:/x:y", "docker-archive:/a.tar:h:1/n:t", "dir:/x:y", "./a.tar", "oci:", "", "a@sha256:00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseRef(s)
		if err == nil && (r.path == "") == (r.name == nil) {
			t.Errorf("%q gives %+v", s, r)
		}
	})
}

func TestParseRef(t *testing.T) {
	for ref, want := range map[string]reference{
		"oci:/a/b":                         {form: formLayout, path: "/a/b"},
		"oci:/a/b:v1":                      {form: formLayout, path: "/a/b", tag: "v1"},
		"oci-archive:a.tar:v1":             {form: formOCIArchive, path: "a.tar", tag: "v1"},
		"docker-archive:/x.tar:h:50/n/m:t": {form: formDockerArchive, path: "/x.tar", tag: "h:50/n/m:t"},
		"dir:/a:b":                         {form: formDir, path: "/a:b"},
		"images/x.tar.gz":                  {form: formArchive, path: "images/x.tar.gz"},
		"/x.tar":                           {form: formArchive, path: "/x.tar"},
	} {
		if got, err := parseRef(ref); err != nil || got != want {
			t.Errorf("%s gives %+v, %v: want %+v", ref, got, err, want)
		}
	}
	for ref, want := range map[string]string{
		"hello": "index.docker.io/library/hello:latest", "localhost:5000/a/b:c": "localhost:5000/a/b:c",
		"127.0.0.1:5000/x.tar@sha256:" + strings.Repeat("0", 64): "127.0.0.1:5000/x.tar@sha256:" + strings.Repeat("0", 64),
	} {
		got, err := parseRef(ref)
		if err != nil || got.name == nil || got.name.Name() != want {
			t.Errorf("%s gives %+v, %v: want %s", ref, got, err, want)
		} else if strings.Contains(ref, "/") && got.name.Context().Scheme() != "http" {
			t.Errorf("%s is spoken to by %s", ref, got.name.Context().Scheme())
		}
	}
	for _, ref := range []string{"", "oci:", "dir:", "/a/path", "Upper/case", "a b", "a\nb"} {
		if got, err := parseRef(ref); err == nil {
			t.Errorf("%q gives %+v", ref, got)
		}
	}
}
