// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
)

// asked is one question as it goes over the wire, and what it is about.
type asked struct {
	about string // existing, missing, SRV, ...
	name  string
	qtype uint16
	class uint16
	tcp   bool
	msg   *dns.Msg
	// spoil changes the packed message, for what a library does not send.
	spoil func([]byte) []byte
	odd   string // what is unusual about the message, for people
}

// String is the question as one would ask dig.
func (q *asked) String() string {
	text := fmt.Sprintf("%s %s %s", q.name, dns.Class(q.class), dns.Type(q.qtype))
	if q.tcp {
		text += " +tcp"
	}
	if !q.msg.RecursionDesired {
		text += " +norec"
	}
	if opt := q.msg.IsEdns0(); opt != nil {
		text += fmt.Sprintf(" +bufsize=%d", opt.UDPSize())
		if opt.Do() {
			text += " +dnssec"
		}
	}
	if q.odd != "" {
		text += " (" + q.odd + ")"
	}
	return text
}

// kinds of questions, and how many of a thousand are of each.
var questionKinds = []struct {
	share int
	about string
	name  func(w *nameWorld, r *rand.Rand) string
	types []uint16
}{
	{230, "existing", (*nameWorld).anyName, []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeA}},
	{60, "existing, other types", (*nameWorld).anyName, []uint16{dns.TypeMX, dns.TypeTXT, dns.TypeSRV, dns.TypeCNAME, dns.TypeNS, dns.TypeSOA, dns.TypeHTTPS,
		dns.TypeCAA, dns.TypePTR, dns.TypeNAPTR, dns.TypeDS, dns.TypeDNSKEY, 65280}},
	{25, "ANY", (*nameWorld).anyName, []uint16{dns.TypeANY}},
	{100, "SRV", (*nameWorld).portName, []uint16{dns.TypeSRV}},
	{30, "SRV names, other types", (*nameWorld).portName, []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeANY}},
	{40, "SRV missing", (*nameWorld).wrongPortName, []uint16{dns.TypeSRV, dns.TypeSRV, dns.TypeA}},
	{80, "missing", (*nameWorld).missingName, []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeMX}},
	{30, "search path", (*nameWorld).searchedName, []uint16{dns.TypeA, dns.TypeAAAA}},
	{80, "endpoints", (*nameWorld).endpointName, []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT}},
	{60, "PTR of Services", (*nameWorld).reverseVirtual, []uint16{dns.TypePTR}},
	{60, "PTR of pods", (*nameWorld).reversePod, []uint16{dns.TypePTR}},
	{40, "PTR missing", (*nameWorld).reverseMissing, []uint16{dns.TypePTR}},
	{20, "reverse, other types", (*nameWorld).reverseOdd, []uint16{dns.TypePTR, dns.TypeA, dns.TypeSOA, dns.TypeNS, dns.TypeANY}},
	{50, "pods", (*nameWorld).podName, []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT}},
	{30, "zone", (*nameWorld).zoneName, []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeTXT, dns.TypeANY, dns.TypeSRV}},
	{25, "odd names", (*nameWorld).oddName, []uint16{dns.TypeA, dns.TypeSRV, dns.TypeTXT}},
	{40, "outside", (*nameWorld).outsideName, []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeMX}},
}

const domain = "cluster.local."

// ask makes the next question.
func (w *nameWorld) ask(r *rand.Rand) *asked {
	at := 0
	for _, k := range questionKinds {
		at += k.share
	}
	at = r.IntN(at)
	for _, k := range questionKinds {
		if at -= k.share; at < 0 {
			q := &asked{about: k.about, name: k.name(w, r), qtype: pickOne(r, k.types...), class: dns.ClassINET, tcp: r.IntN(30) == 0}
			q.dress(r)
			return q
		}
	}
	panic("shares do not add up")
}

