package memo_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/internal/memo"
)

// asker counts how often it had to look.
type asker struct {
	dir   memo.Dir
	files []string
	found int
}

func (a *asker) ask(t *testing.T, question, want string) {
	t.Helper()
	got, err := memo.Ask(a.dir, question, func(read func(string)) (string, error) {
		a.found++
		for _, f := range a.files {
			read(f)
		}
		b, err := os.ReadFile(a.files[0])
		return question + string(b), err
	})
	if err != nil || got != question+want {
		t.Errorf("%s: %q, %v; want %q", question, got, err, question+want)
	}
}

func TestAsk(t *testing.T) {
	dir := t.TempDir()
	a := &asker{dir: memo.Dir(filepath.Join(dir, "memo")), files: []string{filepath.Join(dir, "f"), filepath.Join(dir, "missing")}}
	put := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found := func(want int) {
		t.Helper()
		if a.found != want {
			t.Errorf("it has looked %d times: want %d", a.found, want)
		}
	}
	put(a.files[0], "one")
	a.ask(t, "q", "one")
	a.ask(t, "q", "one")
	found(2) // the file has just changed: nothing was kept
	time.Sleep(150 * time.Millisecond)
	a.ask(t, "q", "one")
	a.ask(t, "q", "one")
	found(3)
	a.ask(t, "another", "one")
	found(4)
	put(a.files[0], "two") // of the same size
	if err := os.Chtimes(a.files[0], time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	a.ask(t, "q", "two")
	found(5)
	time.Sleep(150 * time.Millisecond)
	a.ask(t, "q", "two")
	a.ask(t, "q", "two")
	found(6)
	put(a.files[1], "not missing any more")
	a.ask(t, "q", "two")
	found(7)
	time.Sleep(150 * time.Millisecond)
	a.ask(t, "q", "two")
	all, err := filepath.Glob(filepath.Join(string(a.dir), "*"))
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v: want two answers", all, err)
	}
	for _, f := range all {
		put(f, "{")
	}
	a.ask(t, "q", "two")
	found(9)
	a.dir = ""
	a.ask(t, "q", "two")
	a.ask(t, "q", "two")
	found(11)
}

func TestOutput(t *testing.T) {
	dir := t.TempDir()
	d, program := memo.Dir(filepath.Join(dir, "memo")), filepath.Join(dir, "program")
	for _, c := range []struct {
		script, want string
		code         int
	}{{"echo a >>$0.runs; echo one", "one\n", 0}, {"echo a >>$0.runs; exit 3", "", 3}} {
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+c.script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		os.Remove(program + ".runs")
		time.Sleep(150 * time.Millisecond)
		for range 3 {
			out, err := memo.Output(t.Context(), d, program)
			if string(out) != c.want || errors.Is(err, memo.ErrExit) != (c.code != 0) || c.code == 0 && err != nil {
				t.Errorf("%s: %q, %v", c.script, out, err)
			}
		}
		if runs, _ := os.ReadFile(program + ".runs"); string(runs) != "a\n" {
			t.Errorf("%s: it ran %q: want one run", c.script, runs)
		}
	}
	if _, err := memo.Output(t.Context(), d, filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v: want that it is missing", err)
	}
}

func TestErrorsAreNotKept(t *testing.T) {
	d := memo.Dir(t.TempDir())
	broken := errors.New("broken")
	for _, want := range []error{broken, nil} {
		if _, err := memo.Ask(d, "q", func(func(string)) (int, error) { return 1, want }); !errors.Is(err, want) {
			t.Errorf("%v: want %v", err, want)
		}
	}
}
