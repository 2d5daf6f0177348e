// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"
)

// record is a text with parts to be filled in, in the language of package text/template. It is read by that package's parser and filled in here: the
// package itself finds methods by their names at run time, for which the linker keeps every method of a program, several megabytes of them.
type record struct {
	text string
	root *parse.ListNode
}

// errPlain is why a template is refused that is more than plain.
var errPlain = errors.New("a template may have fields, variables, conditions and the functions and, eq, index, len, ne, not, or, parseInt, print and printf")

// functions are those of package text/template, and CoreDNS's parseInt, with what they make of their arguments.
var functions = map[string]func(args []any) (any, error){
	"index":    index,
	"parseInt": parseInt,
	"print":    func(args []any) (any, error) { return fmt.Sprint(args...), nil },
	"printf": func(args []any) (any, error) {
		format, ok := first[string](args)
		if !ok {
			return nil, errors.New("printf wants a format")
		}
		return fmt.Sprintf(format, args[1:]...), nil
	},
	"len": func(args []any) (any, error) {
		if len(args) == 1 {
			switch v := args[0].(type) {
			case string:
				return len(v), nil
			case []string:
				return len(v), nil
			}
		}
		return nil, errors.New("len wants a text or a list")
	},
	"eq": func(args []any) (any, error) {
		if len(args) < 2 {
			return nil, errors.New("eq wants two values or more")
		}
		for _, a := range args[1:] {
			if same, err := equal(args[0], a); same || err != nil {
				return same, err
			}
		}
		return false, nil
	},
	"ne": func(args []any) (any, error) {
		if len(args) != 2 {
			return nil, errors.New("ne wants two values")
		}
		same, err := equal(args[0], args[1])
		return !same, err
	},
	"not": func(args []any) (any, error) {
		if len(args) != 1 {
			return nil, errors.New("not wants one value")
		}
		return !truth(args[0]), nil
	},
	"and": func(args []any) (any, error) { return decisive(args, false) },
	"or":  func(args []any) (any, error) { return decisive(args, true) },
}

// first is the first argument, if it is of a type.
func first[T any](args []any) (v T, ok bool) {
	if len(args) > 0 {
		v, ok = args[0].(T)
	}
	return v, ok
}

// decisive is the first value that decides an "and" or an "or", or the last one.
func decisive(args []any, by bool) (any, error) {
	if len(args) == 0 {
		return nil, errors.New("and and or want a value")
	}
	for _, a := range args[:len(args)-1] {
		if truth(a) == by {
			return a, nil
		}
	}
	return args[len(args)-1], nil
}

// missing is the value of a group that does not exist.
type missing struct{}

// equal compares values of one kind.
func equal(a, b any) (bool, error) {
	switch x := number(a).(type) {
	case string, bool, int64:
		switch y := number(b).(type) {
		case string, bool, int64:
			if fmt.Sprintf("%T", x) == fmt.Sprintf("%T", y) {
				return x == y, nil
			}
		}
	}
	return false, fmt.Errorf("%v and %v cannot be compared", a, b)
}

// number is an integer as one of 64 bits, and any other value as it is.
func number(v any) any {
	switch v := v.(type) {
	case int:
		return int64(v)
	case uint64:
		return int64(v)
	}
	return v
}

func index(args []any) (any, error) {
	if len(args) != 2 {
		return nil, errors.New("index wants a list and a place in it")
	}
	switch list := args[0].(type) {
	case []string:
		if i, ok := args[1].(int64); ok && 0 <= i && i < int64(len(list)) {
			return list[i], nil
		}
		return nil, fmt.Errorf("there is no %v in a list of %d", args[1], len(list))
	case map[string]string:
		if key, ok := args[1].(string); ok {
			return list[key], nil
		}
	}
	return nil, fmt.Errorf("index of %v by %v", args[0], args[1])
}

func parseInt(args []any) (any, error) {
	if len(args) == 3 {
		text, ok1 := args[0].(string)
		base, ok2 := args[1].(int64)
		bits, ok3 := args[2].(int64)
		if ok1 && ok2 && ok3 {
			return strconv.ParseUint(text, int(base), int(bits))
		}
	}
	return nil, errors.New("parseInt wants a text, a base and a number of bits")
}

// truth is what an "if" makes of a value.
func truth(v any) bool {
	switch v := number(v).(type) {
	case bool:
		return v
	case string:
		return v != ""
	case int64:
		return v != 0
	case missing:
		return false
	case []string:
		return len(v) > 0
	case map[string]string:
		return len(v) > 0
	}
	return v != nil
}

// newRecord reads a template, and refuses what is more than plain.
func newRecord(text string) (*record, error) {
	known := make(map[string]any, len(functions))
	for name := range functions {
		known[name] = true
	}
	trees, err := parse.Parse("record", text, "", "", known)
	if err != nil {
		return nil, fmt.Errorf("%w; %w", err, errPlain)
	}
	tree := trees["record"]
	if tree == nil || len(trees) != 1 || strings.TrimSpace(text) == "" {
		return nil, fmt.Errorf("template part %q: it is empty, or defines others", text)
	}
	return &record{text, tree.Root}, plain(tree.Root)
}

