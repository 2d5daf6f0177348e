// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	wire "encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/testnet"
)

// datagram is one of a sender's: which sender's, which of them, and when it was sent. Everything runs on one machine, which has one clock.
type datagram struct {
	sender uint32
	number uint64
	sent   time.Time
}

func (d datagram) bytes() []byte {
	b := wire.BigEndian.AppendUint32(nil, d.sender)
	b = wire.BigEndian.AppendUint64(b, d.number)
	return wire.BigEndian.AppendUint64(b, uint64(d.sent.UnixNano()))
}

func readDatagram(b []byte) (datagram, bool) {
	if len(b) != 20 {
		return datagram{}, false
	}
	return datagram{wire.BigEndian.Uint32(b), wire.BigEndian.Uint64(b[4:]), time.Unix(0, int64(wire.BigEndian.Uint64(b[12:])))}, true
}

// sender sends datagrams from one socket all the time, so that they are all of one flow.
type sender struct {
	id   uint32
	conn net.Conn
	mu   sync.Mutex
	sent []time.Time // by number; zero for those that the kernel refused to send
	stop chan struct{}
	done chan struct{}
}

// send starts a sender of one datagram a millisecond.
func (l *lone) send(h *testnet.Host, id uint32, to netip.AddrPort) *sender {
	l.t.Helper()
	conn, err := h.Dial(context.Background(), "udp", "", to)
	l.ok(err)
	s := &sender{id: id, conn: conn, stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			// A refusal of an earlier one is reported instead of sending this one.
			s.mu.Lock()
			now := time.Now()
			if _, err := conn.Write(datagram{id, uint64(len(s.sent)), now}.bytes()); err != nil {
				now = time.Time{}
			}
			s.sent = append(s.sent, now)
			s.mu.Unlock()
		}
	}()
	l.t.Cleanup(s.end)
	return s
}

func (s *sender) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	<-s.done
	s.conn.Close()
}

// next is the number of the next datagram.
func (s *sender) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

// udpPod is a pod of the node n2 that takes note of every datagram. Another one may have had its address before.
type udpPod struct {
	addr string
	conn net.PacketConn
	done chan struct{}
	mu   sync.Mutex
	got  []datagram
}

func (l *lone) newUDPPod(addr string) *udpPod {
	l.t.Helper()
	conn, err := l.far.NS.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr(addr), farPort).String())
	l.ok(err)
	l.ok(conn.(*net.UDPConn).SetReadBuffer(1 << 20))
	p := &udpPod{addr: addr, conn: conn, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		for buf := make([]byte, 64); ; {
			n, _, err := conn.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if d, ok := readDatagram(buf[:n]); ok && err == nil {
				p.mu.Lock()
				p.got = append(p.got, d)
				p.mu.Unlock()
			}
		}
	}()
	l.t.Cleanup(p.end)
	return p
}

func (p *udpPod) end() {
	p.conn.Close()
	<-p.done
}

// from is what came from a sender.
func (p *udpPod) from(id uint32) []datagram {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(p.got), func(d datagram) bool { return d.sender != id })
}

// life is a pod as an endpoint of the Service: since when the API server may know that it is one, since when it knows that it is none, and since when the
// agent has acknowledged that.
type life struct {
	pod                  *udpPod
	begun, stored, ended time.Time // the latter two are zero while it is an endpoint
}

