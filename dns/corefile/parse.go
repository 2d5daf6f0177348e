// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/coredns/caddy/caddyfile"

	"github.com/fairlead/fairlead/dns"
)

// token is a word of a Corefile, with the file and the line it stands in.
type token = caddyfile.Token

// server is a server block before it is understood: what it is for, and its directives with what belongs to each.
type server struct {
	keys       []token
	directives [][]token
}

// These bound what a Corefile may grow to by importing: how often it does, and how many words come of it.
const (
	maxImports  = 1000
	maxImported = 1 << 17
)

// parser takes a Corefile apart into server blocks. It follows the parser of CoreDNS, github.com/coredns/caddy/caddyfile, whose words and
// lines these are; that one reads variables and files itself, and stops at the first error.
type parser struct {
	env      Env
	config   *Config
	file     string
	tokens   []token
	at       int
	snippets map[string][]token
	imports  int
	imported int
	stopped  bool // by an error of the syntax
}

// lex takes a text apart into words.
func lex(file string, text []byte) []token {
	d := caddyfile.NewDispenser(file, bytes.NewReader(text))
	var out []token
	for d.Next() {
		out = append(out, token{File: file, Line: d.Line(), Text: d.Val()})
	}
	return out
}

// Parse reads a Corefile. If its error is not nil, it is [Problems], and the configuration has all notes, but is not to be used.
func Parse(file string, text []byte, env Env) (*Config, error) {
	p := &parser{env: env.withDefaults(), config: &Config{reads: []read{{file, string(text)}}}, file: file, tokens: lex(file, text), snippets: map[string][]token{}}
	servers := p.servers()
	b := &builder{parser: p}
	for _, s := range servers {
		b.server(s)
	}
	b.servicePort(servers)
	whole := token{File: file, Line: 1, Text: "Corefile"}
	if slices.ContainsFunc(p.config.Notes, func(n Note) bool { return n.Fate == Refused }) {
		return p.config, p.config.finish()
	}
	if len(p.config.Blocks) == 0 {
		p.refuse(whole, "there is no server block in it")
	} else if err := dns.Check(p.config.Blocks); err != nil {
		p.refuse(whole, "%v", err)
	}
	return p.config, p.config.finish()
}

func (p *parser) note(t token, what string, fate Fate, why string) {
	p.config.Notes = append(p.config.Notes, Note{File: t.File, Line: t.Line, Text: what, Fate: fate, Why: why})
}

func (p *parser) refuse(t token, format string, args ...any) {
	p.note(t, t.Text, Refused, fmt.Sprintf(format, args...))
}

// stop refuses what cannot be read on from.
func (p *parser) stop(t token, format string, args ...any) {
	p.refuse(t, "syntax: "+format, args...)
	p.stopped = true
}

func (p *parser) more() bool { return !p.stopped && p.at < len(p.tokens) }

func (p *parser) token() token {
	if p.at < len(p.tokens) {
		return p.tokens[p.at]
	}
	if n := len(p.tokens); n > 0 {
		t := p.tokens[n-1]
		t.Text = "end of file"
		return t
	}
	return token{File: p.file, Line: 1, Text: "end of file"}
}

// first reports whether a token is the first of its line.
func (p *parser) first() bool {
	if p.at == 0 || p.at >= len(p.tokens) {
		return p.at == 0
	}
	before, t := p.tokens[p.at-1], p.tokens[p.at]
	return before.File != t.File || before.Line+strings.Count(before.Text, "\n") < t.Line
}

