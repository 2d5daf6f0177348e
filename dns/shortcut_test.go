// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/bpf"
	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/test/queries"
)

// inKernel is the program of pods' devices, loaded and on no device: frames are put to it one by one, as if they came from pods on the loopback device.
type inKernel struct {
	testing.TB
	*shortcut.Answers
	program       *ebpf.Program
	pods, answers *ebpf.Map
}

// self are the addresses of the cluster's DNS here.
var self = []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("[fd00:96::a]:53")}

// askers are pods, the first of which is one that every server answers.
var askers = []netip.Addr{loopback, netip.MustParseAddr("::1")}

func newInKernel(t testing.TB, pods ...netip.Addr) *inKernel {
	t.Helper()
	k := &inKernel{TB: t, Answers: shortcut.New()}
	k.load(pods...)
	t.Cleanup(k.Unload)
	return k
}

// load loads the program anew, without an answer.
func (k *inKernel) load(pods ...netip.Addr) {
	k.Helper()
	spec, err := bpf.Forward()
	if err != nil {
		k.Fatal(err)
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		k.Fatal(err)
	}
	k.Unload()
	k.Cleanup(c.Close)
	k.program, k.pods, k.answers = c.Programs["from_pod"], c.Maps["pods"], c.Maps["answers"]
	if err := k.Load(shortcut.Maps{Answers: k.answers, Slots: c.Maps["slots"], Counts: c.Maps["counts"], Pods: k.pods, Askers: c.Maps["askers"]}); err != nil {
		k.Fatal(err)
	}
	set := make(map[netip.Addr]struct{})
	for _, p := range append(slices.Clone(askers), pods...) {
		set[p] = struct{}{}
		if err := k.pods.Put(p.As16(), shortcut.Pod{Dev: 1}); err != nil {
			k.Fatal(err)
		}
	}
	k.SetPods(set)
}

// internet is the checksum of RFC 1071, not inverted.
func internet(b ...[]byte) uint16 {
	var sum uint32
	for i, c := range slices.Concat(b...) {
		sum += uint32(c) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// datagram is a frame with a UDP datagram. sum says whether it has a checksum.
func datagram(src, dst netip.AddrPort, msg []byte, sum bool) []byte {
	u := make([]byte, 8, 8+len(msg))
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(msg)))
	u = append(u, msg...)
	if sum {
		sum := ^internet(pseudo(src.Addr(), dst.Addr(), len(u)), u)
		if sum == 0 {
			sum = 0xffff // 0 says that there is none
		}
		binary.BigEndian.PutUint16(u[6:], sum)
	}
	if src.Addr().Is4() {
		ip := []byte{0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(u)))
		ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], ^internet(ip))
		return slices.Concat(make([]byte, 6), []byte{2, 0, 0, 0, 0, 1, 8, 0}, ip, u)
	}
	ip := []byte{0x60, 0, 0, 0, 0, 0, 17, 64}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(u)))
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	return slices.Concat(make([]byte, 6), []byte{2, 0, 0, 0, 0, 1, 0x86, 0xdd}, ip, u)
}

func pseudo(src, dst netip.Addr, size int) []byte {
	return append(slices.Concat(src.AsSlice(), dst.AsSlice()), 0, 17, byte(size>>8), byte(size))
}

// put has the program judge a frame, and returns what it makes of it; nil: it leaves it as it is.
func (k *inKernel) put(frame []byte) []byte {
	k.Helper()
	// struct __sk_buff
	type skb struct {
		_       [10]uint32
		Ifindex uint32
		_       [37]uint32
	}
	const next, redirect = 0xffffffff, 7
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+1024), Context: skb{Ifindex: 1}}
	verdict, err := k.program.Run(&opts)
	switch {
	case err != nil:
		k.Fatal(err)
	case verdict == redirect:
		return opts.DataOut
	case verdict != next:
		k.Errorf("verdict %d", int32(verdict))
	case !bytes.Equal(opts.DataOut[:min(len(frame), len(opts.DataOut))], frame):
		k.Errorf("what is left to the server was changed: % x became % x", frame, opts.DataOut)
	}
	return nil
}

// ask has a pod ask, and returns the kernel's answer; nil: it has none. What is around it has to be right.
func (k *inKernel) ask(src, dst netip.AddrPort, msg []byte) []byte {
	k.Helper()
	sum := len(msg)%2 == 0 || src.Addr().Is6()
	in := datagram(src, dst, msg, sum)
	out := k.put(in)
	if out == nil {
		return nil
	}
	header := 20
	if src.Addr().Is6() {
		header = 40
	}
	if len(out) < 14+header+8 {
		k.Fatalf("% x is no answer", out)
	}
	ip, u := out[14:14+header], out[14+header:]
	from, _ := netip.AddrFromSlice(ip[header-2*len(src.Addr().AsSlice()) : header-len(src.Addr().AsSlice())])
	to, _ := netip.AddrFromSlice(ip[header-len(src.Addr().AsSlice()):])
	length := int(binary.BigEndian.Uint16(u[4:]))
	switch {
	case !bytes.Equal(out[:6], in[6:12]) || !bytes.Equal(out[6:12], in[:6]):
		k.Errorf("link addresses % x", out[:12])
	case from != dst.Addr() || to != src.Addr() || binary.BigEndian.Uint16(u) != dst.Port() || binary.BigEndian.Uint16(u[2:]) != src.Port():
		k.Errorf("from %s to %s, ports % x", from, to, u[:4])
	case header == 20 && (internet(ip) != 0xffff || int(binary.BigEndian.Uint16(ip[2:])) != 20+length):
		k.Errorf("IP header % x", ip)
	case header == 40 && (int(binary.BigEndian.Uint16(ip[4:])) != length || ip[0] != 0x60):
		k.Errorf("IP header % x", ip)
	case length != len(u):
		k.Errorf("%d octets of UDP, of which it says %d", len(u), length)
	case sum && (internet(pseudo(from, to, length), u) != 0xffff || u[6] == 0 && u[7] == 0) || !sum && (u[6] != 0 || u[7] != 0):
		k.Errorf("checksum % x of % x", u[6:8], u)
	}
	return u[8:]
}

// both has a pod ask the kernel and, whatever that says, the server. If the kernel answers, it must be what the server says too. The server's answer may be the
// kernel's the next time.
func (k *inKernel) both(s *Server, src netip.AddrPort, msg []byte) (answered bool) {
	k.Helper()
	at := self[0]
	if src.Addr().Is6() {
		at = self[1]
	}
	got := k.ask(src, at, msg)
	d := s.desk(s.statsAt(at))
	resp, later := s.handle(d, src.Addr(), msg, make([]byte, slotSize))
	if got == nil {
		s.handle(d, src.Addr(), msg, make([]byte, slotSize)) // what is asked once is not taught
		return false
	}
	if later != nil || resp == nil {
		k.Fatalf("the kernel answers what the server does not at once:\n%s", describe(k, msg, got))
	}
	if g, w := comparable(k, got), comparable(k, resp); g != w || len(got) != len(resp) && !d.drawn { // what is drawn is packed by a library, with more pointers
		k.Fatalf("the kernel answers\n%s\nand the server\n%s", g, w)
	}
	if n := d.asked.end; !bytes.Equal(got[:n], resp[:n]) {
		k.Fatalf("the kernel's answer begins\n% x\nand the server's\n% x", got[:n], resp[:n])
	}
	return true
}

