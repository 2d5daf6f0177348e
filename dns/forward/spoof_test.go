// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

const good = "NOERROR a.example.com. A 192.0.2.80"

// forge sends a message in the upstream's name before the right answer.
func forge(times int, change func(m *mdns.Msg)) script {
	return func(q *mdns.Msg, tcp bool) (out [][]byte) {
		if !tcp && q.Question[0].Qtype == typeA {
			for range times {
				out = append(out, says(func(m *mdns.Msg) {
					m.Answer = rrs(m.Question[0].Name + " 60 IN A 203.0.113.66")
					change(m)
				})(q, tcp)...)
			}
		}
		return append(out, addresses(q, tcp)...)
	}
}

// Messages that are not the answer are passed over and counted: the right one behind them counts.
func TestSpoofed(t *testing.T) {
	for name, change := range map[string]func(m *mdns.Msg){
		"id":       func(m *mdns.Msg) { m.Id++ },
		"name":     func(m *mdns.Msg) { m.Question[0].Name = "evil.example.com." },
		"type":     func(m *mdns.Msg) { m.Question[0].Qtype = typeAAAA },
		"class":    func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS },
		"query":    func(m *mdns.Msg) { m.Response = false },
		"opcode":   func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify },
		"question": func(m *mdns.Msg) { m.Question = nil },
	} {
		t.Run(name, func(t *testing.T) {
			up := newResolver(t, forge(2, change))
			r := start(t, nil, up)
			want(t, data(r.ask("a.example.com.", typeA)), good)
			if s := r.Status()[0]; s.SuspectedSpoofs != 2 || s.State != "up" || s.ChangesCase {
				t.Errorf("status %+v", s)
			}
			if n := up.asked[1].Load(); n != 0 {
				t.Errorf("asked over TCP %d times", n)
			}
		})
		t.Run("flood of "+name, func(t *testing.T) {
			up := newResolver(t, forge(100, change))
			r := start(t, nil, up)
			want(t, data(r.ask("a.example.com.", typeA)), good)
			if s := r.Status()[0]; s.SuspectedSpoofs < suspectAfter {
				t.Errorf("status %+v", s)
			}
			if n := up.asked[1].Load(); n != 1 {
				t.Errorf("asked over TCP %d times", n)
			}
		})
	}
}

// What comes from another address or port than was asked does not reach the question, even with everything right.
func TestSpoofedAddress(t *testing.T) {
	for name, ip := range map[string]net.IP{"address": net.IPv4(127, 0, 0, 2), "port": net.IPv4(127, 0, 0, 1)} {
		t.Run(name, func(t *testing.T) {
			other, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			up, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			defer up.Close()
			wg.Go(func() {
				buf := make([]byte, 4096)
				for {
					n, from, err := up.ReadFromUDPAddrPort(buf)
					q := new(mdns.Msg)
					if err != nil || q.Unpack(buf[:n]) != nil {
						return
					}
					other.WriteToUDPAddrPort(says(func(m *mdns.Msg) { m.Rcode = mdns.RcodeNameError })(q, false)[0], from)
					up.WriteToUDPAddrPort(addresses(q, false)[0], from)
				}
			})
			r := start(t, func(o *Options) {
				o.Pools = []Pool{{Zone: ".", Upstreams: []Upstream{{Addr: up.LocalAddr().(*net.UDPAddr).AddrPort()}}}}
			})
			want(t, data(r.ask("a.example.com.", typeA)), good)
		})
	}
}

// recase makes an upstream of another one that answers in lower case.
func recase(play script) script {
	return func(q *mdns.Msg, tcp bool) [][]byte {
		q.Question[0].Name = strings.ToLower(q.Question[0].Name)
		return play(q, tcp)
	}
}

// A long name has no letter in upper case once in 2^30.
const letters = "abcdefghijklmnopqrstuvwxyzabcd.example.com."

// An upstream that changes the case is found out over TCP, once.
func TestChangesCase(t *testing.T) {
	up := newResolver(t, recase(addresses))
	r := start(t, nil, up).untested()
	for i := range 3 {
		name := fmt.Sprintf("%d.%s", i, letters)
		want(t, data(r.ask(name, typeA)), "NOERROR "+name+" A 192.0.2.80")
	}
	if s := r.Status()[0]; !s.ChangesCase || s.SuspectedSpoofs != 1 || s.Failed != 0 || r.log.count("changes the case") != 1 {
		t.Errorf("status %+v, log %s", s, r.log.buf.String())
	}
	if u, v := up.asked[0].Load(), up.asked[1].Load(); u != 3 || v != 1 {
		t.Errorf("asked %d times over UDP and %d over TCP", u, v)
	}
}

