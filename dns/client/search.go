// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"slices"
	"strings"

	"github.com/fairlead/fairlead/model"
)

// What every resolver takes of a search list: glibc before 2.26 and kubelets before 1.28 cut it at 6 domains and 256 octets, musl ignores one of
// 256 octets or more. A pod with a longer list completes its names by itself.
const (
	maxSearches     = 6
	maxSearchOctets = 255
	// maxName is the longest name in presentation form, with its trailing dot. What gets longer with a suffix, resolvers treat in several ways.
	maxName = 254
)

// search is what a pod's resolver appends to names, if it is sure.
type search struct {
	// suffixes are the search domains with dots at both ends, in lower case; empty if names of this pod are not completed.
	suffixes []string
	ndots    int
	// outside says that some of them are not the cluster's.
	outside bool
}

// newSearch is the search list that a kubelet gives a pod. It is empty unless every resolver would go by it in the same way, and it has the
// cluster's domains before all others, the first of which [Complete] rests on.
func newSearch(p *model.Pod, domain string, node []string) search {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	r := p.Resolver
	if r == nil {
		r = &model.Resolver{Ndots: -1}
	}
	s, list := search{ndots: 1}, []string(nil)
	switch r.Policy {
	case model.DNSDefault:
		return search{} // the node's, which this server does not answer for
	case model.DNSClusterFirst:
		s.ndots = 5
		list = append(list, p.Name.Namespace+".svc."+domain, "svc."+domain, domain)
		list = append(list, node...)
	}
	if r.Ndots >= 0 {
		s.ndots = r.Ndots
	}
	octets := -1
	for _, d := range slices.Concat(list, r.Searches) {
		d = strings.ToLower(strings.TrimSuffix(d, "."))
		suffix := "." + d + "."
		if slices.Contains(s.suffixes, suffix) {
			continue
		}
		inside := strings.HasSuffix(suffix, "."+domain+".")
		if !plain(d) || s.outside && inside {
			return search{} // the root too: some resolvers leave it out
		}
		s.suffixes = append(s.suffixes, suffix)
		octets, s.outside = octets+1+len(d), !inside
	}
	if len(s.suffixes) == 0 || len(s.suffixes) > maxSearches || octets > maxSearchOctets || !strings.HasSuffix(s.suffixes[0], "."+domain+".") {
		return search{}
	}
	return s
}

// plain reports whether a name without trailing dot has only letters, digits, dashes and underscores in its labels, so that its text says
// where it has dots.
func plain(name string) bool {
	last := byte('.')
	for i := range len(name) {
		c := name[i]
		if c == '.' && last == '.' {
			return false
		}
		if c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
		last = c
	}
	return last != '.'
}

// Short is the name that the pod's resolver was given, if the name asked for looks like its first try: with the first search domain appended,
// to a name that has some dots, but too few to be tried as it is. Names of one label are left out: a Service's full name in the pod's own
// namespace looks like one, and is more often asked for in full than completed in vain. The name is fully qualified, in presentation form and
// any case.
func (p *Pod) Short(name string) (short string, ok bool) {
	if p == nil || len(p.search.suffixes) == 0 || len(name) > maxName {
		return "", false
	}
	n := len(name) - len(p.search.suffixes[0])
	if n <= 0 || !strings.EqualFold(name[n:], p.search.suffixes[0]) {
		return "", false
	}
	short = name[:n]
	dots := strings.Count(short, ".")
	if dots == 0 || dots >= p.search.ndots || !plain(short) || endsIn(short, "onion") {
		return "", false // Go's resolver never asks for .onion
	}
	for _, s := range p.search.suffixes {
		if n+len(s) > maxName {
			return "", false
		}
	}
	return short, true
}

func endsIn(name, label string) bool {
	n := len(name) - len(label)
	return n > 0 && name[n-1] == '.' && strings.EqualFold(name[n:], label)
}
