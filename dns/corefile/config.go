// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/dns"
)

// Fate is what becomes of a directive or an option.
type Fate uint8

// The fates.
const (
	// Honoured means that clients cannot tell the difference.
	Honoured Fate = iota
	// Differently means that what it is for is done in another way.
	Differently
	// NoEffect means that it is about something that is not there, or that needs no configuration, here.
	NoEffect
	// Refused means that the configuration cannot be used while it is in it.
	Refused
)

// String is how [Explain] says it.
func (f Fate) String() string {
	return [...]string{"honoured", "honoured differently", "no effect", "refused"}[f]
}

// Note is what became of one line.
type Note struct {
	// File and Line are where it stands, Text what it says, without the lines of a block.
	File string
	Line int
	Text string
	Fate Fate
	// Why says in what way it is honoured differently, why it has no effect, or why it is refused and what to do instead.
	Why string
}

// String is one line: file, line, what is there, its fate and the reason.
func (n Note) String() string {
	s := fmt.Sprintf("%s:%d: %s: %v", n.File, n.Line, n.Text, n.Fate)
	if n.Why != "" {
		s += ": " + n.Why
	}
	return s
}

// Config is a configuration that was read.
type Config struct {
	// Blocks are the server blocks in their order; not to be used if there was an error.
	Blocks []dns.Block
	// Notes say what became of each line, by file and line.
	Notes []Note

	reads []read // what was read, and what was looked for
}

// String is the blocks as they print themselves.
func (c *Config) String() string {
	var b strings.Builder
	for _, block := range c.Blocks {
		b.WriteString(block.String())
	}
	return b.String()
}

// Explain says what became of each line of a configuration, whether it can be used or not, a line each.
func Explain(c *Config) string {
	var b strings.Builder
	for _, n := range c.Notes {
		fmt.Fprintln(&b, n)
	}
	return b.String()
}

// Problems are all the reasons why a configuration cannot be used. At least one.
type Problems []Note

// Error has a line for each.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, n := range p {
		lines[i] = fmt.Sprintf("%s:%d: %s: %s", n.File, n.Line, n.Text, n.Why)
	}
	return strings.Join(lines, "\n")
}

// finish puts the notes in order and returns the refusals among them.
func (c *Config) finish() error {
	order := map[string]int{}
	for i, r := range slices.Backward(c.reads) {
		order[r.name] = i
	}
	slices.SortStableFunc(c.Notes, func(a, b Note) int {
		return cmp.Or(order[a.File]-order[b.File], a.Line-b.Line)
	})
	// A snippet that is imported twice would say everything twice.
	seen := map[Note]bool{}
	c.Notes = slices.DeleteFunc(c.Notes, func(n Note) bool {
		defer func() { seen[n] = true }()
		return seen[n]
	})
	var p Problems
	for _, n := range c.Notes {
		if n.Fate == Refused {
			p = append(p, n)
		}
	}
	if len(p) == 0 {
		return nil
	}
	return p
}