// dress makes the message around the question.
func (q *asked) dress(r *rand.Rand) {
	if r.IntN(7) == 0 {
		q.name = mixCase(r, q.name)
	}
	if r.IntN(150) == 0 {
		q.class = pickOne[uint16](r, dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassANY, dns.ClassNONE)
		if q.class == dns.ClassCHAOS && r.IntN(3) > 0 {
			q.about, q.name, q.qtype = "CHAOS", pickOne(r, "version.bind.", "version.server.", "id.server.", "hostname.bind.", "authors.bind."), dns.TypeTXT
		}
	}
	q.msg = &dns.Msg{Question: []dns.Question{{Name: q.name, Qtype: q.qtype, Qclass: q.class}}}
	q.msg.Id = uint16(r.Uint32())
	q.msg.RecursionDesired = r.IntN(20) > 0
	q.msg.AuthenticatedData = r.IntN(20) == 0
	q.msg.CheckingDisabled = r.IntN(20) == 0
	if r.IntN(5) < 3 {
		q.msg.SetEdns0(pickOne[uint16](r, 0, 512, 1232, 1232, 1400, 4096, 4096, 65535), r.IntN(5) == 0)
		q.options(r)
	}
	q.spoilSome(r)
}

// options are those of EDNS that some client sends.
func (q *asked) options(r *rand.Rand) {
	opt := q.msg.IsEdns0()
	switch r.IntN(40) {
	case 0:
		opt.Option = append(opt.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	case 1:
		opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
	case 2:
		opt.Option = append(opt.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(192, 0, 2, 0)})
	case 3:
		opt.Option = append(opt.Option, &dns.EDNS0_PADDING{Padding: make([]byte, 32)})
	case 4:
		opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")})
	case 5:
		opt.SetVersion(1)
		q.odd = "EDNS version 1"
	default:
		return
	}
	if q.odd == "" {
		q.odd = fmt.Sprintf("EDNS option %d", opt.Option[0].Option())
	}
}

// spoilSome makes one message in a hundred one that is none, or nearly none.
func (q *asked) spoilSome(r *rand.Rand) {
	set := func(at int, bits byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] |= bits; return b }
	}
	switch r.IntN(800) {
	case 0:
		q.odd, q.msg.Opcode = "opcode STATUS", dns.OpcodeStatus
	case 1:
		q.odd, q.msg.Opcode = "opcode NOTIFY", dns.OpcodeNotify
	case 2:
		q.odd, q.msg.Opcode = "opcode UPDATE", dns.OpcodeUpdate
	case 3:
		q.odd, q.msg.Question = "two questions", append(q.msg.Question, q.msg.Question[0])
	case 4:
		q.odd, q.msg.Question = "no question", nil
	case 5:
		q.odd, q.spoil = "octets after the end", func(b []byte) []byte { return append(b, 0, 1, 2) }
	case 6:
		q.odd, q.spoil = "bit Z", set(3, 0x40)
	case 7:
		q.odd, q.spoil = "bit AA", set(2, 0x04)
	case 8:
		q.odd, q.spoil = "bit TC", set(2, 0x02)
	case 9:
		q.odd, q.spoil = "bit RA", set(3, 0x80)
	case 10:
		q.odd, q.spoil = "response code 5", set(3, 5)
	case 11:
		q.odd = "an answer in the query"
		q.msg.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 1)}}
	case 12:
		q.odd = "two OPT records"
		q.msg.Extra = append(q.msg.Extra, &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}, &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}})
	case 13:
		q.odd, q.msg.Question[0].Qtype = "type AXFR", dns.TypeAXFR
		q.qtype = dns.TypeAXFR
	case 14:
		q.odd, q.spoil = "a response", set(2, 0x80)
	case 15:
		q.odd, q.msg.Question[0].Qtype = "type 0", 0
		q.qtype = 0
	}
}

