// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is the import path of the repository's module.
const module = "github.com/fairlead/fairlead"

// root is the repository's directory.
var root = sync.OnceValue(func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
})

// walk calls f with the slash-separated path of every file of the repository
// that people write: not what is built, ignored, or git's own.
func walk(t *testing.T, f func(name string)) {
	t.Helper()
	skip := []string{".git", "state"}
	err := fs.WalkDir(os.DirFS(root()), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (slices.Contains(skip, name) || d.Name() == "bin"):
			return fs.SkipDir
		case d.Type().IsRegular():
			f(name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// read returns a file of the repository.
func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// isGenerated recognises generated code by the line that Go tools agree on.
var isGenerated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// source is one Go file that people write.
type source struct {
	name string
	file *ast.File
}

// packages parses the Go files that are not generated, by directory.
func packages(t *testing.T, fset *token.FileSet, tests bool) map[string][]source {
	t.Helper()
	pkgs := map[string][]source{}
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") != tests || strings.Contains(name, "testdata/") {
			return
		}
		text := read(t, name)
		if isGenerated.Match(text) || bytes.Contains(text, []byte("//go:build tools")) {
			return
		}
		f, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			t.Errorf("parse: %v", err)
			return
		}
		pkgs[path.Dir(name)] = append(pkgs[path.Dir(name)], source{name, f})
	})
	return pkgs
}

// TestPackageComments: each package says in a sentence what it is, in one file.
func TestPackageComments(t *testing.T) {
	pkgs := packages(t, token.NewFileSet(), false)
	if len(pkgs) < 5 {
		t.Fatalf("found %d packages", len(pkgs))
	}
	for dir, files := range pkgs {
		var docs []string
		for _, f := range files {
			if f.file.Doc != nil {
				docs = append(docs, f.file.Doc.Text())
			}
		}
		name := files[0].file.Name.Name
		start := "Package " + name + " "
		if name == "main" {
			start = "Command " + path.Base(dir) + " "
		}
		switch {
		case len(docs) != 1:
			t.Errorf("%s: %d of its files have a package comment, want one", dir, len(docs))
		case !strings.HasPrefix(docs[0], start):
			t.Errorf("%s: package comment starts %.40q, want %q", dir, docs[0], start)
		case !strings.HasSuffix(firstParagraph(docs[0]), "."):
			t.Errorf("%s: package comment's first paragraph is not a sentence", dir)
		}
	}
}

// firstParagraph returns the first paragraph of a doc comment, as text.
func firstParagraph(doc string) string {
	parsed := new(comment.Parser).Parse(doc)
	if len(parsed.Content) == 0 {
		return ""
	}
	parsed.Content = parsed.Content[:1]
	return strings.TrimSpace(string(new(comment.Printer).Text(parsed)))
}

// TestExportedNamesAreExplained: every exported function, method, type,
// constant and variable has a comment.
func TestExportedNamesAreExplained(t *testing.T) {
	fset := token.NewFileSet()
	checked := 0
	for _, files := range packages(t, fset, false) {
		for _, f := range files {
			for _, d := range f.file.Decls {
				checked++
				for _, id := range unexplained(d) {
					t.Errorf("%s: exported %s has no comment", fset.Position(id.Pos()), id.Name)
				}
			}
		}
	}
	t.Logf("%d declarations", checked)
}

// unexplained lists the exported names of a declaration that no comment explains.
// In a group of constants or variables the group's comment is enough; a type
// needs its own.
func unexplained(d ast.Decl) []*ast.Ident {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || receiver(d.Recv).IsExported()) {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		var out []*ast.Ident
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil && (d.Doc == nil || len(d.Specs) > 1) && s.Comment == nil {
					out = append(out, s.Name)
				}
			case *ast.ValueSpec:
				for _, id := range s.Names {
					if id.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
						out = append(out, id)
					}
				}
			}
		}
		return out
	}
	return nil
}

// receiver returns the name of a method's type.
func receiver(fields *ast.FieldList) *ast.Ident {
	for x := fields.List[0].Type; ; {
		switch e := x.(type) {
		case *ast.StarExpr:
			x = e.X
		case *ast.IndexExpr:
			x = e.X
		case *ast.IndexListExpr:
			x = e.X
		case *ast.Ident:
			return e
		default:
			return ast.NewIdent("_")
		}
	}
}

// TestLicense: each source file starts with the two lines that say whose it is.
func TestLicense(t *testing.T) {
	comments := map[string]string{".go": "//", ".sh": "#", ".c": "//", ".h": "//"}
	walk(t, func(name string) {
		mark, ok := comments[path.Ext(name)]
		if path.Base(name) == "Makefile" || name == ".ci/run" {
			mark, ok = "#", true
		}
		if !ok || strings.Contains(name, "testdata/") {
			return
		}
		license := "Apache-2.0"
		if path.Dir(name) == "bpf" && mark == "//" && path.Ext(name) != ".go" {
			license += " OR GPL-2.0-only" // the kernel lends its functions to programs under its own licence
		}
		want := mark + " Copyright The Fairlead Authors\n" + mark + " SPDX-License-Identifier: " + license + "\n"
		text := read(t, name)
		if head := string(text[:min(len(text), 400)]); !strings.Contains(head, want) {
			t.Errorf("%s does not start with\n%s", name, want)
		}
	})
	if license := read(t, "LICENSE"); !bytes.Contains(license, []byte("Apache License")) || len(license) < 10_000 {
		t.Error("LICENSE is not the Apache licence")
	}
}

