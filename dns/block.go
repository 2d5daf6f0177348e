// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/rules"
)

// Block is what is done with the questions for names below some zones: a server is configured by one or more of them, of which the one with
// the longest zone that a name is in answers.
// A block is a value, which whoever reads a configuration writes down.
//
// A question is rewritten by Rules, and what comes of it is answered by the first of these that has an answer: the templates of Rules, its
// hosts, the cluster's zones, the upstreams.
type Block struct {
	// Zones are names with trailing dot, in lower case; "." is all names. At least one.
	Zones []string
	// Port is where questions are taken; 0: at all that the server has.
	Port uint16
	// Bind are the addresses where they are taken; empty: all that the server has. With one of [Options.Self] go the addresses that are not of those.
	Bind []netip.Addr
	// Cluster are the cluster's own zones; nil: none is answered from here.
	Cluster *Cluster
	// Rules are what is done beside.
	Rules rules.Rules
	// Forward are the upstreams, by name; names of none are refused.
	Forward []forward.Pool
	// Caching is how long their answers are kept.
	Caching forward.Caching
	// Log says which questions are logged; none: none.
	Log []Log
	// Errors logs the questions that are answered with SERVFAIL.
	Errors bool
	// Loadbalance has the addresses of an answer in another order each time; otherwise they are in the order they come in.
	Loadbalance bool
	// Autopath completes names by the search list of the pod that asks, so that it need not ask for each completion.
	Autopath bool
}

// Cluster are the zones of a cluster, answered from its Services, endpoints and pods.
type Cluster struct {
	// Zones are domains of the cluster, such as "cluster.local.", and reverse zones. Within a reverse zone the addresses of the cluster are
	// answered for; it may be much larger than the cluster's ranges, such as "in-addr.arpa.".
	Zones []string
	// Fallthrough are names below which what does not exist in the zones is left to the upstreams instead of being denied.
	Fallthrough []string
	// Pods says which names of pods there are.
	Pods PodNames
	// TTL of positive answers, whole seconds; 0 is not to be remembered at all. See [DefaultTTL].
	TTL time.Duration
	// EndpointPodNames names the endpoints of headless Services that have no hostname after their pods instead of their addresses.
	EndpointPodNames bool
	// IgnoreEmpty denies the names of Services that have no ready endpoint.
	IgnoreEmpty bool
	// Namespaces are the only ones whose names are answered; empty: all.
	Namespaces []string
}

// DefaultTTL is that of positive answers where nothing else is said: few seconds, because what a name stands for changes.
const DefaultTTL = 5 * time.Second

// Log says which questions are logged.
type Log struct {
	// Zone is the name below which they are.
	Zone string
	// Success, Denial (NXDOMAIN, or no record of the type) and Error are the kinds of answers that are logged.
	Success, Denial, Error bool
}

// String has a line for the zones and one for each setting that is in use, those of the rules as package rules has them. Equal blocks
// print the same.
func (b Block) String() string {
	var lines []string
	head := strings.Join(b.Zones, " ")
	if b.Port != 0 {
		head += fmt.Sprintf(" port %d", b.Port)
	}
	for _, a := range b.Bind {
		head += " on " + a.String()
	}
	lines = append(lines, head)
	if c := b.Cluster; c != nil {
		s := settings{"cluster " + strings.Join(c.Zones, " "), "pods " + c.Pods.String(), "ttl " + c.TTL.String()}
		s.names("fall through", c.Fallthrough)
		s.when(c.EndpointPodNames, "endpoints named after pods")
		s.when(c.IgnoreEmpty, "empty services denied")
		s.names("only namespaces", c.Namespaces)
		lines = append(lines, s.String())
	}
	for l := range strings.Lines(b.Rules.String()) {
		lines = append(lines, "  "+strings.TrimSuffix(l, "\n"))
	}
	for _, p := range b.Forward {
		lines = append(lines, poolString(p))
	}
	if c := b.Caching; len(b.Forward) > 0 {
		s := settings{"cache"}
		s.when(c.Size < 0, "off")
		s.when(c.Size > 0, fmt.Sprintf("%d octets", c.Size))
		s.when(c.MinTTL != 0 || c.MaxTTL != 0, fmt.Sprintf("answers %v to %v", c.MinTTL, c.MaxTTL))
		s.when(c.MinDenial != 0 || c.MaxDenial != 0, fmt.Sprintf("denials %v to %v", c.MinDenial, c.MaxDenial))
		s.when(c.ServeStale != 0, fmt.Sprintf("stale for %v", c.ServeStale))
		s.when(c.StaleAtOnce, "stale at once")
		s.when(c.MaxFailure != 0, fmt.Sprintf("failures up to %v", c.MaxFailure))
		s.when(c.PrefetchHits != 0, fmt.Sprintf("prefetch after %d at %d%%", c.PrefetchHits, c.PrefetchPercent))
		lines = append(lines, s.String())
	}
	for _, l := range b.Log {
		s := settings{"log " + l.Zone}
		s.when(l.Success, "success")
		s.when(l.Denial, "denial")
		s.when(l.Error, "error")
		lines = append(lines, s.String())
	}
	var s settings
	s.when(b.Errors, "log errors")
	s.when(b.Loadbalance, "shuffle addresses")
	s.when(b.Autopath, "complete by the pod's search list")
	if len(s) > 0 {
		lines = append(lines, s.String())
	}
	return strings.Join(lines, "\n") + "\n"
}

func poolString(p forward.Pool) string {
	to := "forward " + p.Zone + " to"
	for _, u := range p.Upstreams {
		switch {
		case !u.TLS:
			to += " " + u.Addr.String()
		case u.ServerName == "":
			to += " tls://" + u.Addr.String()
		default:
			to += " tls://" + u.Addr.String() + "%" + u.ServerName
		}
	}
	s := settings{to, [...]string{"random", "round_robin", "sequential"}[p.Policy]}
	s.names("except", p.Except)
	s.when(p.ForceTCP, "over tcp")
	s.when(p.Roots != nil, "own certificate authorities")
	s.when(p.MaxFails > 0, fmt.Sprintf("down after %d", p.MaxFails))
	s.when(p.MaxFails < 0, "never down")
	s.when(p.HealthCheck != 0 || p.HealthDomain != "", strings.TrimSpace(fmt.Sprintf("probe every %v %s", p.HealthCheck, p.HealthDomain)))
	s.when(p.Expire != 0, fmt.Sprintf("idle for %v", p.Expire))
	s.when(p.MaxConcurrent != 0, fmt.Sprintf("at most %d", p.MaxConcurrent))
	next := make([]string, len(p.NextOn))
	for i, r := range p.NextOn {
		next[i] = mdns.RcodeToString[r]
	}
	s.names("next on", next)
	return s.String()
}

// settings are the parts of a line of [Block.String].
type settings []string

func (s *settings) when(on bool, what string) {
	if on {
		*s = append(*s, what)
	}
}

func (s *settings) names(what string, names []string) {
	s.when(len(names) > 0, what+" "+strings.Join(names, " "))
}

func (s settings) String() string { return "  " + strings.Join(s, ", ") }

// String is how Kubernetes' configurations call it.
func (p PodNames) String() string { return [...]string{"disabled", "verified", "insecure"}[p] }
