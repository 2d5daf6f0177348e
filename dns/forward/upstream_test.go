// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// resolver is an upstream made for tests: real sockets on loopback, and answers as its script says. What it is asked to find loops is not in its books.
type resolver struct {
	addr  netip.AddrPort
	asked [2]atomic.Int64 // over UDP, and over TCP or TLS
	conns atomic.Int64
	wg    sync.WaitGroup
	udp   *net.UDPConn
	tcp   net.Listener

	mu   sync.Mutex
	last *mdns.Msg
	open map[net.Conn]bool
}

// script makes the messages that answer a query, in order; none is silence.
type script func(q *mdns.Msg, tcp bool) [][]byte

// serve is how a connection is treated, if not one answer after the other.
type serve func(r *resolver, conn net.Conn)

func newResolver(t testing.TB, play script) *resolver { return listen(t, "127.0.0.1", play, nil, nil) }

// listen starts a resolver at an address; with a certificate, its stream is TLS. Without a script there is no UDP.
func listen(t testing.TB, ip string, play script, treat serve, cert *tls.Certificate) *resolver {
	t.Helper()
	r := &resolver{open: make(map[net.Conn]bool)}
	if treat == nil {
		treat = func(r *resolver, conn net.Conn) { r.oneByOne(conn, play) }
	}
	for try := 0; ; try++ {
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
		if err != nil {
			t.Fatal(err)
		}
		r.addr = udp.LocalAddr().(*net.UDPAddr).AddrPort()
		r.addr = netip.AddrPortFrom(r.addr.Addr().Unmap(), r.addr.Port())
		tcp, err := net.Listen("tcp", r.addr.String())
		if err == nil {
			r.udp, r.tcp = udp, tcp
			break
		}
		udp.Close()
		if try == 10 {
			t.Fatal(err)
		}
	}
	if cert != nil {
		r.tcp = tls.NewListener(r.tcp, &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"dot"}})
	}
	r.wg.Go(func() { r.serveUDP(play) })
	r.wg.Go(func() {
		for {
			conn, err := r.tcp.Accept()
			if err != nil {
				return
			}
			r.conns.Add(1)
			r.mu.Lock()
			r.open[conn] = true
			r.mu.Unlock()
			r.wg.Go(func() {
				defer conn.Close()
				treat(r, conn)
			})
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *resolver) stop() {
	r.udp.Close()
	r.tcp.Close()
	r.mu.Lock()
	for c := range r.open {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// note reads a query and keeps the books.
func (r *resolver) note(b []byte, transport int) *mdns.Msg {
	q := new(mdns.Msg)
	if q.Unpack(b) != nil {
		return nil
	}
	if q.Question[0].Qtype != mdns.TypeHINFO {
		r.asked[transport].Add(1)
		r.mu.Lock()
		r.last = q
		r.mu.Unlock()
	}
	return q
}

func (r *resolver) lastAsked() *mdns.Msg {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *resolver) serveUDP(play script) {
	buf := make([]byte, 4096)
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if q := r.note(buf[:n], 0); q != nil {
			for _, b := range play(q, false) {
				r.udp.WriteToUDPAddrPort(b, from)
			}
		}
	}
}

// read reads one query of a connection; nil at its end.
func (r *resolver) read(conn net.Conn) *mdns.Msg {
	b, err := readFramed(conn)
	if err != nil {
		return nil
	}
	return r.note(b, 1)
}

func readFramed(conn net.Conn) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(conn, b)
	return b, err
}

func (r *resolver) oneByOne(conn net.Conn, play script) {
	for q := r.read(conn); q != nil; q = r.read(conn) {
		for _, b := range play(q, true) {
			conn.Write(framed(b))
		}
	}
}

func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// says makes a script of a function that completes the answer.
func says(f func(m *mdns.Msg)) script {
	return func(q *mdns.Msg, _ bool) [][]byte {
		m := new(mdns.Msg).SetReply(q)
		m.RecursionAvailable = true
		f(m)
		m.Compress = true
		b, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return [][]byte{b}
	}
}

func rr(s string) mdns.RR {
	r, err := mdns.NewRR(s)
	if err != nil {
		panic(err)
	}
	return r
}

func rrs(lines ...string) (out []mdns.RR) {
	for _, l := range lines {
		out = append(out, rr(l))
	}
	return out
}

// addresses answers every question with an address.
var addresses = says(func(m *mdns.Msg) { m.Answer = rrs(m.Question[0].Name + " 60 IN A 192.0.2.80") })

func silent(*mdns.Msg, bool) [][]byte { return nil }

// mortal answers with an address unless it is dead, which it is at first.
func mortal(t testing.TB) (*resolver, *atomic.Bool) {
	dead := new(atomic.Bool)
	dead.Store(true)
	return newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		if dead.Load() {
			return nil
		}
		return addresses(q, tcp)
	}), dead
}

