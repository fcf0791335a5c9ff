// Package docs holds the documents to what they say of the tree.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var heldBy = regexp.MustCompile("^`((?:Test|Fuzz)[A-Za-z0-9_]*)` \\(([a-z0-9/]+)\\)$")

// TestPromisesAreTested: every promise names a test, and every test named is there.
func TestPromisesAreTested(t *testing.T) {
	b, err := os.ReadFile("promises.md")
	if err != nil {
		t.Fatal(err)
	}
	promises := 0
	there := map[string]map[string]bool{} // by package
	for n, line := range strings.Split(string(b), "\n") {
		if !strings.HasPrefix(line, "|") || line == "|---|---|" || line == "| promise | held by |" {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 2 || strings.TrimSpace(cells[0]) == "" {
			t.Errorf("line %d: want a promise and what holds it: %s", n+1, line)
			continue
		}
		promises++
		for _, held := range strings.Split(strings.TrimSpace(cells[1]), ", ") {
			m := heldBy.FindStringSubmatch(held)
			if m == nil {
				t.Errorf("line %d: %q: want `TestName` (package)", n+1, held)
				continue
			}
			if there[m[2]] == nil {
				there[m[2]] = tests(t, m[2])
			}
			if !there[m[2]][m[1]] {
				t.Errorf("line %d: there is no %s in %s", n+1, m[1], m[2])
			}
		}
	}
	if promises == 0 {
		t.Error("no promise was found")
	}
}

// tests are the names of a package's tests.
func tests(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(pkg), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names[fn.Name.Name] = true
			}
		}
	}
	return names
}