func mixCase(r *rand.Rand, s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' && r.IntN(2) == 0 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

func (w *nameWorld) one(r *rand.Rand) *named { return &w.services[r.IntN(len(w.services))] }

func (w *nameWorld) anyName(r *rand.Rand) string { return w.one(r).name(domain) }

func (w *nameWorld) portName(r *rand.Rand) string {
	for {
		s := w.one(r)
		if p := s.service.Spec.Ports; len(p) > 0 {
			port := pickOne(r, p...)
			return "_" + port.Name + "._" + strings.ToLower(string(port.Protocol)) + "." + s.name(domain)
		}
	}
}

func (w *nameWorld) wrongPortName(r *rand.Rand) string {
	s := w.one(r)
	return pickOne(r, "_nope._tcp.", "_http._udp.", "_http._quic.", "_._tcp.", "_tcp.", "_udp.", "_sctp.", "http._tcp.", "http.tcp.", "_http.tcp.", "_x._http._tcp.", "*._tcp.", "_http.", "dns.udp.") + s.name(domain)
}

func (w *nameWorld) missingName(r *rand.Rand) string {
	s := w.one(r)
	switch r.IntN(6) {
	case 0:
		return s.service.Name + ".nowhere.svc." + domain
	case 1:
		return s.service.Name + "." + pickOne(r, w.empty...) + ".svc." + domain
	case 2:
		return "x." + s.name(domain)
	case 3:
		return "a.b.c." + s.name(domain)
	case 4:
		return pickOne(r, w.namespaces...) + ".nothing." + domain
	}
	return fmt.Sprintf("nothing-%d.%s.svc.%s", r.IntN(1000), s.service.Namespace, domain)
}

// searchedName is what a pod's resolver makes of names that were not meant for it.
func (w *nameWorld) searchedName(r *rand.Rand) string {
	first := pickOne(r, "www.example.com.", "orders.", w.one(r).name(domain), w.one(r).service.Name+".")
	return first + pickOne(r, w.one(r).service.Namespace+".svc."+domain, "svc."+domain, domain)
}

func (w *nameWorld) endpointName(r *rand.Rand) string {
	for {
		s := w.one(r)
		if labels := s.labels(); len(labels) > 0 {
			label := pickOne(r, labels...)
			if r.IntN(10) == 0 {
				label = pickOne(r, "host-9", "10-1-2-3", "x."+label, "fd00-128-0-1--ffff", "010-160-1-1")
			}
			return label + "." + s.name(domain)
		}
	}
}

func reverse(a netip.Addr) string {
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		panic(err)
	}
	return name
}

func (w *nameWorld) reverseVirtual(r *rand.Rand) string {
	for {
		if virtual, _ := w.one(r).addresses(); len(virtual) > 0 {
			return reverse(pickOne(r, virtual...))
		}
	}
}

func (w *nameWorld) reversePod(r *rand.Rand) string {
	for {
		if _, real := w.one(r).addresses(); len(real) > 0 {
			return reverse(pickOne(r, real...))
		}
	}
}

func (w *nameWorld) reverseMissing(r *rand.Rand) string {
	return reverse(netip.MustParseAddr(pickOne(r, "10.96.255.250", "10.96.0.2", "10.128.0.1", "10.190.1.1", "fd00:96::fff0", "fd00:128::9", "10.97.0.1", "192.0.2.1", "fd00:1::1", "172.16.0.1")))
}

func (w *nameWorld) reverseOdd(r *rand.Rand) string {
	return pickOne(r, "96.10.in-addr.arpa.", "0.96.10.in-addr.arpa.", "10.in-addr.arpa.", "in-addr.arpa.", "ip6.arpa.", "128.10.in-addr.arpa.", "191.10.in-addr.arpa.",
		"192.10.in-addr.arpa.", "256.0.96.10.in-addr.arpa.", "01.0.96.10.in-addr.arpa.", "x.1.0.96.10.in-addr.arpa.", "d.f.ip6.arpa.", "0.0.0.0.8.2.1.0.0.0.d.f.ip6.arpa.",
		"8.2.1.0.0.0.d.f.ip6.arpa.", "10.0.96.10.in-addr.arpa.", "g.0.0.0.8.2.1.0.0.0.d.f.ip6.arpa.")
}

func (w *nameWorld) podName(r *rand.Rand) string {
	s := w.one(r)
	address := pickOne(r, "198.51.100.7", "fd00:128::5", podAddr(1+r.IntN(namePods), corev1.IPv4Protocol).String(), podAddr(1+r.IntN(namePods), corev1.IPv6Protocol).String())
	label := dashed(address)
	if r.IntN(6) == 0 {
		label = pickOne(r, "10-1-2", "10-1-2-256", "010-1-2-3", "web-0", "fd00-128-0-0-0-0-0-5", "fd00-128--", "x.10-1-2-3", "10-1-2-3-4", "--1", "FD00-128--5")
	}
	return label + "." + pickOne(r, s.service.Namespace, s.service.Namespace, s.service.Namespace, "vacant", "nowhere") + ".pod." + domain
}

func (w *nameWorld) zoneName(r *rand.Rand) string {
	return pickOne(r, "", "dns-version.", "ns.dns.", "dns.", "svc.", "pod.", "x.dns.", "apex.dns.", w.one(r).service.Namespace+".svc.", "nowhere.svc.", "vacant.svc.",
		w.one(r).service.Namespace+".pod.", "nowhere.pod.", "x.dns-version.", "other.", "kubernetes.default.svc.", "kube-dns.kube-system.svc.", "kube-dns.kube-system.") + domain
}

