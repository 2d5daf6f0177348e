// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import mdns "github.com/miekg/dns"

// Question is what a pod asked.
type Question struct {
	// Name is fully qualified, in presentation form and any case.
	Name string
	Type uint16
	// DNSSEC says that DO or CD is set: the client looks at proofs itself, and there is none for what is put together here.
	DNSSEC bool
	// Below says that the name is below a Service that exists. Then it may have been meant in full, as names of a StatefulSet's pods are, and
	// is not completed, lest someone else's name answers for it.
	Below bool
}

// Outcome is what there is at a name.
type Outcome struct {
	Rcode int
	// Records says that the answer section is not empty.
	Records bool
	// Ours says that the name is in the cluster's zones, where it exists for all types or for none. An alias that leads out of them (an
	// ExternalName Service) is not, as what is at its end is not.
	Ours bool
	// Suppressed says that nobody was asked, because [Clients.Suppress] said so.
	Suppressed bool
}

func (o Outcome) missing() bool { return o.Rcode == mdns.RcodeNameError }

func (o Outcome) failed() bool { return o.Rcode != mdns.RcodeSuccess && !o.missing() }

// Completion is the answer to a question that was completed.
type Completion[A any] struct {
	Outcome
	// Name is the name that answers, spelled as it was asked for.
	Name string
	// Answer is what there is at it, as ask returned it.
	Answer A
	// Saved is how many further names the resolver is spared.
	Saved int
}

// Complete goes on with a question of a pod whose answer is NXDOMAIN without any record, as the pod's resolver would: with the other search
// domains, then with the name alone. It returns false if the answer is to stay as it is. Otherwise the answer is that of the first name that is
// not NXDOMAIN: with Records, an alias (CNAME) from the name asked for to Name and then those records; without, only its response code, NODATA
// and failures included, with no alias. Alias and NODATA may be kept for as long as the NXDOMAIN may be, so that the authority section of NODATA
// is the NXDOMAIN's: another zone's SOA could have it kept for hours. Nothing of it is verified (AD), whatever the records were.
//
// ask is what there is at a name for a type, A or AAAA. It is called up to twice for each name and should give up, with SERVFAIL, when the time for
// the one question is up: resolvers wait 5 s.
//
// # Why the result is the same
//
// What decides in a resolver is, at each name it tries, the pair of answers to A and AAAA, or one of them if it wants only one family. Complete
// gives the resolver, at its first name, the very pair that it would have got at the first name where the pair is not twice NXDOMAIN. If it
// would have stopped there, it stops with the same addresses or the same error. If it would have gone on (glibc, Go and c-ares do on NODATA, and
// glibc on SERVFAIL, while musl stops), it goes on by itself over all names, and what it finds there has not changed. For that
//
//   - NODATA has no alias: glibc takes any record for a success, and would stop where it goes on otherwise;
//   - a failure is answered as that failure, not as the NXDOMAIN of the first name: with A failed and AAAA found, NXDOMAIN would say for
//     certain that there is no IPv4 address, where musl and Go would ask again;
//   - both types must take the same way: among names of the cluster they do, as a name exists for all types or none; at other names
//     before the last both types are asked for, and if only one says NXDOMAIN, as broken servers do, nothing is completed. Where AAAA is
//     suppressed it is NODATA at all names outside, which no search list has before names of the cluster: nothing better comes after it;
//   - when all is NXDOMAIN, nothing is: any other answer would end musl's search with another error.
//
// What the sources say (glibc 2.39 resolv/res_query.c, musl 1.1.24 and 1.2.5 src/network/lookup_name.c, Go 1.26 net/dnsclient_unix.go,
// c-ares 1.34 ares_getaddrinfo.c; each tries names with fewer dots than ndots last as they are):
//
//	           NXDOMAIN  NODATA    SERVFAIL            ends with
//	glibc      goes on   goes on   goes on             any record at either type
//	musl       goes on   stops     waits, then stops   an address; from 1.2.3: unless the other type is NXDOMAIN, by which it goes on
//	Go         goes on   goes on   retries, goes on    an address of either type
//	c-ares     goes on   goes on   stops               an address of either type
//
// Two limits remain. A program that asks in full for a name that does not exist, and which looks like a short name completed, gets the short
// name's answer; Short and Below keep that from the names that Kubernetes gives. And the two questions of one lookup may fall on either
// side of a change of the state; without completion they may, too.
func Complete[A any](p *Pod, q Question, ask func(name string, qtype uint16) (Outcome, A)) (c Completion[A], ok bool) {
	short, ok := p.Completes(q)
	if !ok {
		return c, false
	}
	other := mdns.TypeA
	if q.Type == mdns.TypeA {
		other = mdns.TypeAAAA
	}
	further := p.search.suffixes[1:]
	for i := 0; i <= len(further); i++ {
		name, last := short, i == len(further)
		if last {
			name += "."
		} else {
			name += further[i]
		}
		o, a := ask(name, q.Type)
		if !last && !o.Ours && !o.Suppressed && !o.failed() {
			if b, _ := ask(name, other); !b.Suppressed && b.missing() != o.missing() {
				return c, false
			}
		}
		if !o.missing() {
			return Completion[A]{Outcome: o, Name: name, Answer: a, Saved: i + 1}, true
		}
	}
	return c, false
}

// Completes reports whether a question of the pod is one that [Complete] goes on with, should its answer be NXDOMAIN, and the short name.
func (p *Pod) Completes(q Question) (short string, ok bool) {
	if q.Type != mdns.TypeA && q.Type != mdns.TypeAAAA || q.DNSSEC || q.Below {
		return "", false
	}
	return p.Short(q.Name)
}
