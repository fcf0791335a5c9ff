package functions

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/image"
	"github.com/skep-dev/skep/internal/debian"
	"github.com/skep-dev/skep/internal/testenv"
)

// TestBuildTwice builds each function's image twice: the second time nothing is
// made, and what was made becomes a root disk.
func TestBuildTwice(t *testing.T) {
	for _, name := range []string{"hello", "hello-python", "chameleon"} { // each kind; the others need big bases
		t.Run(name, func(t *testing.T) {
			if name != "hello" {
				testenv.Need(t, "root", "mmdebstrap")
			}
			dir := t.TempDir()
			var steps []string
			first, err := Build(t.Context(), dir, name, func(s string) { steps = append(steps, s) })
			if err != nil {
				t.Fatal(err)
			}
			made := len(steps)
			second, err := Build(t.Context(), dir, name, func(s string) { steps = append(steps, s) })
			if err != nil || second != first {
				t.Fatalf("the second time: %v, %s and %s", err, first, second)
			}
			if name != "hello" && len(steps) != made {
				t.Errorf("the second time made %q", steps[made:])
			}
			if half, _ := filepath.Glob(filepath.Join(dir, ".*")); len(half) > 0 {
				t.Errorf("left behind: %v", half)
			}
			store, err := image.Open(filepath.Join(dir, "images"), image.Options{})
			if err != nil {
				t.Fatal(err)
			}
			img, err := store.Fetch(t.Context(), first, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(img.Config.Entrypoint) == 0 {
				t.Error("the image has no entrypoint")
			}
			if name != "hello" { // the others take too long to make twice
			} else if again, err := Build(t.Context(), filepath.Join(dir, "elsewhere"), name, nil); err != nil {
				t.Error(err)
			} else if other, err := store.Fetch(t.Context(), again, nil); err != nil || other.Digest != img.Digest {
				t.Errorf("made elsewhere it is another image: %v, %s and %s", err, other.Digest, img.Digest)
			}
			if st, err := os.Stat(img.Disk); err != nil || st.Size() > 160<<20 {
				t.Errorf("the disk: %v, %d bytes", err, st.Size())
			}
		})
	}
}

// TestImageOutlivesItsBase finds an image where its base is not and cannot be
// made, as on a host that was brought the image alone.
func TestImageOutlivesItsBase(t *testing.T) {
	release, err := debian.Release()
	if err != nil {
		t.Skip("images of Python functions are made on Debian and Ubuntu: ", err)
	}
	t.Setenv("PATH", "") // without mmdebstrap
	dir := t.TempDir()
	if _, err := Build(t.Context(), dir, "helloworld", nil); err == nil {
		t.Fatal("an image was made of nothing")
	}
	f := bench[0]
	files, err := f.files()
	if err != nil {
		t.Fatal(err)
	}
	list, err := sources.ReadFile("base/" + f.base + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	b := pythonBase{release: release, packages: strings.Fields(string(list))}
	made := filepath.Join(dir, "helloworld-"+digest(b.key(), files))
	if err := os.Mkdir(made, 0o755); err != nil {
		t.Fatal(err)
	}
	if ref, err := Build(t.Context(), dir, "helloworld", nil); err != nil || ref != "oci:"+made {
		t.Errorf("%s, %v; want what is there", ref, err)
	}
}

func TestUnknownFunction(t *testing.T) {
	if _, err := Build(t.Context(), t.TempDir(), "absent", nil); err == nil || !strings.Contains(err.Error(), "hello-python") {
		t.Errorf("error %v: want one that names those that there are", err)
	}
}

// TestSettings reads every function's settings, and those of the ten must be
// what the ten need.
func TestSettings(t *testing.T) {
	for _, name := range Names() {
		f, err := Settings(name)
		if err != nil {
			t.Error(err)
		}
		f.Name, f.Image = "x", "functions/"+name
		if err := f.WithDefaults().Validate(); err != nil {
			t.Error(err)
		}
	}
	for _, f := range bench {
		files, err := f.files()
		if err != nil {
			t.Fatal(err)
		}
		usesS3 := strings.Contains(string(files["app/server.py"]), "import s3")
		if s, err := Settings(f.name); err != nil || usesS3 != (s.Egress == api.EgressHost) {
			t.Errorf("%s fetches from S3: %v, its egress is %q, %v", f.name, usesS3, s.Egress, err)
		}
		if list, err := sources.ReadFile("base/" + f.base + ".txt"); err != nil || !strings.Contains(string(list), "python3") {
			t.Errorf("base %s of %s: %q, %v", f.base, f.name, list, err)
		}
	}
	if _, err := Settings("absent"); err == nil {
		t.Error("a function that is not there has settings")
	}
}

func TestIsDropped(t *testing.T) {
	for name, want := range map[string]bool{
		"usr/share/doc/": false, "usr/share/doc/x": true, "usr/share/docs": false, "dev/": false, "dev/null": true,
		"etc/hostname": true, "etc/hostnames": false, "etc/": false, "usr/bin/python3": false,
		"usr/lib/x86_64-linux-gnu/libLLVM-15.so.1": true, "usr/lib/x86_64-linux-gnu/libLTO.so": false, "usr/lib/x86_64-linux-gnu/dri/x": true,
	} {
		if got := isDropped(name); got != want {
			t.Errorf("%s is dropped: %v, want %v", name, got, want)
		}
	}
}

// TestBaseIsShared makes two images of one base: its bytes are there once.
func TestBaseIsShared(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base.tar")
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range []string{"one", "two"} {
		dir := filepath.Join(filepath.Dir(base), code)
		if err := writeLayout(dir, base, map[string][]byte{"app/server.py": []byte(code)}); err != nil {
			t.Fatal(err)
		}
		blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
		if err != nil || len(blobs) != 4 { // base, function, configuration, manifest
			t.Errorf("the layout has %v, %v", blobs, err)
		}
		shared := false
		for _, b := range blobs {
			st, err := os.Stat(b)
			shared = shared || err == nil && os.SameFile(st, want)
		}
		if !shared {
			t.Errorf("the base was copied into %v", blobs)
		}
	}
}