// statsAt is where the queries of tests at an address are counted.
func (s *Server) statsAt(at netip.AddrPort) *socketStats {
	for _, c := range s.stats() {
		if c.local == at && c.proto == "udp" {
			return c
		}
	}
	return s.newStats("udp", at)
}

// TestShortcutTable: what the kernel answers is what the table says, octet for octet, whatever the case of the name, the flags and the family; and of what is usual it
// answers everything.
func TestShortcutTable(t *testing.T) {
	eachGroup(t, func(t *testing.T, g queries.Group, o Options) {
		k := newInKernel(t)
		o.Shortcut, o.Self = k.Answers, self
		s := newServer(t, o)
		s.Publish(g.Snapshot)
		type question struct {
			name, qtype string
			form        int
		}
		asked := make(map[question]bool)
		for _, r := range g.Rows {
			for form := range 6 {
				q := new(mdns.Msg).SetQuestion(r.Name, typeOf(t, r))
				q.CheckingDisabled, q.RecursionDesired, q.AuthenticatedData = form%2 == 0, r.Line%5 > 0, r.Line%7 > 3
				if form > 1 {
					q.SetEdns0(1232, form > 3)
				}
				first, err := q.Pack()
				if err != nil {
					continue
				}
				q.Id, q.Question[0].Name = mdns.Id(), alternate(r.Name)
				again, err := q.Pack()
				if err != nil {
					continue
				}
				src := netip.AddrPortFrom(askers[form%2], uint16(40000+form))
				this := question{strings.ToLower(r.Name), r.Type, form}
				if k.both(s, src, first) && !asked[this] {
					t.Errorf("%v: answered before it was asked", r)
				}
				asked[this] = true
				at := self[0]
				fast := s.fast(s.desk(s.statsAt(at)), s.gate.state.Load(), again, make([]byte, slotSize))
				want := fast != nil && len(fast) <= len(first)+200 && len(r.Name) < 100 && strings.HasSuffix(strings.ToLower(r.Name), ".svc.cluster.local.") &&
					g.Settings["domain"] == ""
				got := false
				for range 8 { // one in 64 may be left to the server
					got = got || k.both(s, src, again)
				}
				if want && !got {
					t.Errorf("%v: not answered by the kernel, form %d", r, form)
				}
			}
		}
	})
}

// alternate is a name with every other letter in upper case.
func alternate(name string) string {
	b := []byte(name)
	for i := 0; i < len(b); i += 2 {
		b[i] = byte(strings.ToUpper(string(b[i]))[0])
	}
	return string(b)
}

// TestShortcutRandom: whatever changes, and at whatever moment a pod asks, the kernel says what the server would.
func TestShortcutRandom(t *testing.T) {
	r := random(t)
	answered, asked := 0, 0
	for range 4 {
		w := newRandomWorld(r)
		w.options.Settle, w.options.NegativeTTL = time.Hour, time.Duration(r.IntN(20))*time.Second
		w.options.Blocks[0].Loadbalance = r.IntN(2) == 0
		k := newInKernel(t)
		w.options.Shortcut, w.options.Self = k.Answers, self
		s := newServer(t, w.options)
		ask := func() {
			for range 300 {
				if k.both(s, netip.AddrPortFrom(pick(r, askers...), uint16(1024+r.IntN(60000))), randomQuery(t, r)) {
					answered++
				}
				asked++
			}
		}
		ask()
		s.Publish(w.Build())
		for range 25 {
			ask()
			for range r.IntN(3) {
				w.step(r)
			}
			next := w.Build()
			s.Announce(next)
			ask()
			var refused []model.Name
			if r.IntN(4) == 0 {
				refused = append(refused, w.name(r))
			}
			s.Publish(next, refused...)
			switch r.IntN(12) {
			case 0:
				b := w.options.Blocks[0]
				c := *b.Cluster
				c.TTL = time.Duration(r.IntN(3)) * time.Second
				b.Cluster = &c
				if err := s.Reload([]Block{b}); err != nil {
					t.Fatal(err)
				}
			case 1:
				k.load() // the program was off for a moment
			}
		}
	}
	if answered < asked/5 {
		t.Errorf("the kernel answered %d of %d questions", answered, asked)
	}
}

func randomQuery(t testing.TB, r *rand.Rand) []byte {
	svc := pick(r, "x", "y", "z", "w", "q") + "." + pick(r, "a", "b", "c", "q") + ".svc.cluster.local."
	n := pick(r, svc, svc, svc, pick(r, "h0.", "10-244-1-3.", "_tcp.", "_http._tcp.", "_dns._udp.", "x.y.")+svc,
		pick(r, "a.svc.cluster.local.", "x.cluster.local.", "www.example.com.svc.cluster.local.", "3.1.244.10.in-addr.arpa.", "www.example.com."))
	if r.IntN(3) == 0 {
		n = alternate(n)
	}
	q := new(mdns.Msg).SetQuestion(n, pick(r, mdns.TypeA, mdns.TypeA, mdns.TypeAAAA, mdns.TypeSRV, mdns.TypeTXT))
	if r.IntN(2) == 0 {
		q.SetEdns0(uint16(r.IntN(2000)), r.IntN(2) == 0)
	}
	return packed(t, q)
}