// TestUDPNeverReachesAStranger: senders that keep their sockets send through a Service, by its ClusterIP and by a node port, while its endpoints change, vanish
// and return, and their addresses go to other pods. Once a change is acknowledged, no datagram reaches a pod that is no endpoint, and none reaches nobody.
func TestUDPNeverReachesAStranger(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLone(t)
	ports := []corev1.ServicePort{{Name: "sip", Port: 5060, Protocol: corev1.ProtocolUDP}}
	mine := l.service("mine", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: dualStack(), Ports: ports})
	others := l.service("others", corev1.ServiceSpec{IPFamilyPolicy: dualStack(), Ports: ports})
	l.startAgent()
	l.awaitReady("agent")
	l.awaitAll("agent")

	nodePort := uint16(mine.Spec.Ports[0].NodePort)
	senders := []*sender{
		l.send(l.pod, 0, at(mine, true)),
		l.send(l.pod, 1, at(mine, false)),
		l.send(l.outside, 2, netip.AddrPortFrom(netip.MustParseAddr(n1OutAddr), nodePort)),
		l.send(l.pod, 3, netip.AddrPortFrom(netip.MustParseAddr(n1Addr6), nodePort)),
		l.send(l.n1, 4, at(mine, true)),
	}
	is4 := []bool{true, false, true, false, true}

	// A place is an address of each family, which one pod after another has.
	const places = 6
	address := func(place int, v4 bool) string {
		if v4 {
			return farPod(place)
		}
		return farPod6(place)
	}
	type tenant struct {
		lives [2]*life // by family: v6, v4
		mine  bool
	}
	var all []*life
	var strangers []*udpPod
	tenants := make([]*tenant, places)
	family := map[bool]int{false: 0, true: 1}
	var gone, came []time.Duration
	marks := make([][][2]int, len(senders)) // of each sender: numbers from and to which nothing changed, and there was an endpoint

	endpoints := func() (mineAddrs, othersAddrs []string) {
		for place, tn := range tenants {
			if tn == nil {
				continue
			}
			for _, v4 := range []bool{true, false} {
				if tn.mine {
					mineAddrs = append(mineAddrs, address(place, v4))
				} else {
					othersAddrs = append(othersAddrs, address(place, v4))
				}
			}
		}
		return
	}
	awaitGone := func(addr string) {
		t.Helper()
		var none string
		if err := l.ask("agent").Get(context.Background(), "/v1/wait", url.Values{"gone": {addr}, "timeout": {"20s"}}, &none); err != nil {
			t.Fatal(err)
		}
	}
	frontends := func(v4 bool) (model.Frontend, model.Frontend) {
		a := at(mine, v4)
		return model.Frontend{Addr: a.Addr(), Protocol: model.UDP, Port: a.Port()},
			model.Frontend{Addr: model.Unspecified(a.Addr()), Protocol: model.UDP, Port: nodePort}
	}
	inKernel := func(addr string) error {
		a := netip.AddrPortFrom(netip.MustParseAddr(addr), farPort)
		clusterIP, node := frontends(a.Addr().Is4())
		for _, f := range []model.Frontend{clusterIP, node} {
			e, ok, err := nft.Read(nft.Options{NetNS: l.n1.NS}, f)
			if err != nil || !ok || !slices.Contains(e.Inside.Backends, a) {
				return fmt.Errorf("%s has no %s: %v %v", f, a, e, err)
			}
		}
		return nil
	}

	const steps = 80
	for range steps {
		// Who changes: some leave, which frees their places; then some come, to any free place.
		var leaving, coming []int
		for _, place := range r.Perm(places) {
			switch {
			case tenants[place] != nil && r.IntN(5) < 3:
				leaving = append(leaving, place)
			case tenants[place] == nil && r.IntN(3) > 0:
				coming = append(coming, place)
			}
		}
		var ending []*life
		for _, place := range leaving {
			if tn := tenants[place]; tn.mine {
				ending = append(ending, tn.lives[0], tn.lives[1])
			}
		}
		old := slices.Clone(tenants)
		for _, place := range leaving {
			tenants[place] = nil
		}
		mineAddrs, othersAddrs := endpoints()
		l.endpoints(others, farPort, othersAddrs...)
		l.endpoints(mine, farPort, mineAddrs...)
		stored := time.Now()
		for _, place := range leaving {
			awaitGone(address(place, true))
			awaitGone(address(place, false))
		}
		acked := time.Now()
		if len(ending) > 0 {
			gone = append(gone, acked.Sub(stored))
		}
		for _, e := range ending {
			e.stored, e.ended = stored, acked
		}
		// The pods end a little later, when the network has long let go of them; meanwhile they are strangers with a socket.
		time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
		for _, place := range leaving {
			for _, e := range old[place].lives {
				e.pod.end()
			}
		}
		for _, place := range coming {
			tn := &tenant{mine: r.IntN(3) > 0}
			for _, v4 := range []bool{true, false} {
				e := &life{pod: l.newUDPPod(address(place, v4)), begun: time.Now()}
				tn.lives[family[v4]] = e
				if tn.mine {
					all = append(all, e)
				} else {
					strangers = append(strangers, e.pod)
				}
			}
			tenants[place] = tn
		}
		mineAddrs, othersAddrs = endpoints()
		l.endpoints(others, farPort, othersAddrs...)
		l.endpoints(mine, farPort, mineAddrs...)
		stored = time.Now()
		for _, a := range mineAddrs {
			eventually(t, 20*time.Second, "a new endpoint in the kernel", func() error { return inKernel(a) })
		}
		if len(mineAddrs) > 0 {
			came = append(came, time.Since(stored))
		}
		// The acknowledgement comes after the flows were looked at, and both are after the kernel had the endpoints.
		l.settled(t)
		begin := make([]int, len(senders))
		for i, s := range senders {
			begin[i] = s.next()
		}
		time.Sleep(time.Duration(20+r.IntN(60)) * time.Millisecond)
		if len(mineAddrs) > 0 {
			for i, s := range senders {
				// The first of them may be the one that is told of an earlier refusal.
				marks[i] = append(marks[i], [2]int{begin[i] + 2, s.next()})
			}
		}
	}
	for _, s := range senders {
		s.end()
	}
	time.Sleep(50 * time.Millisecond) // for the last ones to be read

	reached := make([]map[uint64]bool, len(senders))
	total, late, latest := 0, 0, time.Duration(0)
	var strayed []time.Duration
	for i, s := range senders {
		reached[i] = map[uint64]bool{}
		for _, e := range all {
			for _, d := range e.pod.from(s.id) {
				reached[i][d.number] = true
				total++
				if d.sent.Before(e.begun) {
					t.Errorf("sender %d: %s got datagram %d before it was an endpoint", i, e.pod.addr, d.number)
				}
				if !e.ended.IsZero() && d.sent.After(e.ended) {
					late++
					latest = max(latest, d.sent.Sub(e.ended))
				}
			}
		}
		for _, p := range strangers {
			if got := p.from(s.id); len(got) > 0 {
				t.Errorf("sender %d: %s, which never was an endpoint, got %d datagrams", i, p.addr, len(got))
			}
		}
		lost, quietly := 0, 0
		for _, m := range marks[i] {
			for n := m[0]; n < m[1]; n++ {
				if s.sent[n].IsZero() {
					lost++ // refused
					continue
				}
				quietly++
				if !reached[i][uint64(n)] {
					lost++
				}
			}
		}
		t.Logf("sender %d (IPv4 %t): %d datagrams, %d of them while nothing changed and there was an endpoint, of which %d did not arrive", i, is4[i], len(s.sent), quietly, lost)
		if lost > 0 {
			t.Errorf("sender %d: %d datagrams were lost while nothing changed", i, lost)
		}
		if quietly < 1000 {
			t.Errorf("sender %d: only %d datagrams sent while nothing changed", i, quietly)
		}
	}
	for _, e := range all {
		if n := len(e.pod.got); n > 0 && !e.stored.IsZero() {
			strayed = append(strayed, max(0, e.pod.got[n-1].sent.Sub(e.stored)))
		}
	}
	if late > 0 {
		t.Errorf("%d datagrams reached a pod after the agent had acknowledged that it is no endpoint, up to %v after", late, latest)
	}
	flows := l.statusJSON(t).Dataplane.Conntrack
	t.Logf("%d datagrams arrived at %d pods that were endpoints; %d pods with re-used addresses were none; %d flows removed", total, len(all), len(strangers), flows)
	t.Logf("from API response to acknowledgement: gone %s; come %s", spread(gone), spread(came))
	t.Logf("from API response to the last datagram that a removed endpoint got: %s", spread(strayed))
	if flows == 0 {
		t.Error("no flow was removed: nothing was tested")
	}
}

// settled waits until the agent has acknowledged all that has arrived at it.
func (l *lone) settled(t testing.TB) {
	t.Helper()
	eventually(t, 20*time.Second, "agent settled", func() error {
		r, err := l.report()
		if err == nil && r.Progress.Arrived != r.Progress.Acknowledged {
			err = fmt.Errorf("%+v", r.Progress)
		}
		return err
	})
}

// spread is the middle and the end of a distribution.
func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "never"
	}
	slices.Sort(d)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, max %.1f ms of %d", ms(d[len(d)/2]), ms(d[len(d)*99/100]), ms(d[len(d)-1]), len(d))
}