// TestForbiddenWords: no notes to self in place of work, and nothing that only
// makes sense on the machine where it was written.
func TestForbiddenWords(t *testing.T) {
	words := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX|HA` + `CK)\b`)
	places := []string{root()}
	if home, err := os.UserHomeDir(); err == nil && len(home) > 5 {
		places = append(places, home+"/")
	}
	walk(t, func(name string) {
		text := read(t, name)
		if name == "go.sum" || name == "LICENSE" || isGenerated.Match(text) || bytes.IndexByte(text, 0) >= 0 {
			return
		}
		for i, line := range strings.Split(string(text), "\n") {
			if w := words.FindString(line); w != "" {
				t.Errorf("%s:%d: %s: do it, or write down why not", name, i+1, w)
			}
			for _, p := range places {
				if len(p) > 5 && strings.Contains(line, p) {
					t.Errorf("%s:%d: names %s, a path of this machine", name, i+1, p)
				}
			}
		}
	})
}

// TestSkips: a test is skipped only for want of root, or through testnet.Skip,
// which wants a reason and turns into a failure where the machine must have what
// is needed.
func TestSkips(t *testing.T) {
	fset := token.NewFileSet()
	for dir, files := range packages(t, fset, true) {
		if dir == "testnet" {
			continue
		}
		for _, f := range files {
			ast.Inspect(f.file, func(n ast.Node) bool {
				if branch, ok := n.(*ast.IfStmt); ok && asksForRoot(branch.Cond) {
					return false
				}
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || !slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); !ok || x.Name != "testnet" {
					t.Errorf("%s: skips by itself; use testnet.Skip", fset.Position(call.Pos()))
				}
				return true
			})
		}
	}
}

// asksForRoot reports whether a condition is about the user id.
func asksForRoot(cond ast.Expr) bool {
	found := false
	ast.Inspect(cond, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && (sel.Sel.Name == "Geteuid" || sel.Sel.Name == "Getuid") {
			found = true
		}
		return !found
	})
	return found
}

// list runs go list with a format on package patterns.
func list(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = root()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.Bytes())
	}
	return strings.Fields(string(out))
}

// imports returns what each package of the module imports directly, tests apart,
// by import path.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, line := range list(t, "-f", "{{.ImportPath}}={{range .Imports}}{{.}},{{end}}", "./...") {
		pkg, imps, _ := strings.Cut(line, "=")
		out[pkg] = strings.FieldsFunc(imps, func(r rune) bool { return r == ',' })
	}
	return out
}

// under reports whether an import path is one of the prefixes or below one.
func under(pkg string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return pkg == p || strings.HasPrefix(pkg, p+"/") })
}

// own is the import path of a package of the module.
func own(name string) string { return module + "/" + name }

// TestArrows holds the direction of the imports.
func TestArrows(t *testing.T) {
	all := imports(t)
	if _, ok := all[own("model")]; !ok {
		t.Fatal("no package model")
	}
	commands := []string{own("cmd"), own("examples")}
	standalone := []string{own("apiserver"), own("control"), own("lab"), own("pki")}
	for pkg, imps := range all {
		for _, imp := range imps {
			if pkg == own("model") && strings.Contains(imp, ".") {
				t.Errorf("model imports %s: it may import the standard library only", imp)
			}
			if under(imp, commands...) {
				t.Errorf("%s imports %s: nothing imports a command", pkg, imp)
			}
			if imp == own("testnet") {
				t.Errorf("%s imports testnet outside its tests", pkg)
			}
			if under(imp, "k8s.io/client-go") && !under(pkg, own("kube"), own("cmd")) && !under(pkg, standalone...) {
				t.Errorf("%s imports %s: of what an agent links, only kube does", pkg, imp)
			}
			if under(imp, "k8s.io/apiserver", "go.etcd.io/etcd") && !under(pkg, own("apiserver"), own("lab"), own("cmd/fairlead-server")) {
				t.Errorf("%s imports %s: only the standalone control plane does", pkg, imp)
			}
		}
	}
}

// TestLeanProgram: fairlead stays what a node can afford. The API server and
// etcd would cost every agent tens of megabytes, kubectl still more.
func TestLeanProgram(t *testing.T) {
	banned := []string{"k8s.io/apiserver", "k8s.io/kubectl", "go.etcd.io/etcd", "go.etcd.io/bbolt", "go.etcd.io/raft", "google.golang.org/grpc",
		own("apiserver"), own("control")}
	for _, dep := range list(t, "-deps", "./cmd/fairlead") {
		if under(dep, banned...) {
			t.Errorf("cmd/fairlead links %s", dep)
		}
	}
}

// TestShopIsPlain: the example program is built from the standard library
// alone, so that it can be copied out of here into any image.
func TestShopIsPlain(t *testing.T) {
	for _, dep := range list(t, "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./examples/shop/shop") {
		if dep != own("examples/shop/shop") {
			t.Errorf("examples/shop/shop links %s", dep)
		}
	}
}

// target matches the targets that the Makefile's help shows.
var target = regexp.MustCompile(`(?m)^([a-z-]+):.*?(## .*)?$`)

// TestMakefile: every target is declared phony, and explained.
func TestMakefile(t *testing.T) {
	text := string(read(t, "Makefile"))
	_, phony, _ := strings.Cut(text, ".PHONY:")
	phony, _, _ = strings.Cut(phony, "\n")
	explained := map[string]bool{}
	for _, m := range target.FindAllStringSubmatch(text, -1) {
		explained[m[1]] = explained[m[1]] || m[2] != ""
	}
	for name, ok := range explained {
		if !ok {
			t.Errorf("Makefile: target %s has no ## explanation", name)
		}
		if !slices.Contains(strings.Fields(phony), name) {
			t.Errorf("Makefile: target %s is not in .PHONY", name)
		}
	}
	for _, name := range []string{"help", "build", "demo", "demo-down", "test", "lint", "fmt", "generate", "clean"} {
		if !explained[name] {
			t.Errorf("Makefile: no target %s", name)
		}
	}
}

// makeCommand finds "make TARGET" where a document shows it as a command.
var makeCommand = regexp.MustCompile("(?m)(?:^\\s*(?:\\$ |sudo )?|`(?:sudo )?)make ([a-z][a-z-]*)")

// TestDocumentedCommands: what the documents tell people to type is there.
func TestDocumentedCommands(t *testing.T) {
	makefile := string(read(t, "Makefile"))
	walk(t, func(name string) {
		if path.Ext(name) != ".md" {
			return
		}
		for _, m := range makeCommand.FindAllStringSubmatch(string(read(t, name)), -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s tells to make %s, which the Makefile does not know", name, m[1])
			}
		}
	})
	readme := string(read(t, "README.md"))
	for _, want := range []string{"make demo", "make test"} {
		if !strings.Contains(readme, want) {
			t.Errorf("README.md does not show %q", want)
		}
	}
}