// TestShortcutForms: what is not asked in the plainest way is the server's.
func TestShortcutForms(t *testing.T) {
	k := newInKernel(t)
	s := dual(t, func(o *Options) { o.Shortcut, o.Self = k.Answers, self })
	at := self[0]
	src := netip.AddrPortFrom(loopback, 40000)
	known := message(t, nil)
	edns := message(t, func(m *mdns.Msg) { m.SetEdns0(1232, false) })
	for _, msg := range [][]byte{known, edns} {
		for _, pod := range askers {
			src := netip.AddrPortFrom(pod, 40000)
			if k.both(s, src, msg); !k.both(s, src, msg) {
				t.Fatal("not answered by the kernel")
			}
		}
	}
	edit := func(b []byte, f func([]byte) []byte) []byte { return f(slices.Clone(b)) }
	set := func(at int, v byte) func([]byte) []byte { return func(b []byte) []byte { b[at] = v; return b } }
	for _, tt := range []struct {
		what string
		msg  []byte
	}{
		{"an answer", edit(known, set(2, 0x81))},
		{"another opcode", edit(known, set(2, 0x09))},
		{"AA", edit(known, set(2, 5))},
		{"TC", edit(known, set(2, 3))},
		{"RA", edit(known, set(3, 0x80))},
		{"Z", edit(known, set(3, 0x40))},
		{"an rcode", edit(known, set(3, 1))},
		{"two questions", edit(known, set(5, 2))},
		{"no question", edit(known, set(5, 0))},
		{"an answer section", edit(known, set(7, 1))},
		{"an authority section", edit(known, set(9, 1))},
		{"EDNS that is not there", edit(known, set(11, 1))},
		{"EDNS that is not counted", edit(edns, set(11, 0))},
		{"two additional records", edit(edns, set(11, 2))},
		{"256 additional records", edit(edns, set(10, 1))},
		{"one octet more", append(slices.Clone(known), 0)},
		{"one octet less", known[:len(known)-1]},
		{"half a name", known[:20]},
		{"a header", known[:12]},
		{"part of a header", known[:11]},
		{"nothing", nil},
		{"class CHAOS", edit(known, set(len(known)-1, 3))},
		{"a type of the same low octet", edit(known, set(len(known)-4, 1))},
		{"EDNS of version 1", edit(edns, set(len(edns)-5, 1))},
		{"EDNS with an extended rcode", edit(edns, set(len(edns)-6, 1))},
		{"EDNS with other flags", edit(edns, set(len(edns)-3, 1))},
		{"EDNS with options that are not there", edit(edns, set(len(edns)-1, 4))},
		{"EDNS of another name than the root", edit(edns, set(len(edns)-11, 1))},
		{"an additional record of another type", edit(edns, set(len(edns)-9, 1))},
		{"EDNS with an option", message(t, func(m *mdns.Msg) {
			m.SetEdns0(1232, false).IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
		})},
		{"a label of 65 octets", edit(known, set(12, 'A'))},
		{"a name that ends early", edit(known, set(18, 0))},
		{"a pointer", edit(known, set(12, 0xc0))},
	} {
		if got := k.ask(src, at, tt.msg); got != nil {
			t.Errorf("%s is answered:\n% x", tt.what, got)
		}
	}
	frame := func(f func([]byte) []byte) []byte { return f(datagram(src, at, known, true)) }
	for _, tt := range []struct {
		what  string
		frame []byte
	}{
		{"to another address", datagram(src, netip.MustParseAddrPort("10.96.0.11:53"), known, true)},
		{"to another port", datagram(src, netip.MustParseAddrPort("10.96.0.10:5353"), known, true)},
		{"from nobody's address", datagram(netip.MustParseAddrPort("127.0.0.2:40000"), at, known, true)},
		{"TCP", frame(set(14+9, 6))},
		{"IP options", frame(set(14, 0x46))},
		{"a fragment", frame(set(14+6, 0x20))},
		{"a last fragment", frame(set(14+7, 7))},
		{"a shorter packet than its frame", frame(func(b []byte) []byte { return append(b, 0, 0) })},
		{"a shorter datagram than its packet", frame(set(14+20+5, byte(8+len(known)-1)))},
		{"to another link address", frame(set(0, 2))},
		{"IPv6 that says it is not", func() []byte {
			b := datagram(netip.AddrPortFrom(askers[1], 40000), self[1], known, true)
			b[14] = 0x40
			return b
		}()},
		{"of a VLAN", frame(func(b []byte) []byte { return slices.Insert(b, 12, 0x81, 0, 0, 7) })},
	} {
		if got := k.put(tt.frame); got != nil {
			t.Errorf("%s is answered: % x", tt.what, got)
		}
	}
	k.pods.Put(loopback.As16(), shortcut.Pod{Dev: 2})
	if k.ask(src, at, known) != nil {
		t.Error("one pod was answered in another's name")
	}
}

// TestShortcutKeeps: what is asked about whom, or is to be seen by the server each time, is not the kernel's.
func TestShortcutKeeps(t *testing.T) {
	web, lately := netip.MustParseAddr("10.244.1.77"), netip.MustParseAddr("10.244.1.78")
	pod := func(namespace string) model.Pod {
		return model.Pod{Name: model.Name{Namespace: namespace, Name: "p"}, Addrs: []netip.Addr{web}}
	}
	question := func(name string) []byte { return packed(t, new(mdns.Msg).SetQuestion(name, typeA)) }
	const (
		there   = "orders.shop.svc.cluster.local."
		missing = "www.example.com.shop.svc.cluster.local."
		nobodys = "www.example.com.svc.cluster.local."
	)
	for _, tt := range []struct {
		what      string
		namespace string // of the pod that asks
		change    func(*Options)
		want      map[string]bool
	}{
		{"nothing", "shop", nil, map[string]bool{there: true, missing: true, nobodys: true}},
		{"a pod elsewhere", "other", nil, map[string]bool{there: true, missing: true, nobodys: true}},
		{"completion of a pod in what looks like a namespace", "com", func(o *Options) { o.Asking.Completion = client.On }, map[string]bool{there: true, missing: true, nobodys: true}},
		{"completion of a pod elsewhere", "other", func(o *Options) { o.Asking.Completion = client.On }, map[string]bool{there: true, missing: true, nobodys: true}},
		{"completion", "shop", func(o *Options) { o.Asking.Completion = client.On }, map[string]bool{there: true, missing: true, nobodys: true}},
		{"no completion", "shop", func(o *Options) { o.Asking.Completion = client.Off }, map[string]bool{there: true, missing: true, nobodys: true}},
		{"autopath", "shop", func(o *Options) { o.Asking.Completion, o.Blocks[0].Autopath = client.Off, true }, map[string]bool{there: true, missing: true}},
		{"a rate", "shop", func(o *Options) { o.Asking.Rate = client.Rate{PerSecond: 1e6} }, map[string]bool{there: false, nobodys: false}},
		{"a log", "shop", func(o *Options) { o.Asking.Log = client.LogSettings{Every: 1000} }, map[string]bool{there: false}},
		{"a log of failures", "shop", func(o *Options) { o.Asking.Log = client.LogSettings{Errors: true} }, map[string]bool{there: true}},
		{"a block's log", "shop", func(o *Options) { o.Blocks[0].Log = []Log{{Zone: ".", Denial: true}} }, map[string]bool{there: false}},
		{"another address of the server's", "shop", func(o *Options) { o.Self = self[1:] }, map[string]bool{there: false}},
	} {
		k := newInKernel(t, web, lately)
		var b *model.Builder
		o := Options{Blocks: []Block{block("cluster.local")}, Clients: client.Options{Domain: "cluster.local"}, Shortcut: k.Answers, Self: self}
		if tt.change != nil {
			tt.change(&o)
		}
		s := newServer(t, o)
		b = model.NewBuilder(model.Config{Self: "n1"})
		b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "orders"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}})
		b.SetPod(pod(tt.namespace))
		s.Publish(b.Build())
		if why := s.Unshared(); (why != "") != (tt.what == "a rate" || tt.what == "a log" || tt.what == "a block's log") {
			t.Errorf("with %s: %q", tt.what, why)
		}
		src := netip.AddrPortFrom(web, 40000)
		for name, want := range tt.want {
			got := false
			for range 8 { // one in 64 may be left to the server
				got = got || k.both(s, src, question(name))
			}
			if got != want {
				t.Errorf("with %s: %s answered by the kernel: %t", tt.what, name, got)
			}
		}
		if tt.what == "completion of a pod elsewhere" {
			// A pod comes whose resolver completes names like that.
			late := pod("shop")
			late.Name.Name, late.Addrs = "late", []netip.Addr{lately}
			b.SetPod(late)
			s.Publish(b.Build())
			for range 3 { // of that one
				k.both(s, src, question(missing))
			}
			if !k.both(s, src, question(missing)) || k.ask(netip.AddrPortFrom(lately, 40000), self[0], question(missing)) != nil {
				t.Error("what a new pod's resolver may have completed is answered by the kernel as to others")
			}
		}
	}
}