// One that has no TCP is found out too, and one question that a forger met finds out nobody.
func TestChangesCaseNoTCP(t *testing.T) {
	up := newResolver(t, recase(addresses))
	up.tcp.Close()
	r := start(t, func(o *Options) { o.Pools[0].MaxFails = -1 }, up).untested()
	for i := range 2 {
		if m := r.ask(fmt.Sprintf("%d.%s", i, letters), typeA); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("an answer in the wrong case was believed: %v", m)
		}
	}
	want(t, data(r.ask("c."+letters, typeA)), "NOERROR c."+letters+" A 192.0.2.80")
	if s := r.Status()[0]; !s.ChangesCase {
		t.Errorf("status %+v", s)
	}

	forger := newResolver(t, forge(1, func(m *mdns.Msg) { m.Question[0].Name = strings.ToLower(m.Question[0].Name) }))
	r = start(t, nil, forger).untested()
	want(t, data(r.ask(letters, typeA)), "NOERROR "+letters+" A 192.0.2.80")
	if s := r.Status()[0]; s.ChangesCase || s.SuspectedSpoofs != 1 {
		t.Errorf("status %+v", s)
	}
	// Nor do several that are not in a row.
	for i := range casesForgiven {
		r.ask("in-peace."+letters, typeAAAA)
		r.clock.Add(int64(time.Hour))
		r.ask(fmt.Sprintf("%d.%s", i, letters), typeA)
	}
	if s := r.Status()[0]; s.ChangesCase || s.SuspectedSpoofs != 1+casesForgiven {
		t.Errorf("status %+v", s)
	}
}

// Ports, ids and cases are not to be guessed from those before.
func TestUnpredictable(t *testing.T) {
	var mu sync.Mutex
	ids, ports, spellings := make(map[uint16]bool), make(map[uint16]bool), make(map[string]bool)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer conn.Close()
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			q := new(mdns.Msg)
			if err != nil || q.Unpack(buf[:n]) != nil {
				return
			}
			mu.Lock()
			if q.Question[0].Qtype == typeA {
				ids[q.Id], ports[from.Port()] = true, true
				spellings[q.Question[0].Name[:30]] = true
			}
			mu.Unlock()
			conn.WriteToUDPAddrPort(addresses(q, false)[0], from)
		}
	})
	r := start(t, func(o *Options) {
		o.Pools = []Pool{{Zone: ".", Upstreams: []Upstream{{Addr: conn.LocalAddr().(*net.UDPAddr).AddrPort()}}}}
		o.Caching.Size = -1
	})
	const n = 3 * lanes * laneQuestions
	for range n {
		r.ask(letters, typeA)
	}
	mu.Lock()
	defer mu.Unlock()
	// Of n random ids about n²/2/65536 are met before.
	if least := n - n*n/65536; len(ids) < least {
		t.Errorf("%d ids in %d questions, want %d", len(ids), n, least)
	}
	if len(ports) < 2*lanes {
		t.Errorf("%d ports in %d questions", len(ports), n)
	}
	if len(spellings) < n-1 {
		t.Errorf("%d spellings in %d questions", len(spellings), n)
	}
}

// A socket that is old is not used again.
func TestOldSocket(t *testing.T) {
	r := start(t, nil).untested()
	for age, want := range map[time.Duration]int{0: 0, laneTime: 1} {
		u := newUpstream(r.Forwarder, &pool{}, Upstream{Addr: netip.MustParseAddrPort("127.0.0.1:53")})
		for i := range u.lanes {
			u.lanes[i] = &link{u: u, born: time.Now().Add(-age)}
		}
		before := u.lanes
		u.link(false).leave()
		replaced := 0
		for i, l := range u.lanes {
			if l != before[i] {
				replaced++
				if !before[i].ended() {
					t.Error("the old one goes on")
				}
			}
		}
		if replaced != want {
			t.Errorf("%d sockets of age %s were replaced, want %d", replaced, age, want)
		}
		u.close()
	}
}

// Below a zone with a very long name there is none that is nobody else's.
func TestNoRoomForLoops(t *testing.T) {
	zone := strings.Repeat(strings.Repeat("x", 60)+".", 4)
	r := start(t, func(o *Options) { o.Pools[0].Zone = zone }, newResolver(t, addresses))
	u := r.all[0].upstreams[0]
	u.testLoop()
	if n := u.f.watched; len(n) != 0 || u.lanes != [lanes]*link{} {
		t.Errorf("it was asked for %v", n)
	}
	want(t, data(r.ask("a."+zone, typeA)), "NOERROR a."+zone+" A 192.0.2.80")
}