func (w *nameWorld) oddName(r *rand.Rand) string {
	s := w.one(r)
	long := strings.Repeat("x", 63) + "."
	return pickOne(r,
		`a\.b.`+s.service.Namespace+".svc."+domain, `\000.`+domain, `\200\255.`+s.name(domain), "*."+s.service.Namespace+".svc."+domain, "xn--bcher-kva."+s.name(domain),
		strings.Repeat("x", 47)+"."+long+long+long+domain, long+s.name(domain), strings.Repeat("a.", 110)+domain, "_.svc."+domain, `\ .`+domain, `with\ space.svc.`+domain,
		"cluster.local.cluster.local.", "svc.svc."+domain, "pod.svc."+domain, s.service.Name+"."+s.service.Namespace+".pod."+domain, "-."+s.name(domain))
}

func (w *nameWorld) outsideName(r *rand.Rand) string {
	return pickOne(r, "www.example.com.", "nowhere.example.com.", "alias.example.com.", "v6.example.com.", "large.example.com.", "refused.example.com.", "servfail.example.com.", ".",
		"local.", "com.", "xcluster.local.", "cluster.local.example.com.", "orders.", `x\.cluster.local.`)
}

// said is what came back.
type said struct {
	silent bool
	msg    *dns.Msg
	size   int
}

// patience is how long an answer may take. Servers give up on their upstream sooner.
const patience = 8 * time.Second

// asker asks one server, one question after the other.
type asker struct {
	node *host
	to   netip.AddrPort
	udp  net.Conn
	buf  []byte
}

func newAsker(node *host, to netip.AddrPort) *asker {
	return &asker{node: node, to: to, buf: make([]byte, dns.MaxMsgSize)}
}

func (c *asker) close() {
	if c.udp != nil {
		c.udp.Close()
	}
}

// ask sends a question and takes what comes. Silence is an answer; an error means that there is no server.
func (c *asker) ask(q *asked) (said, error) {
	wire, err := q.msg.Pack()
	if err != nil {
		return said{}, fmt.Errorf("pack %s: %w", q, err)
	}
	if q.spoil != nil {
		wire = q.spoil(wire)
	}
	wait := patience
	if q.odd == "a response" {
		wait = 300 * time.Millisecond // nobody should answer that
	}
	if q.tcp {
		return c.overTCP(wire, wait)
	}
	if c.udp == nil {
		if c.udp, err = c.dial("udp"); err != nil {
			return said{}, err
		}
	}
	_ = c.udp.SetDeadline(time.Now().Add(wait))
	if _, err := c.udp.Write(wire); err != nil {
		return said{}, fmt.Errorf("ask %s: %w", c.to, err)
	}
	for {
		n, err := c.udp.Read(c.buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.udp.Close() // what comes later belongs to nobody
			c.udp = nil
			return said{silent: true}, nil
		}
		if err != nil {
			return said{}, fmt.Errorf("hear %s: %w", c.to, err)
		}
		if n >= 2 && binary.BigEndian.Uint16(c.buf) == q.msg.Id {
			return read(c.buf[:n])
		}
	}
}

func (c *asker) dial(network string) (conn net.Conn, err error) {
	err = c.node.Do(func() error {
		conn, err = net.Dial(network, c.to.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w", c.to, err)
	}
	return conn, nil
}

func (c *asker) overTCP(wire []byte, wait time.Duration) (said, error) {
	conn, err := c.dial("tcp")
	if err != nil {
		return said{}, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(wait))
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	if _, err := conn.Write(framed); err != nil {
		return said{silent: true}, nil
	}
	if _, err := io.ReadFull(conn, c.buf[:2]); err != nil {
		return said{silent: true}, nil // it hung up, or says nothing
	}
	n := int(binary.BigEndian.Uint16(c.buf))
	if _, err := io.ReadFull(conn, c.buf[:n]); err != nil {
		return said{silent: true}, nil
	}
	return read(c.buf[:n])
}

func read(wire []byte) (said, error) {
	m := new(dns.Msg)
	if err := m.Unpack(slices.Clone(wire)); err != nil {
		return said{}, fmt.Errorf("an answer cannot be read: %w: %x", err, wire)
	}
	return said{msg: m, size: len(wire)}, nil
}