// held answers with an address once the channel is closed.
func held(t testing.TB) (*resolver, chan struct{}) {
	release := make(chan struct{})
	return newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		if q.Question[0].Qtype == mdns.TypeA {
			<-release
		}
		return addresses(q, tcp)
	}), release
}

// journal is a logger's lines.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) count(s string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.buf.String(), s)
}

// rig is a forwarder in a test, with a clock that is set by hand.
type rig struct {
	*Forwarder
	t     testing.TB
	log   *journal
	clock *atomic.Int64
}

func pools(upstreams ...*resolver) []Pool {
	p := Pool{Zone: ".", Policy: Sequential}
	for _, u := range upstreams {
		p.Upstreams = append(p.Upstreams, Upstream{Addr: u.addr})
	}
	return []Pool{p}
}

// start makes a forwarder of one pool for everything, in sequence.
func start(t testing.TB, change func(*Options), upstreams ...*resolver) rig {
	t.Helper()
	begin, clock, log := time.Now(), new(atomic.Int64), new(journal)
	o := Options{Timeout: 300 * time.Millisecond, Now: func() time.Time { return begin.Add(time.Duration(clock.Load())) },
		Logger: slog.New(slog.NewTextHandler(log, nil))}
	if len(upstreams) > 0 {
		o.Pools = pools(upstreams...)
	}
	if change != nil {
		change(&o)
	}
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(canceled()) })
	return rig{f, t, log, clock}
}

// untested has the upstreams sent nothing but what the test asks.
func (r rig) untested() rig {
	for _, p := range r.all {
		for _, u := range p.upstreams {
			u.tested.Store(true)
		}
	}
	return r
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func question(name string, qtype uint16) Question {
	return Question{Name: wireLower(name), Type: qtype}
}

// header is what Append and appendTo want before the records: a header, and the question as the client spelled it.
func header(name string, qtype uint16) []byte {
	b := make([]byte, headerSize, 4096)
	b[2], b[3], b[5] = 0x81, 0x80, 1
	n, err := mdns.PackDomainName(name, b[headerSize:headerSize+256], 0, nil, false)
	if err != nil {
		panic(err)
	}
	b = b[:headerSize+n]
	b = binary.BigEndian.AppendUint16(b, qtype)
	return binary.BigEndian.AppendUint16(b, mdns.ClassINET)
}

// ask asks as a server does: the cache first, then the rest; and reads what comes out.
func (r rig) ask(name string, qtype uint16, change ...func(*Question)) *mdns.Msg {
	r.t.Helper()
	q := question(name, qtype)
	for _, c := range change {
		c(&q)
	}
	m := new(mdns.Msg)
	resp, _, ok := r.Append(header(name, qtype), q)
	if !ok {
		reply, err := r.Ask(context.Background(), q)
		if err != nil {
			r.t.Fatalf("ask %s: %v", name, err)
		}
		resp = reply.appendTo(header(name, qtype))
		if err := m.Unpack(resp); err != nil {
			r.t.Fatalf("%s: %v", name, err)
		}
		if code, text, ok := reply.ExtendedError(); ok {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &mdns.EDNS0_EDE{InfoCode: code, ExtraText: text})
		}
		return m
	}
	if err := m.Unpack(resp); err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	return m
}

// ede is the extended error of a message of ask.
func ede(m *mdns.Msg) (code int, text string) {
	if opt := m.IsEdns0(); opt != nil {
		e := opt.Option[0].(*mdns.EDNS0_EDE)
		return int(e.InfoCode), e.ExtraText
	}
	return -1, ""
}

// data is a message in a line: code, answers, and with a slash the denial.
func data(m *mdns.Msg) string {
	out := mdns.RcodeToString[m.Rcode]
	words := func(rrs []mdns.RR) {
		for _, r := range rrs {
			f := strings.Fields(r.String())
			out += " " + strings.Join(append([]string{f[0], f[3]}, f[4:]...), " ")
		}
	}
	words(m.Answer)
	if len(m.Ns) > 0 {
		out += " /"
		words(m.Ns)
	}
	return out
}

// want compares.
func want(t testing.TB, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// eventually waits for something that another goroutine brings about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// certificate makes a certificate for names and addresses, signed by itself.
func certificate(t testing.TB, hosts ...string) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
