// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// message is a netlink message of the kernel's about nftables.
func message(kind uint16, words ...uint32) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+4)
	for _, w := range words {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	return b
}

const (
	newElement    = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM
	newRule       = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE
	deleteElement = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELSETELEM
	conntrack     = unix.NFNL_SUBSYS_CTNETLINK<<8 | unix.NFT_MSG_NEWSETELEM
)

// Only new elements and rules are read, each whole, and what is cut short is left.
func TestNewWords(t *testing.T) {
	for _, row := range []struct {
		name string
		b    []byte
		want []uint32
	}{
		{"element", message(newElement, 1, 2), []uint32{1, 2}},
		{"several", slices.Concat(message(newElement, 1), message(newRule, 2, 3)), []uint32{1, 2, 3}},
		{"deleted", slices.Concat(message(deleteElement, 1), message(newElement, 2)), []uint32{2}},
		{"other subsystem", message(conntrack, 1), nil},
		{"cut short", message(newElement, 1, 2)[:24], nil},
		{"header only", make([]byte, unix.NLMSG_HDRLEN), nil},
		{"nothing", nil, nil},
	} {
		var got []uint32
		newWords(row.b, func(w uint32) { got = append(got, w) })
		if !slices.Equal(got, row.want) {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

// Whatever arrives, reading it ends and stays inside.
func FuzzNewWords(f *testing.F) {
	f.Add(message(newElement, 1, 2))
	f.Add(slices.Concat(message(newRule, 3), message(deleteElement, 1)))
	f.Fuzz(func(_ *testing.T, b []byte) { newWords(b, func(uint32) {}) })
}

// The kernel's word is heard for an element of a named map and for one inside of a rule: the two ways in which contenders write an endpoint.
func TestMonitor(t *testing.T) {
	h := testHost(t)
	nft := func(command string) {
		t.Helper()
		if _, err := output(t.Context(), h, anyCPU, "nft", command); err != nil {
			t.Fatal(err)
		}
	}
	nft("add table ip a; add map ip a m { type ipv4_addr . inet_service : ipv4_addr . inet_service; }; add chain ip a c")
	m, err := newMonitor(h)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	random := rand.New(rand.NewPCG(1, 1))
	for i := range 20 {
		addr := netip.AddrFrom4([4]byte{10, 200, byte(random.IntN(256)), byte(i)})
		begin := time.Now()
		told := m.expect(addr)
		other := m.expect(addr.Next())
		if i%2 == 0 {
			nft(fmt.Sprintf("add element ip a m { 10.96.0.%d . 80 : %s . 8080 }", i, addr))
		} else {
			nft(fmt.Sprintf("add rule ip a c meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : %s . 8080, 1 : 10.1.1.1 . 8080 }", addr))
		}
		select {
		case at := <-told:
			if at.Before(begin) || at.After(time.Now()) {
				t.Errorf("%s: told at %v, which is not between %v and now", addr, at, begin)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("not told of %s", addr)
		}
		if len(other) > 0 {
			t.Errorf("told of %s, which was not added", addr.Next())
		}
	}
	if err := m.failed(); err != nil {
		t.Error(err)
	}
}

func TestCountObjects(t *testing.T) {
	h := testHost(t)
	for _, row := range []struct {
		add  string
		want objects
	}{
		{"", objects{}},
		{"add table ip a", objects{tables: 1}},
		{"add chain ip a c; add chain ip a d", objects{tables: 1, chains: 2}},
		{"add set ip a s { type ipv4_addr; }; add element ip a s { 10.0.0.1, 10.0.0.2 }", objects{tables: 1, chains: 2, sets: 1, elements: 2}},
		{"add map ip a m { type ipv4_addr : verdict; }; add element ip a m { 10.0.0.1 : goto d }", objects{tables: 1, chains: 2, sets: 2, elements: 3}},
		{"add rule ip a c accept; add rule ip a c ip daddr vmap @m", objects{tables: 1, chains: 2, rules: 2, sets: 2, elements: 3}},
		{"add rule ip a c tcp dport { 1, 2, 3 } accept", objects{tables: 1, chains: 2, rules: 3, sets: 3, elements: 6}},
		{"add rule ip a c dnat to numgen random mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }", objects{tables: 1, chains: 2, rules: 4, sets: 4, elements: 8}},
	} {
		if row.add != "" {
			if _, err := output(context.Background(), h, anyCPU, "nft", row.add); err != nil {
				t.Fatal(err)
			}
		}
		listing, err := output(context.Background(), h, anyCPU, "nft", "-j", "list", "ruleset")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := countObjects(listing); err != nil || got != row.want {
			t.Errorf("after %q: %+v, %v, want %+v", row.add, got, err, row.want)
		}
	}
	for _, bad := range []string{"", "[]", `{"nftables":[{"set":[]}]}`} {
		if _, err := countObjects([]byte(bad)); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}