// outsideWorld is an upstream that knows a few names, each with another number of addresses.
func outsideWorld(t *testing.T) *resolver {
	return newResolver(t, says(func(m *mdns.Msg) {
		q := m.Question[0]
		name := strings.ToLower(q.Name)
		switch {
		case name == "four.example.com." && q.Qtype == typeAAAA:
			m.Ns = []mdns.RR{rr("example.com. 60 IN SOA a. b. 1 2 3 4 60")}
		case name == "alias.example.com.":
			m.Answer = []mdns.RR{rr(q.Name + " 300 IN CNAME www.example.com."), rr("www.example.com. 60 IN A 192.0.2.1")}
			if q.Qtype == typeAAAA {
				m.Answer[1] = rr("www.example.com. 60 IN AAAA 2001:db8::1")
			}
		case (name == "www.example.com." || name == "four.example.com.") && q.Qtype == typeA:
			for i := range 3 {
				m.Answer = append(m.Answer, rr(fmt.Sprint(q.Name, " 60 IN A 192.0.2.", 1+i)))
			}
		case name == "www.example.com.":
			m.Answer = []mdns.RR{rr(q.Name + " 60 IN AAAA 2001:db8::1")}
		default:
			m.Rcode = mdns.RcodeNameError
			m.Ns = []mdns.RR{rr("example.com. 60 IN SOA a. b. 1 2 3 4 60")}
		}
	}))
}