// link finds relative links of Markdown.
var link = regexp.MustCompile(`\]\(([^)#:\s]+)(?:#[^)]*)?\)`)

// TestLinks: a relative link in a document leads to something.
func TestLinks(t *testing.T) {
	walk(t, func(name string) {
		if path.Ext(name) != ".md" {
			return
		}
		for _, m := range link.FindAllStringSubmatch(string(read(t, name)), -1) {
			if _, err := os.Stat(filepath.Join(root(), path.Dir(name), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
	})
}

// TestScripts: shell scripts parse, are executable, and stop at the first error.
func TestScripts(t *testing.T) {
	seen := 0
	walk(t, func(name string) {
		if path.Ext(name) != ".sh" && name != ".ci/run" {
			return
		}
		seen++
		text := string(read(t, name))
		shell := strings.Fields(strings.TrimPrefix(strings.SplitN(text, "\n", 2)[0], "#!"))[0]
		if out, err := exec.Command(shell, "-n", filepath.Join(root(), name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if info, err := os.Stat(filepath.Join(root(), name)); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s is not executable (%v)", name, err)
		}
		if !regexp.MustCompile(`(?m)^set -e`).MatchString(text) {
			t.Errorf("%s does not stop at the first error", name)
		}
	})
	if seen == 0 {
		t.Error("no scripts found")
	}
}

// TestRulesFindFaults shows the rules a fault each, so that one that has gone
// blind is noticed.
func TestRulesFindFaults(t *testing.T) {
	const bad = `package p
type T struct{}
type (
	// U is explained.
	U int
	V int
)
func F() {}
func (T) M() {}
func (t) M() {}
// Group of two.
const (
	A = 1
	B = 2
)
var C, d = 1, 2
`
	f, err := parser.ParseFile(token.NewFileSet(), "bad.go", bad, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range f.Decls {
		for _, id := range unexplained(d) {
			got = append(got, id.Name)
		}
	}
	if want := "T V F M C"; strings.Join(got, " ") != want {
		t.Errorf("unexplained names %v, want %s", got, want)
	}
	for text, want := range map[string]string{
		"run `make demo` now": "demo", "```\nmake test  # all\n```": "test", "    $ make build": "build", "sudo make demo": "demo", "we make sure": "",
	} {
		m := makeCommand.FindStringSubmatch(text)
		if got := fmt.Sprint(append(m, "", "")[1]); got != want {
			t.Errorf("make command in %q: %q, want %q", text, got, want)
		}
	}
	if !under("a/b/c", "x", "a/b") || under("a/bc", "a/b") {
		t.Error("under is wrong")
	}
}