func (p *parser) servers() []server {
	var out []server
	for p.more() {
		keys := p.keys()
		if p.stopped {
			break
		}
		if name, ok := snippet(keys); ok {
			p.snippet(name, keys[0])
			continue
		}
		s := server{keys: keys}
		if p.more() {
			braced := p.token().Text == "{"
			if braced {
				p.at++
			}
			p.directives(&s)
			if closed := p.more() && p.token().Text == "}"; closed {
				p.at++
			} else if braced && !p.stopped {
				p.stop(p.token(), "expected } at the end of the server block")
			}
		}
		if len(s.keys) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// keys reads what stands before the { of a server block.
func (p *parser) keys() []token {
	var keys []token
	another := false
	for p.more() {
		t := p.token()
		t.Text = p.expand(t)
		if t.Text == "import" && p.first() {
			p.doImport()
			if p.stopped || p.at >= len(p.tokens) {
				break
			}
			continue
		}
		if t.Text == "{" {
			if another {
				p.stop(t, "expected another zone after the comma")
			}
			return keys
		}
		if t.Text != "" {
			t.Text, another = strings.CutSuffix(t.Text, ",")
			keys = append(keys, t)
		}
		p.at++
		if p.at >= len(p.tokens) {
			if another {
				p.stop(p.token(), "expected another zone after the comma")
			}
			return keys
		}
		if !another && p.first() {
			return keys
		}
	}
	return keys
}

// snippet reports whether a block is one to import, and its name.
func snippet(keys []token) (string, bool) {
	if len(keys) != 1 {
		return "", false
	}
	name, ok := strings.CutPrefix(keys[0].Text, "(")
	if !ok || !strings.HasSuffix(name, ")") {
		return "", false
	}
	return strings.TrimSuffix(name, ")"), true
}

func (p *parser) snippet(name string, key token) {
	if _, ok := p.snippets[name]; ok {
		p.stop(key, "the snippet is there twice")
		return
	}
	if !p.more() || p.token().Text != "{" {
		p.stop(p.token(), "expected { after the name of a snippet")
		return
	}
	p.at++
	var body []token
	for depth := 1; p.more(); p.at++ {
		switch p.token().Text {
		case "{":
			depth++
		case "}":
			depth--
		}
		if depth == 0 {
			p.at++
			p.snippets[name] = body
			p.note(key, "snippet "+key.Text, Honoured, "")
			return
		}
		body = append(body, p.token())
	}
	p.stop(p.token(), "expected } at the end of snippet %s", key.Text)
}

// directives reads up to the } of the server block, which it leaves.
func (p *parser) directives(s *server) {
	for p.more() && p.token().Text != "}" {
		if p.token().Text == "import" {
			p.doImport()
			continue
		}
		s.directives = append(s.directives, p.directive())
	}
}

// directive reads a directive, what stands on its line and the block behind it.
func (p *parser) directive() []token {
	name := p.token()
	name.Text = p.expand(name)
	out := []token{name}
	depth := 0
	for p.at++; p.more(); p.at++ {
		t := p.token()
		switch {
		case t.Text == "{":
			depth++
		case p.first() && depth == 0:
			return out
		case t.Text == "}" && depth > 0:
			depth--
		case t.Text == "}":
			p.stop(t, "} without a {")
			return out
		case t.Text == "import" && p.first():
			p.doImport()
			p.at--
			continue
		}
		t.Text = p.expand(t)
		out = append(out, t)
	}
	if depth > 0 && !p.stopped {
		p.stop(p.token(), "expected } at the end of %s", name.Text)
	}
	return out
}

// doImport puts a snippet or the words of files in the place of the two words that import them.
func (p *parser) doImport() {
	at := p.token()
	start := p.at
	p.at++
	if p.at >= len(p.tokens) || p.first() {
		p.stop(at, "expected what to import")
		return
	}
	what := p.expand(p.token())
	p.at++
	if p.at < len(p.tokens) && !p.first() {
		p.stop(at, "expected one snippet, file or pattern of files to import")
		return
	}
	if what == "" {
		p.stop(at, "expected what to import")
		return
	}
	var body []token
	if p.imports++; p.imports > maxImports {
		p.stop(at, "more than %d imports; does one import itself?", maxImports)
		return
	}
	if s, ok := p.snippets[what]; ok && s != nil {
		body = s
	} else {
		body, ok = p.files(at, locate(what, at.File))
		if !ok {
			return
		}
	}
	if p.imported += len(body); p.imported > maxImported {
		p.stop(at, "more than %d words are imported", maxImported)
		return
	}
	if len(body) > 0 {
		p.note(at, "import "+what, Honoured, "")
	} else {
		p.note(at, "import "+what, NoEffect, "until there is something to import")
	}
	// What was read is dropped, but for the word before, which tells whether the next one begins a line.
	before := p.tokens[max(start-1, 0):start]
	p.tokens = slices.Concat(before, body, p.tokens[p.at:])
	p.at = len(before)
}

// files are the words of all files that a pattern fits.
func (p *parser) files(at token, pattern string) ([]token, bool) {
	if strings.Count(pattern, "*") > 1 || strings.Count(pattern, "?") > 1 || strings.Contains(pattern, "[") && strings.Contains(pattern, "]") {
		p.stop(at, "%s: a pattern of files may have one * and one ?", pattern)
		return nil, false
	}
	names := []string{pattern}
	if wild := strings.ContainsAny(pattern, "*?[]"); wild {
		var err error
		if names, err = p.glob(pattern); err != nil {
			p.stop(at, "%v", err)
			return nil, false
		}
		slices.Sort(names)
	}
	var body []token
	for _, name := range names {
		text, err := p.read(name)
		if err != nil {
			p.stop(at, "%v", err)
			return nil, false
		}
		body = append(body, lex(name, text)...)
	}
	return body, true
}

// expand puts values in the place of {$NAME} and {%NAME%}.
func (p *parser) expand(t token) string {
	s := t.Text
	for _, form := range [][2]string{{"{%", "%}"}, {"{$", "}"}} {
		var b strings.Builder
		for {
			before, rest, ok := strings.Cut(s, form[0])
			name, after, closed := strings.Cut(rest, form[1])
			if !ok || !closed || strings.HasPrefix(rest, "}") {
				break
			}
			value, set := p.env.LookupEnv(name)
			if !set {
				p.refuse(t, "the variable %s is not set where Fairlead runs; set it, or write its value down", name)
			}
			b.WriteString(before + value)
			s = after
		}
		s = b.String() + s
	}
	return s
}