// completing is a server with an upstream, that completes names and suppresses AAAA, and its pods.
func completing(t *testing.T, k *inKernel, change func(*Options)) (*Server, *model.Builder) {
	o := Options{Blocks: []Block{block("cluster.local", outsideWorld(t).addr)}, Clients: client.Options{Domain: "cluster.local"}, Shortcut: k.Answers, Self: self}
	o.Asking.Completion, o.Asking.AAAA = client.On, client.On
	if change != nil {
		change(&o)
	}
	s := newServer(t, o)
	b := model.NewBuilder(model.Config{Self: "n1"})
	for name, addrs := range map[string]string{"shop/a": "10.244.1.71", "shop/b": "10.244.1.72", "other/c": "10.244.1.73", "shop/both": "10.244.1.74 fd00:244::74"} {
		p := model.Pod{Name: model.Name{Namespace: strings.Split(name, "/")[0], Name: strings.Split(name, "/")[1]}}
		for a := range strings.FieldsSeq(addrs) {
			p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
		}
		b.SetPod(p)
	}
	b.SetService(model.ServiceSpec{Name: name("shop/orders"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}})
	b.SetService(model.ServiceSpec{Name: name("shop/db"), Type: model.Headless})
	b.SetSlice(model.Slice{Name: name("shop/db-1"), Service: "db", Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.244.2.1"), Ready: true}, {Addr: netip.MustParseAddr("10.244.2.2"), Ready: true}}})
	s.Publish(b.Build())
	return s, b
}

var completingPods = []netip.Addr{netip.MustParseAddr("10.244.1.71"), netip.MustParseAddr("10.244.1.72"), netip.MustParseAddr("10.244.1.73"), netip.MustParseAddr("10.244.1.74"), netip.MustParseAddr("fd00:244::74")}

// learn has a pod ask until the kernel answers, and returns its answer; nil: it never does.
func (k *inKernel) learn(s *Server, pod netip.Addr, msg []byte) []byte {
	k.Helper()
	at, src := self[0], netip.AddrPortFrom(pod, 40000)
	if pod.Is6() {
		at = self[1]
	}
	for range 6 {
		if got := k.ask(src, at, msg); got != nil {
			return got
		}
		resp, later := s.handle(s.desk(s.statsAt(at)), pod, msg, make([]byte, slotSize))
		if later != nil {
			resp = later(k.Context(), make([]byte, slotSize))
		}
		if resp == nil {
			k.Fatal("no answer")
		}
	}
	return nil
}

// TestShortcutCompleted: names that the server completes are completed by the kernel too, for the pods that are answered alike and no others; and so are names outside.
func TestShortcutCompleted(t *testing.T) {
	k := newInKernel(t, completingPods...)
	s, b := completing(t, k, nil)
	const first = ".shop.svc.cluster.local."
	ask := func(pod, name string, qtype uint16) (got string) {
		t.Helper()
		msg := packed(t, new(mdns.Msg).SetQuestion(name, qtype))
		if resp := k.learn(s, netip.MustParseAddr(pod), msg); resp != nil {
			m := new(mdns.Msg)
			if err := m.Unpack(resp); err != nil {
				t.Fatal(err)
			}
			if m.Question[0].Name != name || m.Id != binary.BigEndian.Uint16(msg) {
				t.Errorf("the answer is not to %s: %v", name, m)
			}
			list := words(m.Answer)
			slices.Sort(list)
			return strings.Join(append([]string{mdns.RcodeToString[m.Rcode]}, list...), " ")
		}
		return "not in the kernel"
	}
	const www = " www.example.com. A 192.0.2.1 www.example.com. A 192.0.2.2 www.example.com. A 192.0.2.3"
	for _, tt := range []struct {
		pod, name string
		qtype     uint16
		want      string
	}{
		{"10.244.1.71", "www.example.com" + first, typeA, "NOERROR" + www + " www.example.com" + first + " CNAME www.example.com."},
		{"10.244.1.71", "www.example.com" + first, typeAAAA, "NOERROR"}, // it has no IPv6
		{"10.244.1.74", "www.example.com" + first, typeAAAA, "NOERROR www.example.com. AAAA 2001:db8::1 www.example.com" + first + " CNAME www.example.com."},
		{"fd00:244::74", "www.example.com" + first, typeAAAA, "NOERROR www.example.com. AAAA 2001:db8::1 www.example.com" + first + " CNAME www.example.com."},
		{"10.244.1.73", "www.example.com" + first, typeA, "NXDOMAIN"}, // of another namespace
		{"10.244.1.72", "alias.example.com" + first, typeA, "NOERROR alias.example.com. CNAME www.example.com. alias.example.com" + first + " CNAME alias.example.com. www.example.com. A 192.0.2.1"},
		{"10.244.1.71", "no.example.com" + first, typeA, "NXDOMAIN"},
		{"10.244.1.71", "Www.example.com" + first, typeA, "NOERROR Www.example.com" + first + " CNAME www.example.com." + www},
		{"10.244.1.71", "orders.shop" + first, typeA, "NOERROR orders.shop" + first + " CNAME orders.shop.svc.cluster.local. orders.shop.svc.cluster.local. A 10.96.0.20"},
		{"10.244.1.71", "db.shop" + first, typeA, "not in the kernel"}, // in any order
		{"10.244.1.71", "www.example.com.", typeA, "NOERROR" + www},
		{"10.244.1.71", "alias.example.com.", typeA, "NOERROR alias.example.com. CNAME www.example.com. www.example.com. A 192.0.2.1"},
		{"10.244.1.71", "www.example.com.", typeAAAA, "not in the kernel"}, // of some it is suppressed
		{"10.244.1.73", "no.example.com.", typeA, "NXDOMAIN"},
	} {
		if got := ask(tt.pod, tt.name, tt.qtype); got != tt.want {
			t.Errorf("%s asks for %s %s: %s, want %s", tt.pod, tt.name, mdns.Type(tt.qtype), got, tt.want)
		}
	}
	// The neighbour has it without having asked.
	msg := packed(t, new(mdns.Msg).SetQuestion("www.example.com"+first, typeA))
	of := func(pod string) bool {
		return k.ask(netip.AddrPortFrom(netip.MustParseAddr(pod), 40000), self[0], msg) != nil
	}
	if k.learn(s, completingPods[0], msg); !of("10.244.1.72") || of("10.244.1.74") && of("10.244.1.73") {
		t.Errorf("of the same: %t; of others %t and %t", of("10.244.1.72"), of("10.244.1.74"), of("10.244.1.73"))
	}
	if !s.InKernel(completingPods[1], self[0], "www.example.com"+first, typeA) || s.InKernel(completingPods[4], self[0], "nothing.example.com"+first, typeA) {
		t.Error("that the kernel has it is not known")
	}
	// Whatever changes about Services may be about the names in between.
	b.SetService(model.ServiceSpec{Name: name("com/example"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.99")}})
	s.Announce(b.Build())
	if of("10.244.1.71") {
		t.Error("it holds beyond a change")
	}
	s.Publish(b.Build())
	// A pod's address becomes another one's, whose names are completed otherwise.
	k.learn(s, completingPods[0], msg)
	b.DeletePod(name("shop/b"))
	b.SetPod(model.Pod{Name: name("other/d"), Addrs: []netip.Addr{completingPods[1]}})
	s.Announce(b.Build())
	s.Publish(b.Build())
	if k.learn(s, completingPods[0], msg); !of("10.244.1.71") || of("10.244.1.72") {
		t.Errorf("after an address has become another pod's: %t and %t", of("10.244.1.71"), of("10.244.1.72"))
	}
	// The program is loaded anew, and knows who is alike.
	k.load(completingPods...)
	if k.learn(s, completingPods[0], msg); !of("10.244.1.71") || of("10.244.1.72") {
		t.Errorf("after the program was loaded anew: %t and %t", of("10.244.1.71"), of("10.244.1.72"))
	}
}

// TestShortcutEnds: what has TTLs from the cache ends when they change, and is then given with those that there are; an answer is no older than a second.
func TestShortcutEnds(t *testing.T) {
	for _, asked := range []string{"www.example.com.", "www.example.com.shop.svc.cluster.local."} {
		k := newInKernel(t, completingPods...)
		s, _ := completing(t, k, nil)
		msg := packed(t, new(mdns.Msg).SetQuestion(asked, typeA))
		last := uint32(60)
		for range 3 {
			resp := k.learn(s, completingPods[0], msg)
			m := new(mdns.Msg)
			if resp == nil || m.Unpack(resp) != nil {
				t.Fatalf("%s: not in the kernel", asked)
			}
			ttl := m.Answer[len(m.Answer)-1].Header().Ttl
			if ttl >= last || last-ttl > 3 && last < 60 {
				t.Errorf("%s: TTL %d after %d", asked, ttl, last)
			}
			last = ttl
			began := time.Now()
			for k.ask(netip.AddrPortFrom(completingPods[0], 40000), self[0], msg) != nil {
				if time.Since(began) > 2*time.Second {
					t.Fatalf("%s: TTL %d is given for longer than a second", asked, ttl)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
}

// TestShortcutOutsideRotates: the addresses of a name outside come first in turn.
func TestShortcutOutsideRotates(t *testing.T) {
	for _, balance := range []bool{true, false} {
		k := newInKernel(t, completingPods...)
		s, _ := completing(t, k, func(o *Options) { o.Blocks[0].Loadbalance = balance })
		msg := packed(t, new(mdns.Msg).SetQuestion("www.example.com.", typeA))
		first, answered := make(map[string]int), 0
		for range 500 {
			if resp := k.learn(s, completingPods[0], msg); resp != nil {
				m := new(mdns.Msg)
				if err := m.Unpack(resp); err != nil {
					t.Fatal(err)
				}
				answered++
				first[m.Answer[0].(*mdns.A).A.String()]++
			}
		}
		if want := map[bool]int{true: 3, false: 1}[balance]; len(first) != want || answered < 400 {
			t.Errorf("loadbalance %t: first come %v in %d answers", balance, first, answered)
		}
	}
}

// TestShortcutSamples: what completion would spare is counted as often as without the kernel, which leaves the server so many questions as that takes.
func TestShortcutSamples(t *testing.T) {
	web := netip.MustParseAddr("10.244.1.77")
	k := newInKernel(t, web)
	s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Clients: client.Options{Domain: "cluster.local"}, Shortcut: k.Answers, Self: self})
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "p"}, Addrs: []netip.Addr{web}})
	s.Publish(b.Build())
	msg := packed(t, new(mdns.Msg).SetQuestion("www.example.com.shop.svc.cluster.local.", typeA))
	const asked = 20_000
	left := 0
	at, src := self[0], netip.AddrPortFrom(web, 40000)
	d := s.desk(s.statsAt(at))
	for range asked {
		if k.ask(src, at, msg) == nil {
			s.handle(d, web, msg, make([]byte, slotSize))
			left++
		}
	}
	// The standard deviation is 0.056 of the mean, so that this is six of it.
	if mean := asked / client.Sample; left < mean*2/3 || left > mean*4/3 {
		t.Errorf("%d of %d questions were left to the server", left, asked)
	}
	counted := 0.0
	for name, n := range gather(t, s) {
		if strings.HasPrefix(name, "fairlead_dns_completions_total") {
			counted += n
		}
	}
	if counted < asked*2/3 || counted > asked*4/3 {
		t.Errorf("of %d questions, %.0f were counted as such that might be completed", asked, counted)
	}
}

// TestShortcutCounts: what the kernel answers is counted as if the server had.
func TestShortcutCounts(t *testing.T) {
	web := netip.MustParseAddr("10.244.1.77")
	count := func(kernel bool) (map[string]float64, []client.Talker) {
		k := newInKernel(t, web)
		s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self, Now: func() time.Time { return origin }})
		b := model.NewBuilder(model.Config{Self: "n1"})
		b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "orders"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20")}})
		b.SetPod(model.Pod{Name: model.Name{Namespace: "other", Name: "p"}, Addrs: []netip.Addr{web}})
		s.Publish(b.Build())
		at, src := self[0], netip.AddrPortFrom(web, 40000)
		d := s.desk(s.statsAt(at))
		for round := range 20 {
			for i, name := range []string{"orders.shop.svc.cluster.local.", "other.shop.svc.cluster.local.", "a.b.c.d.e.f.svc.cluster.local."} {
				m := new(mdns.Msg).SetQuestion(name, pick(rand.New(rand.NewPCG(1, uint64(round+i))), typeA, typeAAAA))
				if round%3 == 0 {
					m.SetEdns0(1232, round%2 == 0)
				}
				msg := packed(t, m)
				if kernel && k.ask(src, at, msg) != nil {
					continue
				}
				if resp, _ := s.handle(d, web, msg, make([]byte, slotSize)); resp == nil {
					t.Fatal("no answer")
				}
				d.sent(s.now())
			}
			if round%7 == 0 {
				gather(t, s) // what was counted is not counted again
			}
		}
		if n := k.Answered(); kernel != (n > 30) {
			t.Errorf("the kernel answered %d questions", n)
		}
		return gather(t, s), s.Top(5, client.Queries)
	}
	got, gotTop := count(true)
	want, wantTop := count(false)
	if !maps.Equal(got, want) {
		t.Errorf("with the kernel\n%v\nand without\n%v", got, want)
	}
	if !slices.Equal(gotTop, wantTop) || len(gotTop) != 1 || gotTop[0].Queries != 60 || gotTop[0].Denials != 40 {
		t.Errorf("the pods that ask most are %v and %v", gotTop, wantTop)
	}
}

// TestShortcutCompletedCounts: what the kernel completes, and takes from the cache, is counted as if the server had.
func TestShortcutCompletedCounts(t *testing.T) {
	for _, mode := range []client.Mode{client.On, client.CountOnly} {
		count := func(kernel bool) (map[string]float64, []client.Talker) {
			k := newInKernel(t, completingPods...)
			clock := time.Now()
			s, _ := completing(t, k, func(o *Options) {
				o.Asking.AAAA, o.Now = mode, func() time.Time { return clock }
			})
			at := self[0]
			d := s.desk(s.statsAt(at))
			for round := range 20 {
				for _, name := range []string{"www.example.com.shop.svc.cluster.local.", "four.example.com.shop.svc.cluster.local.", "no.example.com.shop.svc.cluster.local.", "www.example.com.", "four.example.com."} {
					for i, pod := range []netip.Addr{completingPods[0], completingPods[3]} {
						for _, qtype := range []uint16{typeA, typeAAAA} {
							m := new(mdns.Msg).SetQuestion(name, qtype)
							if round%2 == i {
								m.SetEdns0(1232, false)
							}
							msg := packed(t, m)
							if kernel && k.ask(netip.AddrPortFrom(pod, 40000), at, msg) != nil {
								continue
							}
							resp, later := s.handle(d, pod, msg, make([]byte, slotSize))
							if later != nil {
								resp = later(t.Context(), make([]byte, slotSize))
							}
							if resp == nil {
								t.Fatal("no answer")
							}
							d.sent(s.now())
						}
					}
				}
				if round == 0 {
					clock = clock.Add(500 * time.Millisecond) // or the TTLs would change at once
				}
				if round%7 == 0 {
					gather(t, s) // what was counted is not counted again
				}
			}
			if n := k.Answered(); kernel != (n > 150) {
				t.Errorf("the kernel answered %d questions", n)
			}
			got := gather(t, s)
			for name := range got {
				if strings.Contains(name, "to=") {
					delete(got, name) // of an upstream, whose address is another each time
				}
			}
			return got, s.Top(5, client.Queries)
		}
		got, gotTop := count(true)
		want, wantTop := count(false)
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%v: %s is %v with the kernel, and %v without", mode, name, got[name], want[name])
			}
		}
		if len(got) != len(want) || !slices.Equal(gotTop, wantTop) {
			t.Errorf("%v: %d metrics, want %d; the pods that ask most are %v, want %v", mode, len(got), len(want), gotTop, wantTop)
		}
	}
}