// An upstream that sends questions back is left out, says so, and is taken in again when it has stopped.
func TestLoop(t *testing.T) {
	var (
		r    rig
		made = make(chan struct{})
	)
	back := newResolver(t, func(q *mdns.Msg, tcp bool) [][]byte {
		<-made
		if q.Question[0].Qtype == typeA {
			return nil // it waits for an answer to the same question
		}
		// The forwarder behind it asks in its own case.
		reply, err := r.Ask(context.Background(), question(q.Question[0].Name, q.Question[0].Qtype))
		if err != nil {
			return nil
		}
		m := reply.Msg()
		m.Id, m.Question = q.Id, q.Question
		b, _ := m.Pack()
		return [][]byte{b}
	})
	r = start(t, nil, back)
	close(made)
	m := r.ask("a.example.com.", typeA)
	if _, text := ede(m); m.Rcode != mdns.RcodeServerFailure {
		t.Errorf("%v: %s", m, text)
	}
	eventually(t, "it is found out", func() bool { return r.Status()[0].State == "loop" })
	if s := r.Status()[0]; !strings.Contains(s.Why, "sends this server's questions back") || r.log.count("left out: forward to the resolver") != 1 {
		t.Errorf("status %+v, log %s", s, r.log.buf.String())
	}
	asked := back.asked[0].Load()
	m = r.ask("b.example.com.", typeA)
	if _, text := ede(m); m.Rcode != mdns.RcodeServerFailure || !strings.Contains(text, "every upstream sends questions back") || back.asked[0].Load() != asked {
		t.Errorf("%v, asked %d times", m, back.asked[0].Load()-asked)
	}
	// A made-up name that is nobody's is a name like any other.
	if r.cameBack(question("0123456789abcdef.0123456789abcdef.", mdns.TypeHINFO)) {
		t.Error("a name of somebody else's was taken for this server's")
	}
}

func TestLoopEnds(t *testing.T) {
	up := newResolver(t, addresses)
	r := start(t, nil, up)
	u := r.all[0].upstreams[0]
	u.loops()
	u.loops()
	if n := r.log.count("left out"); n != 1 {
		t.Errorf("%d lines", n)
	}
	u.testLoop() // as it is again after loopAgain
	if s := r.Status()[0]; s.State != "up" || s.Why != "" || r.log.count("no longer sends questions back") != 1 {
		t.Errorf("status %+v", s)
	}
	want(t, data(r.ask("a.example.com.", typeA)), good)
}

// An answer that comes too late, or twice, is no forgery.
func TestLateAnswer(t *testing.T) {
	for _, stream := range []bool{false, true} {
		r := start(t, nil, newResolver(t, silent)).untested()
		u := r.all[0].upstreams[0]
		msg, sent := message(question("www.example.com.", typeA), false, true, false)
		q := new(mdns.Msg)
		if err := q.Unpack(msg[2:]); err != nil {
			t.Fatal(err)
		}
		b := addresses(q, stream)[0]
		c := &call{question: sent, done: make(chan answer, 1)}
		l := &link{u: u, stream: stream, waiting: map[uint16]*call{q.Id: nil}}
		if !l.deliver(b) {
			t.Errorf("stream %t: a late answer was taken for nobody's", stream)
		}
		l.waiting[q.Id] = c
		if !l.deliver(b) || (<-c.done).err != nil {
			t.Errorf("stream %t: no answer", stream)
		}
		if again := l.deliver(b); again == stream {
			t.Errorf("stream %t: the same answer again: %t", stream, again)
		}
		// On a connection it is a mistake of the upstream's, and ends that.
		if n := u.counts.suspect.Load(); n != map[bool]uint64{true: 1}[stream] {
			t.Errorf("stream %t: %d suspected", stream, n)
		}
	}
}

// FuzzDeliver: whatever a datagram holds, it is the answer to the question or it is not, and no harm is done.
func FuzzDeliver(f *testing.F) {
	q := question("www.example.com.", typeA)
	msg, sent := message(q, true, true, false)
	f.Add(msg[2:], true)
	reply := func(change func(m *mdns.Msg)) []byte {
		m := new(mdns.Msg)
		if err := m.Unpack(msg[2:]); err != nil {
			f.Fatal(err)
		}
		return says(change)(m, false)[0]
	}
	f.Add(reply(func(*mdns.Msg) {}), true)
	f.Add(reply(func(m *mdns.Msg) { m.Rcode, m.Question, m.Extra = mdns.RcodeFormatError, nil, nil }), false)
	f.Add(reply(func(m *mdns.Msg) { m.Question[0].Name = "www.example.com." }), false)
	f.Add(reply(func(m *mdns.Msg) { m.Question[0].Name = "ww.example.com." }), true)
	f.Fuzz(func(t *testing.T, b []byte, mixed bool) {
		o := Options{Pools: []Pool{{Zone: ".", Upstreams: []Upstream{{Addr: netip.MustParseAddrPort("192.0.2.1:53")}}}}}
		fw, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		defer fw.Close(canceled())
		for _, stream := range []bool{false, true} {
			c := &call{question: sent, mixed: mixed, done: make(chan answer, 1)}
			l := &link{u: fw.all[0].upstreams[0], stream: stream, waiting: map[uint16]*call{0: c}, born: time.Now()}
			known := l.deliver(b)
			select {
			case a := <-c.done:
				if a.err != nil {
					break
				}
				if !known || a.msg[2]&0x80 == 0 || len(a.msg) > headerSize && string(a.msg[headerSize:headerSize+len(q.Name)]) != string(q.Name) {
					t.Errorf("taken for the answer: %x", b)
				}
				if mixed && !stream && len(b) > headerSize && string(b[headerSize:headerSize+len(sent)]) != string(sent) {
					t.Errorf("in another case: %x", b)
				}
			default:
				if l.waiting[0] != c {
					t.Errorf("the question is gone, and has no answer: %x", b)
				}
			}
		}
	})
}
