// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"slices"
	"strings"

	mdns "github.com/miekg/dns"
)

// The resolvers of this file are models of the real ones, as far as it matters which names are asked for and what comes out. Each says what of
// its source it follows.

// reply is an answer as a resolver sees it.
type reply struct {
	rcode   int
	records bool     // the answer section is not empty
	addrs   []string // of the type asked for, at the end of the aliases
}

func (r reply) failed() bool { return r.rcode != mdns.RcodeSuccess && r.rcode != mdns.RcodeNameError }

// result is what a program gets: addresses, or a word for the error.
type result struct {
	addrs []string
	err   string
}

func found(replies ...reply) (out []string) {
	for _, r := range replies {
		if r.rcode == mdns.RcodeSuccess {
			out = append(out, r.addrs...)
		}
	}
	return out
}

// lookup is a question of a program: the addresses of a name, of one type or of both.
type lookup struct {
	name  string // without trailing dot
	types []uint16
	list  []string // search domains, without dots at the ends
	ndots int
	ask   func(name string, qtype uint16) reply
}

func (l lookup) asked(name string) (out []reply) {
	for _, t := range l.types {
		out = append(out, l.ask(name+".", t))
	}
	return out
}

// names are what is tried, in order, by those who try the name itself first if it has dots enough, and last otherwise.
func (l lookup) names() (out []string) {
	for _, d := range l.list {
		out = append(out, l.name+"."+d)
	}
	if strings.Count(l.name, ".") >= l.ndots {
		return append([]string{l.name}, out...)
	}
	return append(out, l.name)
}

// glibc is glibc 2.39: __res_context_search and __res_context_query in resolv/res_query.c, and how send_dg in res_send.c goes on to the next server
// when one says SERVFAIL, NOTIMP or REFUSED, but keeps the other type's answer if it has that.
func glibc(l lookup) result {
	query := func(name string) (out result, rcode int) {
		replies := l.asked(name)
		good := slices.DeleteFunc(slices.Clone(replies), reply.failed)
		if len(good) == 0 {
			return result{err: "again"}, replies[len(replies)-1].rcode
		}
		hp, hp2 := good[0], good[len(good)-1]
		if ok := func(r reply) bool { return r.rcode == mdns.RcodeSuccess && r.records }; ok(hp) || ok(hp2) {
			if out.addrs = found(good...); len(out.addrs) == 0 {
				out.err = "found without addresses"
			}
			return out, mdns.RcodeSuccess
		}
		rcode = hp.rcode
		if rcode == mdns.RcodeSuccess {
			rcode = hp2.rcode
		}
		if rcode == mdns.RcodeNameError {
			return result{err: "not found"}, rcode
		}
		return result{err: "no data"}, rcode
	}
	stops := func(r result) bool { return r.err == "" || r.err == "found without addresses" }
	var first *result
	asIs := strings.Count(l.name, ".") >= l.ndots
	if asIs {
		r, _ := query(l.name)
		if stops(r) {
			return r
		}
		first = &r
	}
	last, noData, servfail := result{err: "not found"}, false, false
search:
	for _, d := range l.list {
		r, rcode := query(l.name + "." + d)
		if stops(r) {
			return r
		}
		switch last = r; r.err {
		case "no data":
			noData = true
		case "not found":
		default:
			if rcode != mdns.RcodeServerFailure {
				break search
			}
			servfail = true
		}
	}
	if !asIs {
		r, _ := query(l.name)
		if stops(r) {
			return r
		}
		last = r
	}
	switch {
	case first != nil:
		return *first
	case noData:
		return result{err: "no data"}
	case servfail:
		return result{err: "again"}
	}
	return last
}

// muslSearch is name_from_dns_search of musl's src/network/lookup_name.c: with dots enough there is no search at all. each is name_from_dns: a
// result, or nothing if the next name is to be tried. res_msend.c takes SERVFAIL and REFUSED for no answers at all, and waits for better ones until
// its time is up.
func muslSearch(l lookup, each func([]reply) *result) result {
	names := l.names()
	if strings.Count(l.name, ".") >= l.ndots {
		names = []string{l.name}
	}
	for _, n := range names {
		if r := each(l.asked(n)); r != nil {
			return *r
		}
	}
	return result{err: "no name"}
}

// musl11 is musl up to 1.2.2: addresses of either type count, else the response code of the first question.
func musl11(l lookup) result {
	return muslSearch(l, func(replies []reply) *result {
		var addrs []string
		for _, r := range replies {
			addrs = append(addrs, r.addrs...) // whatever the response code
		}
		switch {
		case len(addrs) > 0:
			return &result{addrs: addrs}
		case replies[0].failed():
			return &result{err: "again"}
		case replies[0].rcode == mdns.RcodeSuccess:
			return &result{err: "no name"}
		}
		return nil
	})
}

// musl12 is musl from 1.2.3 on: each answer's response code is looked at before any address.
func musl12(l lookup) result {
	return muslSearch(l, func(replies []reply) *result {
		for _, r := range replies {
			switch {
			case r.failed():
				return &result{err: "again"}
			case r.rcode == mdns.RcodeNameError:
				return nil
			}
		}
		if addrs := found(replies...); len(addrs) > 0 {
			return &result{addrs: addrs}
		}
		return &result{err: "no name"}
	})
}

// golang is goLookupIPCNAMEOrder of Go 1.26's net/dnsclient_unix.go, whose error is the name's own or, without one, the first.
func golang(l lookup) (out result) {
	for _, n := range l.names() {
		for _, r := range l.asked(n) {
			err := ""
			switch {
			case r.failed():
				err = "misbehaving"
			case r.rcode == mdns.RcodeNameError || len(r.addrs) == 0:
				err = "no such host"
			}
			if err != "" && (out.err == "" || n == l.name) {
				out.err = err
			}
			if err == "" {
				out.addrs = append(out.addrs, r.addrs...)
			}
		}
		if len(out.addrs) > 0 {
			return result{addrs: out.addrs}
		}
	}
	return out
}

// cares is host_callback of c-ares 1.34's ares_getaddrinfo.c: without an address, the status of the answer that came last decides.
func cares(l lookup) result {
	noData := false
	status := ""
	for _, n := range l.names() {
		replies := l.asked(n)
		if addrs := found(replies...); len(addrs) > 0 {
			return result{addrs: addrs}
		}
		switch last := replies[len(replies)-1]; {
		case last.failed():
			return result{err: mdns.RcodeToString[last.rcode]}
		case last.rcode == mdns.RcodeNameError:
			status = "not found"
		default:
			noData = true
		}
		if noData {
			status = "no data"
		}
	}
	return result{err: status}
}