// TestShortcutRotates: every address of a headless Service comes first at times, unless the order is to stay.
func TestShortcutRotates(t *testing.T) {
	for _, balance := range []bool{true, false} {
		k := newInKernel(t)
		o := Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self}
		o.Blocks[0].Loadbalance = balance
		s := newServer(t, o)
		b := model.NewBuilder(model.Config{Self: "n1"})
		name := model.Name{Namespace: "shop", Name: "db"}
		b.SetService(model.ServiceSpec{Name: name, Type: model.Headless})
		sl := model.Slice{Name: name, Service: "db"}
		for i := range 16 {
			sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: netip.MustParseAddr(fmt.Sprintf("10.244.1.%d", 1+i)), Ready: true})
		}
		b.SetSlice(sl)
		s.Publish(b.Build())
		first := make(map[string]int)
		src := netip.AddrPortFrom(loopback, 40000)
		msg := packed(t, new(mdns.Msg).SetQuestion("db.shop.svc.cluster.local.", typeA).SetEdns0(1232, false))
		k.both(s, src, msg)
		for range 1000 {
			m := new(mdns.Msg)
			if err := m.Unpack(k.ask(src, self[0], msg)); err != nil || len(m.Answer) != 16 {
				t.Fatal(m, err)
			}
			first[m.Answer[0].(*mdns.A).A.String()]++
		}
		if want := map[bool]int{true: 16, false: 1}[balance]; len(first) != want {
			t.Errorf("loadbalance %t: first come %v", balance, first)
		}
	}
}

