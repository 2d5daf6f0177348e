// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/model"
)

// Completed reports whether a name in wire form, in lower case, with so many labels, may be one that the pod's resolver has completed with its first
// search domain. It is a quick look before [Pod.Completes], which knows for sure; where this says no, so does that.
func (p *Pod) Completed(name []byte, labels int) bool {
	s := &p.search
	if len(s.suffixes) == 0 {
		return false
	}
	// The suffix has dots at both ends, so it has as many octets as its wire form but for the root's.
	suffix := s.suffixes[0]
	before := labels - (strings.Count(suffix, ".") - 1)
	if before < 2 || before > s.ndots {
		return false
	}
	at := len(name) - len(suffix)
	return at > 0 && sameLabels(name[at:], suffix)
}

// ShortOf is [Pod.Short] for a name in wire form of usual labels, in lower case: how many octets of it are the short name's.
func (p *Pod) ShortOf(name []byte, labels int) (octets int, ok bool) {
	if p == nil || !p.Completed(name, labels) {
		return 0, false
	}
	octets = len(name) - len(p.search.suffixes[0])
	if short := name[:octets]; bytes.HasSuffix(short, []byte("\x05onion")) {
		return 0, false
	}
	for _, s := range p.search.suffixes {
		if octets-1+len(s) > maxName {
			return 0, false
		}
	}
	return octets, true
}

// SearchesOutside reports whether [Complete] goes on with names that are not the cluster's before the last one. Of those both types are asked for.
func (p *Pod) SearchesOutside() bool { return p.search.outside }

// AppendTries appends what follows the short name in the i-th of the names that [Complete] goes on with, in wire form, and says whether it is the last one.
func (p *Pod) AppendTries(to []byte, i int) (name []byte, last bool) {
	further := p.search.suffixes[1:]
	if i >= len(further) {
		return append(to, 0), true
	}
	for label := range strings.SplitSeq(strings.Trim(further[i], "."), ".") {
		to = append(append(to, byte(len(label))), label...)
	}
	return append(to, 0), false
}

// Completed is [Pod.Completed] of any of this node's pods.
func (t *Table) Completed(name []byte, labels int) bool {
	return slices.ContainsFunc(t.searching, func(p *Pod) bool { return p.Completed(name, labels) })
}

// searching is one of the pods for each first search domain that some have: the one that completes names with the most dots.
func searching(pods map[*model.Pod]*Pod) (out []*Pod) {
	most := make(map[string]*Pod)
	for _, p := range pods {
		if len(p.search.suffixes) == 0 {
			continue
		}
		first := p.search.suffixes[0]
		if other := most[first]; other == nil || other.search.ndots < p.search.ndots {
			most[first] = p
		}
	}
	return slices.Collect(maps.Values(most))
}

// sameLabels compares labels in wire form with as many octets of text, which has dots at both ends.
func sameLabels(wire []byte, text string) bool {
	i := 0
	for wire[i] != 0 {
		n := int(wire[i])
		if i+1+n >= len(wire) || text[i] != '.' || string(wire[i+1:i+1+n]) != text[i+1:i+1+n] {
			return false
		}
		i += 1 + n
	}
	return i == len(text)-1
}
