package report

import (
	"flag"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/skep-dev/skep/experiment"
	"github.com/skep-dev/skep/experiment/results"
)

var update = flag.Bool("update", false, "write testdata/tables anew")

// TestGolden makes the report of samples that were measured once, of every
// experiment: tables are what they were, figures are there, and the page needs
// nothing but itself.
func TestGolden(t *testing.T) {
	d, err := experiment.Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, err := Write(dir, d)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, e := range experiment.All() {
		if !strings.Contains(page, `<section id="`+e.Name+`">`) {
			t.Errorf("the page has no section %s", e.Name)
		}
	}
	for _, bad := range []string{"NaN", "+Inf", "%!", "ZgotmplZ", "<no value>"} {
		if i := strings.Index(page, bad); i >= 0 {
			t.Errorf("the page has %q: …%s", bad, page[max(0, i-80):min(len(page), i+40)])
		}
	}
	if m := regexp.MustCompile(`(?:src|href)="[^#][^"]*"|url\(|@import|<script`).FindString(page); m != "" {
		t.Errorf("the page needs something else: %s", m)
	}
	checkTables(t, dir)
	checkWire(t, dir)
	figures, err := filepath.Glob(filepath.Join(dir, "figures", "*.png"))
	if err != nil || len(figures) < 14 {
		t.Errorf("figures: %v, %v", figures, err)
	}
	for _, f := range figures {
		in, err := os.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := png.DecodeConfig(in); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		in.Close()
	}
}

// checkWire reads the report as the control API does, with all its figures.
func checkWire(t *testing.T, dir string) {
	t.Helper()
	all, name := results.Dir(filepath.Dir(dir)), filepath.Base(dir)
	r, err := all.Report(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Sections) != len(experiment.All()) || r.Samples == 0 || r.VMM == "" || len(r.Reasons) == 0 {
		t.Errorf("of %d sections, %d samples, on %q: %v", len(r.Sections), r.Samples, r.VMM, r.Reasons)
	}
	for _, s := range r.Sections {
		if len(s.Findings) == 0 || len(s.Tables) == 0 || s.Title == "" {
			t.Errorf("%s has %d findings, %d tables, is of %q", s.Name, len(s.Findings), len(s.Tables), s.Title)
		}
		for _, f := range s.Figures {
			for _, narrow := range []bool{false, true} {
				if b, err := all.Figure(name, f.Name, narrow); err != nil || !strings.HasPrefix(string(b), "<svg") || strings.Contains(string(b), "NaN") {
					t.Errorf("figure %s, narrow %v: %v\n%.200s", f.Name, narrow, err, b)
				}
			}
		}
	}
}

func checkTables(t *testing.T, dir string) {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(dir, "tables", "*.csv"))
	if err != nil || len(tables) < len(experiment.All()) {
		t.Fatalf("tables: %v, %v", tables, err)
	}
	for _, path := range tables {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", "tables", filepath.Base(path))
		if *update {
			if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(golden); err != nil || string(want) != string(got) {
			t.Errorf("%s is\n%s\nwant\n%s(%v; -update writes it anew)", filepath.Base(path), got, want, err)
		}
	}
}

// A report of what a run has so far is a report.
func TestPartial(t *testing.T) {
	d, err := experiment.Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{2, 40} {
		part := experiment.Data{Sessions: d.Sessions, Samples: d.Samples[:n]}
		path, err := Write(t.TempDir(), &part)
		if err != nil {
			t.Fatalf("of %d samples: %v", n, err)
		}
		if b, err := os.ReadFile(path); err != nil || strings.Contains(string(b), "NaN") {
			t.Errorf("of %d samples: %v, or it has NaN", n, err)
		}
	}
	if _, err := Write(t.TempDir(), &experiment.Data{}); err == nil {
		t.Error("a report of nothing was made")
	}
}

// What is emulated is said, of the guest and of the machine.
func TestReasons(t *testing.T) {
	for _, test := range []struct{ vmm, cpu, want, not string }{
		{"qemu 7.2 tcg", "AMD EPYC", "Guest code is emulated", "its KVM too"},
		{"firecracker 1.16.1 kvm", "QEMU TCG CPU version 2.5+", "its KVM too", "Guest code is emulated"},
		{"firecracker 1.16.1 kvm", "AMD EPYC", "processors", "emulated"},
		{"firecracker 1.16.1 kvm", "AMD EPYC", "processors", "advises huge pages"},
		{"qemu 7.2 tcg", "AMD EPYC", "advises huge pages", "its KVM too"},
	} {
		said := strings.Join(reasons(experiment.Session{VMM: test.vmm, CPU: test.cpu}), "\n")
		if !strings.Contains(said, test.want) || strings.Contains(said, test.not) {
			t.Errorf("%s on %s: %s", test.vmm, test.cpu, said)
		}
	}
	if said := strings.Join(reasons(experiment.Session{VMM: "qemu 7.2 tcg", Unadvised: true}), "\n"); strings.Contains(said, "advises huge pages") {
		t.Errorf("of a run whose QEMU could not: %s", said)
	}
}