// TestShortcutFull: when there is no room, room is made, and what holds is answered again.
func TestShortcutFull(t *testing.T) {
	k := newInKernel(t)
	s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self})
	s.Publish(model.NewBuilder(model.Config{Self: "n1"}).Build())
	at, src := self[0], netip.AddrPortFrom(loopback, 40000)
	d, buf := s.desk(s.statsAt(at)), make([]byte, slotSize)
	question := func(i int) []byte {
		return packed(t, new(mdns.Msg).SetQuestion(fmt.Sprintf("n%d.shop.svc.cluster.local.", i), typeA))
	}
	for i := range 1<<15 + 1 {
		s.handle(d, loopback, question(i), buf)
		s.handle(d, loopback, question(i), buf)
	}
	for range 1000 { // it is made by another goroutine
		if s.handle(d, loopback, question(0), buf); k.ask(src, at, question(0)) != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("nothing is answered any more")
}

// services publishes a world of Services n0, n1, ... of namespace shop, each with an address of its own.
func publishServices(s *Server, n int) *model.Builder {
	b := model.NewBuilder(model.Config{Self: "n1"})
	for i := range n {
		b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: fmt.Sprint("n", i)}, ClusterIPs: []netip.Addr{serviceAddr(i)}})
	}
	s.Publish(b.Build())
	return b
}

func serviceAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 96, byte(1 + i/200), byte(1 + i%200)})
}

func serviceQuestion(t testing.TB, i int) []byte {
	return packed(t, new(mdns.Msg).SetQuestion(fmt.Sprintf("n%d.shop.svc.cluster.local.", i), typeA))
}

// TestShortcutSeal: an entry that is not what was written for its question is not an answer: its memory was used for another one meanwhile.
func TestShortcutSeal(t *testing.T) {
	k := newInKernel(t)
	s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self})
	publishServices(s, 2)
	src := netip.AddrPortFrom(loopback, 40000)
	for i := range 2 {
		if k.both(s, src, serviceQuestion(t, i)); k.ask(src, self[0], serviceQuestion(t, i)) == nil {
			t.Fatal("not answered by the kernel")
		}
	}
	const keySize, valueSize = 128, 328
	var keys [][keySize]byte
	var values [][valueSize]byte
	var key [keySize]byte
	var value [valueSize]byte
	for it := k.answers.Iterate(); it.Next(&key, &value); {
		keys, values = append(keys, key), append(values, value)
	}
	if len(keys) != 2 {
		t.Fatalf("%d entries", len(keys))
	}
	check := func(what string, value [valueSize]byte) {
		t.Helper()
		if err := k.answers.Put(keys[0], value); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if got := k.ask(src, self[0], serviceQuestion(t, i)); (got != nil) != (bytes.Contains(keys[1][:], []byte{2, 'n', byte('0' + i)})) {
				t.Errorf("%s: question %d is answered: %x", what, i, got)
			}
		}
	}
	check("another question's answer", values[1])
	for at := 0; at < valueSize; at += 7 {
		torn := values[0]
		torn[at] ^= 1 << (at % 8)
		check(fmt.Sprintf("octet %d is another", at), torn)
		torn = values[0]
		copy(torn[at:], values[1][at:])
		if torn != values[0] {
			check(fmt.Sprintf("from octet %d on another question's answer", at), torn)
		}
	}
}

// TestShortcutConcurrent: while answers come, go and are replaced, whatever the kernel says is the answer to the very question, and no older than the last change.
func TestShortcutConcurrent(t *testing.T) {
	k := newInKernel(t)
	s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self})
	const names = 40
	b := publishServices(s, names)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	// One server's goroutines for questions, as there are several.
	for range 3 {
		wg.Go(func() {
			d, buf := s.desk(s.newStats("udp", self[0])), make([]byte, slotSize)
			for i := 0; ctx.Err() == nil; i++ {
				s.handle(d, loopback, serviceQuestion(t, i%names), buf)
			}
		})
	}
	// gone says since when a Service is not there: what is asked from then on must not be answered with its address.
	var gone [names]atomic.Bool
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i = (i + 1) % names {
			name := model.Name{Namespace: "shop", Name: fmt.Sprint("n", i)}
			b.DeleteService(name)
			snap := b.Build()
			s.Announce(snap)
			gone[i].Store(true)
			s.Publish(snap)
			for range 100 {
				runtime.Gosched()
			}
			gone[i].Store(false)
			b.SetService(model.ServiceSpec{Name: name, ClusterIPs: []netip.Addr{serviceAddr(i)}})
			snap = b.Build()
			s.Announce(snap)
			s.Publish(snap)
		}
	})
	answered, src := 0, netip.AddrPortFrom(loopback, 40000)
	for i := 0; i < 40_000; i++ {
		n := i % names
		before := gone[n].Load()
		got := k.ask(src, self[0], serviceQuestion(t, n))
		if got == nil {
			continue
		}
		answered++
		m := new(mdns.Msg)
		if err := m.Unpack(got); err != nil {
			t.Fatal(err)
		}
		has := len(m.Answer) == 1 && m.Answer[0].(*mdns.A).A.Equal(serviceAddr(n).AsSlice())
		if !has && (m.Rcode != mdns.RcodeNameError || len(m.Answer) > 0) {
			t.Fatalf("n%d: %v", n, m)
		}
		if before && has && gone[n].Load() {
			t.Fatalf("n%d is gone, and answered:\n%v", n, m)
		}
	}
	cancel()
	wg.Wait()
	if answered < 1000 {
		t.Errorf("the kernel answered %d times", answered)
	}
}

// TestShortcutUnloaded: a program that nobody tells of changes any more answers nothing, though it may still be on devices.
func TestShortcutUnloaded(t *testing.T) {
	k := newInKernel(t)
	s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self})
	publishServices(s, 1)
	src, msg := netip.AddrPortFrom(loopback, 40000), serviceQuestion(t, 0)
	if k.both(s, src, msg); !k.both(s, src, msg) {
		t.Fatal("not answered by the kernel")
	}
	for _, tt := range []struct {
		pod   netip.Addr
		at    netip.AddrPort
		name  string
		qtype uint16
		want  bool
	}{
		{loopback, self[0], "N0.shop.svc.cluster.local.", typeA, true},
		{loopback, self[0], "n0.shop.svc.cluster.local.", typeAAAA, false},
		{loopback, self[0], "n1.shop.svc.cluster.local.", typeA, false},
		{loopback, self[1], "n0.shop.svc.cluster.local.", typeA, false},
		{loopback, netip.AddrPortFrom(self[0].Addr(), 5353), "n0.shop.svc.cluster.local.", typeA, false},
		{netip.MustParseAddr("10.244.9.9"), self[0], "n0.shop.svc.cluster.local.", typeA, false},
	} {
		if got := s.InKernel(tt.pod, tt.at, tt.name, tt.qtype); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
	}
	k.Unload()
	for range 3 {
		if k.both(s, src, msg) {
			t.Error("answered by a program that is told nothing")
		}
	}
	if s.InKernel(loopback, self[0], "n0.shop.svc.cluster.local.", typeA) {
		t.Error("the server thinks that the kernel has the answer")
	}
}

