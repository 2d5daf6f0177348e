// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"slices"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

// TestCompleted: the quick look says no to nothing that is completed, in random names of the labels that matter, and yes to little else.
func TestCompleted(t *testing.T) {
	r := random(t)
	pods := []*Pod{newTestPod(nil), newTestPod(&model.Resolver{Ndots: 2}), newTestPod(&model.Resolver{Ndots: 0}), newTestPod(&model.Resolver{Policy: model.DNSDefault}),
		newTestPod(&model.Resolver{Policy: model.DNSNone, Ndots: 3, Searches: []string{"cluster.local"}})}
	words := []string{"shop", "svc", "cluster", "local", "a", "www.example.com", "shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "xshop", "onion",
		strings.Repeat("a", 63), `b\.shop`, `shop\.svc.cluster.local`}
	both, quick := 0, 0
	for range 50_000 {
		var parts []string
		for range 1 + r.IntN(4) {
			parts = append(parts, words[r.IntN(len(words))])
		}
		name := mdns.Fqdn(strings.Join(parts, "."))
		wire := make([]byte, 300)
		n, err := mdns.PackDomainName(name, wire, 0, nil, false)
		if err != nil {
			continue
		}
		for _, p := range pods {
			short, sure := p.Completes(Question{Name: name, Type: mdns.TypeA})
			if !strings.Contains(name, `\`) {
				if octets, ok := p.ShortOf(wire[:n], mdns.CountLabel(name)); ok != sure || ok && octets != len(short)+1 {
					t.Fatalf("%s: the short name has %d octets, %t; want %q, %t", name, octets, ok, short, sure)
				}
			}
			maybe := p.Completed(wire[:n], mdns.CountLabel(name))
			if sure && !maybe {
				t.Fatalf("%s is completed, but not at a quick look", name)
			}
			if sure {
				both++
			} else if maybe {
				quick++
			}
		}
	}
	if both == 0 || quick > both {
		t.Errorf("%d names are completed, %d more at a quick look", both, quick)
	}
	if p := pods[0]; p.Completed([]byte{0}, 0) || p.Completed([]byte("\x05local\x00"), 1) {
		t.Error("names shorter than the suffix are none of its")
	}
	if _, ok := (*Pod)(nil).ShortOf([]byte("\x03www\x07example\x03com\x04shop\x03svc\x07cluster\x05local\x00"), 7); ok {
		t.Error("a name of nobody is completed")
	}
	name := []byte("\x03www\x07example\x03com\x04shop\x03svc\x07cluster\x05local\x00")
	if n := testing.AllocsPerRun(100, func() { pods[0].Completed(name, 7) }); n != 0 || !pods[0].Completed(name, 7) {
		t.Errorf("%v allocations", n)
	}
}

// TestAppendTries: in wire form the names are those that [Complete] goes on with.
func TestAppendTries(t *testing.T) {
	for _, r := range []*model.Resolver{nil, {Ndots: -1, Searches: []string{"corp.example", "example"}}, {Policy: model.DNSNone, Ndots: 3, Searches: []string{"shop.svc.cluster.local"}}} {
		p := newTestPod(r)
		var want []string
		Complete(p, Question{Name: "www.example.com" + p.search.suffixes[0], Type: mdns.TypeA}, func(name string, qtype uint16) (Outcome, int) {
			if qtype == mdns.TypeA {
				want = append(want, name)
			}
			return Outcome{Rcode: mdns.RcodeNameError}, 0
		})
		var got []string
		for i, last := 0, false; !last; i++ {
			var wire []byte
			wire, last = p.AppendTries([]byte("\x03www\x07example\x03com"), i)
			name, _, err := mdns.UnpackDomainName(wire, 0)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, name)
		}
		if !slices.Equal(got, want) || len(got) == 0 {
			t.Errorf("%v, want %v", got, want)
		}
	}
}