// plain says what in a template is more than plain: what depends on more of the question than its name, type and class, and what takes as long
// as it likes.
func plain(n parse.Node) error {
	all := func(nodes ...parse.Node) error {
		for _, n := range nodes {
			if err := plain(n); err != nil {
				return err
			}
		}
		return nil
	}
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		return all(n.Nodes...)
	case *parse.ActionNode:
		return plain(n.Pipe)
	case *parse.IfNode:
		return all(n.Pipe, n.List, n.ElseList)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			if err := all(c.Args...); err != nil {
				return err
			}
		}
		return nil
	case *parse.FieldNode:
		return plainField(n.Ident)
	case *parse.VariableNode:
		switch {
		case n.Ident[0] == "$" && len(n.Ident) > 1:
			return plainField(n.Ident[1:])
		case n.Ident[0] == "$" || len(n.Ident) > 1:
			return fmt.Errorf("template part %q: %w", n, errPlain)
		}
		return nil
	case *parse.IdentifierNode, *parse.TextNode, *parse.CommentNode, *parse.BoolNode, *parse.StringNode:
		return nil
	case *parse.NumberNode:
		if n.IsInt {
			return nil
		}
	}
	return fmt.Errorf("template part %q: %w", n, errPlain)
}

func plainField(names []string) error {
	if _, ok := (&data{}).field(names); !ok {
		return fmt.Errorf("template field .%s: a template may use .Name, .Zone, .Type, .Class, .Regex, .Match and .Group", strings.Join(names, "."))
	}
	return nil
}

// data is what a template is filled in with.
type data struct {
	Zone, Name, Regex, Class, Type string
	Match                          []string
	Group                          map[string]string
}

// field is one of them, or one of the groups.
func (d *data) field(names []string) (any, bool) {
	var v any
	switch names[0] {
	case "Zone":
		v = d.Zone
	case "Name":
		v = d.Name
	case "Regex":
		v = d.Regex
	case "Class":
		v = d.Class
	case "Type":
		v = d.Type
	case "Match":
		v = d.Match
	case "Group":
		if len(names) == 2 {
			if text, ok := d.Group[names[1]]; ok {
				return text, true
			}
			return missing{}, true
		}
		v = d.Group
	default:
		return nil, false
	}
	return v, len(names) == 1
}

// fill fills a record in.
func (r *record) fill(d *data) (string, error) {
	f := filling{data: d, variables: map[string]any{}}
	if err := f.list(r.root); err != nil {
		return "", err
	}
	return f.out.String(), nil
}

// filling is a record being filled in.
type filling struct {
	*data
	variables map[string]any
	out       strings.Builder
}

func (f *filling) list(l *parse.ListNode) error {
	if l == nil {
		return nil
	}
	for _, n := range l.Nodes {
		switch n := n.(type) {
		case *parse.TextNode:
			f.out.Write(n.Text)
		case *parse.ActionNode:
			v, err := f.pipe(n.Pipe)
			if err != nil {
				return err
			}
			if v == (missing{}) {
				return fmt.Errorf("%s: there is no such group", n)
			}
			if len(n.Pipe.Decl) == 0 {
				fmt.Fprint(&f.out, v)
			}
		case *parse.IfNode:
			v, err := f.pipe(n.Pipe)
			if err != nil {
				return err
			}
			branch := n.List
			if !truth(v) {
				branch = n.ElseList
			}
			if err := f.list(branch); err != nil {
				return err
			}
		}
	}
	return nil
}

// pipe is the value of the last command, each of which has that of the one before as its last argument.
func (f *filling) pipe(p *parse.PipeNode) (v any, err error) {
	for i, c := range p.Cmds {
		var args []any
		name := ""
		for j, n := range c.Args {
			if id, ok := n.(*parse.IdentifierNode); ok && j == 0 {
				name = id.Ident
				continue
			}
			a, err := f.value(n)
			if err != nil {
				return nil, err
			}
			args = append(args, a)
		}
		if i > 0 {
			args = append(args, v)
		}
		switch {
		case name != "" && name != "and" && name != "or" && name != "not" && slices.Contains(args, any(missing{})):
			return nil, fmt.Errorf("%s: there is no such group", c)
		case name != "":
			if v, err = functions[name](args); err != nil {
				return nil, fmt.Errorf("%s: %w", c, err)
			}
		case len(args) == 1:
			v = args[0]
		default:
			return nil, fmt.Errorf("%s: %v is no function", c, args[0])
		}
	}
	for _, d := range p.Decl {
		f.variables[d.Ident[0]] = v
	}
	return v, nil
}

func (f *filling) value(n parse.Node) (any, error) {
	switch n := n.(type) {
	case *parse.FieldNode:
		v, _ := f.field(n.Ident)
		return v, nil
	case *parse.VariableNode:
		if n.Ident[0] == "$" {
			v, _ := f.field(n.Ident[1:])
			return v, nil
		}
		return f.variables[n.Ident[0]], nil
	case *parse.PipeNode:
		return f.pipe(n)
	case *parse.StringNode:
		return n.Text, nil
	case *parse.BoolNode:
		return n.True, nil
	case *parse.NumberNode:
		return n.Int64, nil
	case *parse.IdentifierNode:
		return functions[n.Ident](nil)
	}
	return nil, fmt.Errorf("template part %q", n)
}