// TestShortcutTypes: whatever pods ask, what is remembered to count it stays small, and the usual is answered.
func TestShortcutTypes(t *testing.T) {
	k := newInKernel(t)
	s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self})
	publishServices(s, 1)
	d, buf := s.desk(s.statsAt(self[0])), make([]byte, slotSize)
	for qtype := range uint16(3000) {
		msg := packed(t, new(mdns.Msg).SetQuestion("n0.shop.svc.cluster.local.", 256+qtype))
		s.handle(d, loopback, msg, buf)
		s.handle(d, loopback, msg, buf)
	}
	if n := len(s.taught.classes); n > len(countedTypes) {
		t.Errorf("%d classes of answers", n)
	}
	src, msg := netip.AddrPortFrom(loopback, 40000), serviceQuestion(t, 0)
	if k.both(s, src, msg); !k.both(s, src, msg) {
		t.Error("not answered by the kernel")
	}
}

// TestShortcutAnotherPod: a pod is not counted what the one before it at its address was answered, nor is anything counted twice when the program is loaded anew.
func TestShortcutAnotherPod(t *testing.T) {
	web := netip.MustParseAddr("10.244.1.77")
	k := newInKernel(t, web)
	s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self})
	b := publishServices(s, 1)
	pod := func(name string) {
		b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: name}, Addrs: []netip.Addr{web}})
		s.Publish(b.Build())
	}
	src := netip.AddrPortFrom(web, 40000)
	ask := func(name string, times int) {
		msg := packed(t, new(mdns.Msg).SetQuestion(name, typeA))
		d := s.desk(s.statsAt(self[0]))
		for range times {
			if k.ask(src, self[0], msg) == nil {
				s.handle(d, web, msg, make([]byte, slotSize))
			}
		}
	}
	top := func(name string, queries, denials uint64) {
		t.Helper()
		for _, e := range s.Top(5, client.Queries) {
			if e.Name == "shop/"+name && e.Queries == queries && e.Denials == denials {
				return
			}
		}
		t.Errorf("want %s with %d queries and %d denials: %+v", name, queries, denials, s.Top(5, client.Queries))
	}
	pod("first")
	ask("nothing.shop.svc.cluster.local.", 20)
	top("first", 20, 20)
	b.DeletePod(model.Name{Namespace: "shop", Name: "first"})
	k.pods.Put(web.As16(), shortcut.Pod{Dev: 1 << 20}) // the new pod's device, in a moment the loopback device
	pod("second")
	s.Top(1, client.Queries)
	k.pods.Put(web.As16(), shortcut.Pod{Dev: 1})
	ask("n0.shop.svc.cluster.local.", 30)
	ask("nothing.shop.svc.cluster.local.", 5)
	top("second", 35, 5)
	sum := func() (n float64) {
		for name, v := range gather(t, s) {
			if strings.HasPrefix(name, "coredns_dns_requests_total") {
				n += v
			}
		}
		return n
	}
	if n := sum(); n != 55 {
		t.Errorf("%v queries are counted, want 55", n)
	}
	k.load(web)
	if n := sum(); n != 55 {
		t.Errorf("%v queries are counted after the program was loaded anew, want 55", n)
	}
	ask("n0.shop.svc.cluster.local.", 45)
	if n := sum(); n != 100 {
		t.Errorf("%v queries are counted, want 100", n)
	}
}

// TestShortcutAllocatesNothing: what is taught or might be costs no memory.
func TestShortcutAllocatesNothing(t *testing.T) {
	k := newInKernel(t)
	s := newServer(t, Options{Blocks: []Block{block("cluster.local")}, Shortcut: k.Answers, Self: self})
	publishServices(s, 1)
	d, buf := s.desk(s.statsAt(self[0])), make([]byte, slotSize)
	for _, name := range []string{"n0.shop.svc.cluster.local.", "nothing.shop.svc.cluster.local.", "www.example.com.cluster.local."} {
		msg := packed(t, new(mdns.Msg).SetQuestion(name, typeA))
		if n := testing.AllocsPerRun(1000, func() { s.handle(d, loopback, msg, buf) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzShortcutFrames: of frames, too, only what the server answers so is answered.
func FuzzShortcutFrames(f *testing.F) {
	k := newInKernel(f)
	s := dual(f, func(o *Options) { o.Shortcut, o.Self = k.Answers, self })
	known := message(f, nil)
	for i, src := range askers {
		src := netip.AddrPortFrom(src, 40000)
		k.both(s, src, known)
		frame := datagram(src, self[i], known, true)
		f.Add(frame)
		if k.put(frame) == nil {
			f.Fatal("not answered by the kernel")
		}
		for _, at := range []int{12, 14, 16, 17, 18, 20, 34, 38, 39, 54, 58, 59} {
			odd := slices.Clone(frame)
			odd[at] ^= 1
			f.Add(odd)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 54 || len(frame) > 1500 { // the kernel takes no others for a test
			return
		}
		k.TB = t
		out := k.put(frame)
		if out == nil {
			return
		}
		// What is answered has to be one of the two questions, as far as it is looked at: all but the link addresses, some of the IP header, the port, the id and
		// the spelling.
		header := map[byte]int{4: 34, 6: 54}[frame[14]>>4]
		if header == 0 || len(frame) < header+8+headerSize {
			t.Fatalf("% x is answered", frame)
		}
		msg := frame[header+8:]
		at := self[map[byte]int{4: 0, 6: 1}[frame[14]>>4]]
		from := askers[map[byte]int{4: 0, 6: 1}[frame[14]>>4]]
		d := s.desk(s.statsAt(at))
		resp, _ := s.handle(d, from, msg, make([]byte, slotSize))
		if resp == nil || binary.BigEndian.Uint16(frame[header+2:]) != 53 || len(out) < header+8 || comparable(t, out[header+8:]) != comparable(t, resp) {
			t.Fatalf("% x is answered by\n% x\nand by the server by\n% x", frame, out, resp)
		}
	})
}

func FuzzShortcut(f *testing.F) {
	addTable(f)
	k := newInKernel(f)
	s := dual(f, func(o *Options) { o.Shortcut, o.Self = k.Answers, self })
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) > slotSize {
			return
		}
		k.TB = t
		for _, src := range askers {
			for range 2 {
				k.both(s, netip.AddrPortFrom(src, 40000), msg)
			}
		}
	})
}
