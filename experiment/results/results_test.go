package results

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
)

// put writes a file of a directory of results.
func put(t *testing.T, text string, parts ...string) string {
	t.Helper()
	path := filepath.Join(parts...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Directories of results are told, whatever else is beside them.
func TestList(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	put(t, "12345", dir, "measured", samples)
	put(t, "12345", dir, "reported", samples)
	put(t, "{}", dir, "reported", ReportFile)
	put(t, "{}", dir, "published", ReportFile)
	put(t, "", dir, "a file")
	put(t, "", dir, ".hidden", samples)
	put(t, "", dir, "odd name\n", samples)
	put(t, "", dir, strings.Repeat("n", maxName+1), samples)
	put(t, "", outside, "linked", samples)
	must(t, os.Symlink(filepath.Join(outside, "linked"), filepath.Join(dir, "linked")))
	must(t, os.MkdirAll(filepath.Join(dir, "inside"), 0o755))
	must(t, os.Symlink("../measured/"+samples, filepath.Join(dir, "inside", samples)))
	must(t, os.MkdirAll(filepath.Join(dir, "directory", samples), 0o755))
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	must(t, os.Chtimes(filepath.Join(dir, "reported", ReportFile), when, when))

	all, err := Dir(dir).List()
	must(t, err)
	slices.SortFunc(all, func(a, b api.Experiment) int { return strings.Compare(a.Name, b.Name) })
	if len(all) != 3 || all[0].Name != "measured" || all[0].Reported || all[0].SamplesBytes != 5 || all[1].Name != "published" || !all[1].Reported {
		t.Fatalf("there are %+v", all)
	}
	if got, want := all[2], (api.Experiment{Name: "reported", Changed: when, SamplesBytes: 5, Reported: true}); got != want {
		t.Errorf("one is %+v, want %+v", got, want)
	}
	for _, d := range []Dir{"", Dir(filepath.Join(dir, "none"))} {
		if all, err := d.List(); err != nil || len(all) != 0 {
			t.Errorf("in %q there are %v, %v", d, all, err)
		}
	}
	if _, err := Dir(filepath.Join(dir, "a file")).List(); err == nil {
		t.Error("a file was listed")
	}
}

// A time that JSON has no words for is not told.
func TestOddTimes(t *testing.T) {
	dir := t.TempDir()
	path := put(t, "", dir, "a", samples)
	for _, when := range []time.Time{time.Unix(1<<40, 0), time.Unix(-1<<40, 0)} {
		must(t, os.Chtimes(path, when, when))
		all, err := Dir(dir).List()
		must(t, err)
		if _, err := json.Marshal(all); err != nil {
			t.Errorf("of %v: %v", when, err)
		}
	}
}

// What is not a report, or not to be had, is an error of the right kind.
func TestHostile(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	secret := put(t, `{"title": "secret"}`, outside, ReportFile)
	put(t, "<svg/>", outside, "f.svg")
	put(t, strings.Repeat(" ", maxReport)+"{}", dir, "large", ReportFile)
	put(t, `{"sections":[`+strings.Repeat("{},", maxObjects)+`{}]}`, dir, "many", ReportFile)
	put(t, "[", dir, "half", ReportFile)
	put(t, `{"sections": 3}`, dir, "other", ReportFile)
	put(t, strings.Repeat("[", 1<<20), dir, "deep", ReportFile)
	put(t, "1", dir, "empty", samples)
	for _, d := range []string{"linked", "absolute", "pipe", "listed"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	must(t, os.Symlink("../../"+filepath.Base(outside)+"/"+ReportFile, filepath.Join(dir, "linked", ReportFile)))
	must(t, os.Symlink(secret, filepath.Join(dir, "absolute", ReportFile)))
	must(t, os.Symlink(outside, filepath.Join(dir, "listed", Figures)))
	must(t, os.Symlink(outside, filepath.Join(dir, "directory")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe", ReportFile), 0o600)) // which nobody writes to
	for name, want := range map[string]error{
		"large": ErrMalformed, "many": ErrMalformed, "half": ErrMalformed, "other": ErrMalformed, "deep": ErrMalformed,
		"empty": fs.ErrNotExist, "linked": fs.ErrNotExist, "absolute": fs.ErrNotExist, "pipe": fs.ErrNotExist, "directory": fs.ErrNotExist, "none": fs.ErrNotExist,
		"": fs.ErrNotExist, ".": fs.ErrNotExist, "..": fs.ErrNotExist, "../" + filepath.Base(outside): fs.ErrNotExist, outside: fs.ErrNotExist, "a\x00": fs.ErrNotExist,
	} {
		if r, err := Dir(dir).Report(name); !errors.Is(err, want) {
			t.Errorf("%.40q: %+v, %.200v; want %v", name, r, err, want)
		}
	}
	put(t, strings.Repeat("s", maxFigure+1), dir, "half", Figures, "large.svg")
	put(t, "<svg/>", dir, "half", "f.svg")
	for _, f := range [][2]string{{"half", "large"}, {"half", "none"}, {"half", "../f"}, {"half", ""}, {"listed", "f"}, {"directory", "f"}, {"..", "f"}} {
		if b, err := Dir(dir).Figure(f[0], f[1], false); err == nil {
			t.Errorf("%q is %.20q", f, b)
		}
	}
}

// What a report leaves out is empty, and never null.
func TestNoNulls(t *testing.T) {
	dir := t.TempDir()
	put(t, `{"title":"t","sections":[{"name":"a","tables":[{"name":"b","rows":[null,["1"]]}]},{}],"later":1}`, dir, "one", ReportFile)
	r, err := Dir(dir).Report("one")
	must(t, err)
	b, err := json.Marshal(r)
	must(t, err)
	if strings.Contains(string(b), "null") || len(r.Sections) != 2 || r.Sections[0].Tables[0].Rows[1][0] != "1" {
		t.Errorf("%s", b)
	}
}
