// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"strconv"
	"strings"
	"testing"
	tmpl "text/template"
)

var filledIn = data{Zone: "example.", Name: "a-10-1.example.", Regex: "^a-(\\d+)-(?P<last>\\d+)", Class: "IN", Type: "A",
	Match: []string{"a-10-1", "10", "1"}, Group: map[string]string{"0": "a-10-1", "1": "10", "2": "1", "last": "1"}}

// templates are what a plain template may be made of.
var templates = []string{
	"text", "{{ .Name }} 60 IN A 192.0.2.{{ .Group.last }}", "{{ index .Match 1 }}.{{ index .Group \"last\" }}", "{{.Zone}}{{- /* comment */ -}} {{ .Class }}",
	"{{ $x := index .Match 2 }}{{ $x }}{{ $x = .Name }}{{ $x }}", "{{ parseInt .Group.last 10 8 }}", "{{ .Group.last | printf \"%s-%s\" .Type }}",
	"{{ if eq .Type \"A\" }}four{{ else }}six{{ end }}", "{{ if ne .Type \"A\" }}six{{ else if .Group.none }}some{{ else }}none{{ end }}",
	"{{ if and .Name (not .Group.none) }}yes{{ end }}", "{{ or .Group.none .Name }}", "{{ len .Match }}{{ len .Name }}", "{{ print .Type 1 }}", "{{ eq .Type \"AAAA\" \"A\" }}",
	"{{ $.Name }}", "{{ true }}{{ \"quoted\" }}{{ 7 }}", "{{ printf \"%d\" 12 }}", "{{ .Match }}{{ .Group }}", "{{ printf \"%03d\" (parseInt (index .Match 1) 10 32) }}",
	"{{ if .Match }}{{ with_ }}{{ end }}", "{{ index .Match 9 }}", "{{ parseInt .Name 10 8 }}", "{{ .Name 1 }}", "{{ eq }}", "{{ index }}", "{{ printf 1 }}", "{{ not }}", "{{ if }}",
	"{{ .Group.none }}", "{{ 1.5 }}",
}

// theirs is a template as package text/template fills it in.
func theirs(text string) (string, error) {
	t, err := tmpl.New("record").Funcs(tmpl.FuncMap{"parseInt": strconv.ParseUint}).Parse(text)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	err = t.Execute(&out, &filledIn)
	return out.String(), err
}

// FuzzRecord: what is accepted, and what package text/template can fill in too, is filled in as that does it.
func FuzzRecord(f *testing.F) {
	for _, t := range templates {
		f.Add(t)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := newRecord(text)
		if err != nil {
			return
		}
		got, err := r.fill(&filledIn)
		want, theirErr := theirs(text)
		if strings.Contains(want, "%!") {
			return // wrong arguments of printf: the types have other names
		}
		if err == nil && theirErr == nil && got != want {
			t.Fatalf("%q is filled in as %q, by package text/template as %q", text, got, want)
		}
	})
}

// What is plain is accepted, and what is not is refused or cannot be filled in.
func TestRecord(t *testing.T) {
	for i, text := range templates {
		r, err := newRecord(text)
		got := ""
		if err == nil {
			got, err = r.fill(&filledIn)
		}
		want, theirErr := theirs(text)
		if plain := i < 19; plain && (err != nil || theirErr != nil || got != want) {
			t.Errorf("%q is filled in as %q, %v; by package text/template as %q, %v", text, got, err, want, theirErr)
		} else if !plain && err == nil {
			t.Errorf("%q is filled in as %q", text, got)
		}
	}
}
