// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package socketlb

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

// scene is a node with two pods: a client and a neighbour, of whom only the client's network namespace is told. The node itself has the endpoints' addresses.
type scene struct {
	t                       *testing.T
	b                       *model.Builder
	node, client, neighbour *testnet.Host
	pods                    map[netip.Addr]uint64 // by the pods' addresses
	sockets                 *Target
}

func addr(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

// endpoints are the addresses of endpoint i, and vips those of Service i, one of each family.
func endpoints(i int) [2]netip.Addr {
	return [2]netip.Addr{addr("10.244.2.%d", i), addr("fd00:244:0:2::%x", i)}
}
func vips(i int) []netip.Addr { return []netip.Addr{addr("10.96.0.%d", i), addr("fd00:96::%x", i)} }

func name(i int) model.Name { return model.Name{Namespace: "default", Name: fmt.Sprint("s", i)} }

func newScene(t *testing.T) *scene {
	testnet.MustRoot(t)
	w := testnet.New(t)
	s := &scene{t: t, b: model.NewBuilder(model.Config{Self: "n1"}), node: w.Host("node"), pods: make(map[netip.Addr]uint64)}
	s.node.Forward()
	// What is not led finds no route, and is to hear of it each time.
	s.node.Sysctl("net/ipv4/icmp_ratelimit", "0")
	s.node.Sysctl("net/ipv6/icmp/ratelimit", "0")
	pod := func(i int) *testnet.Host {
		p, dev := w.Host(fmt.Sprint("pod", i)), fmt.Sprint("fl", i)
		w.Cable(s.node, dev, p, "eth0")
		s.node.Addr(dev, "169.254.1.1/32", "fe80::1/64")
		for _, a := range podAddrs(i) {
			single := netip.PrefixFrom(a, a.BitLen()).String()
			p.Addr("eth0", single)
			s.node.Route(single, "", dev)
		}
		p.Route("169.254.1.1/32", "", "eth0")
		p.Route("0.0.0.0/0", "169.254.1.1", "eth0")
		p.Route("::/0", "fe80::1", "eth0")
		return p
	}
	s.client, s.neighbour = pod(5), pod(6)
	for i := 1; i <= 9; i++ {
		for _, a := range endpoints(i) {
			s.node.Addr("lo", netip.PrefixFrom(a, a.BitLen()).String())
			s.node.EchoAs(fmt.Sprint("e", i), "tcp", netip.AddrPortFrom(a, 8080).String())
			s.node.EchoAs(fmt.Sprint("e", i), "udp", netip.AddrPortFrom(a, 8080).String())
		}
	}
	s.b.SetNode(model.Node{Name: "n1", Ready: true, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:0:1::/64")}})
	s.tell(s.client, 5)
	s.start()
	return s
}

func podAddrs(i int) []netip.Addr {
	return []netip.Addr{addr("10.244.1.%d", i), addr("fd00:244:0:1::%x", i)}
}

// tell has a pod's network namespace told from now on.
func (s *scene) tell(pod *testnet.Host, i int) {
	s.t.Helper()
	cookie, err := pod.NS.Cookie()
	if err != nil {
		s.t.Fatal(err)
	}
	pods := maps.Clone(s.pods)
	for _, a := range podAddrs(i) {
		pods[a] = cookie
	}
	s.pods = pods
}

// start is a new agent's.
func (s *scene) start() {
	s.sockets = New(func() (map[netip.Addr]uint64, error) { return s.pods, nil }, slog.New(slog.NewTextHandler(s.t.Output(), nil)))
	s.t.Cleanup(s.sockets.Close)
}

// lead has Service i, with port 80 of TCP and 5060 of UDP, lead to endpoints.
func (s *scene) lead(i int, to ...int) {
	s.b.SetService(model.ServiceSpec{Name: name(i), ClusterIPs: vips(i), Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}, {Name: "sip", Protocol: model.UDP, Port: 5060}}})
	for f := range 2 {
		sl := model.Slice{Name: model.Name{Namespace: "default", Name: fmt.Sprint(name(i).Name, "-", f)}, Service: name(i).Name,
			Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}, {Name: "sip", Protocol: model.UDP, Port: 8080}}}
		for _, e := range to {
			sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: endpoints(e)[f], Ready: true, Serving: true})
		}
		s.b.SetSlice(sl)
	}
}

func (s *scene) apply() {
	s.t.Helper()
	s.sockets.Apply(s.b.Build())
	if off := s.sockets.Report().Off; off != "" {
		s.t.Fatal(off)
	}
}

// dial connects from a host to Service i, and returns which endpoint answers and whom the process thinks to talk to. err is that of connecting.
func (s *scene) dial(from *testnet.Host, to netip.AddrPort) (endpoint string, peer netip.AddrPort, err error) {
	s.t.Helper()
	conn, err := from.Dial(s.t.Context(), "tcp", "", to)
	if err != nil {
		return "", netip.AddrPort{}, err
	}
	defer conn.Close()
	a, err := testnet.AskOn(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	if own := conn.LocalAddr().(*net.TCPAddr).AddrPort(); a.Client != own {
		s.t.Errorf("%s saw %s, and the client has %s", a.Name, a.Client, own)
	}
	peer, err = peerOf(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	return a.Name, peer, nil
}

// peerOf asks the kernel, and not the library, who is at the other end.
func peerOf(conn net.Conn) (peer netip.AddrPort, err error) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return peer, err
	}
	err = errors.Join(raw.Control(func(fd uintptr) { peer, err = peerOfFD(int(fd)) }), err)
	return peer, err
}

func peerOfFD(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getpeername(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), err
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), err
	}
	return netip.AddrPort{}, err
}

// TestLed: a pod's connection to a Service arrives at an endpoint, though no rule and no route leads from the Service's address anywhere; the endpoint sees the
// pod, the pod's process sees the Service, and connection tracking sees nothing to translate. Nobody else is led.
func TestLed(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1)
	s.apply()
	for i, v := range vips(1) {
		at := netip.AddrPortFrom(v, 80)
		if got, peer, err := s.dial(s.client, at); err != nil || got != "e1" || peer != at {
			t.Errorf("%s: %s from %s, %v", at, got, peer, err)
		}
		for what, from := range map[string]*testnet.Host{"the neighbour": s.neighbour, "the node": s.node} {
			before := s.sockets.Report().Connections
			if got, _, err := s.dial(from, at); err == nil || s.sockets.Report().Connections != before {
				t.Errorf("%s was led to %s: %s", what, at, got)
			}
		}
		if got, err := s.sockets.Read(podAddrs(5)[i], at); err != nil || !slices.Equal(got, []netip.AddrPort{netip.AddrPortFrom(endpoints(1)[i], 8080)}) {
			t.Errorf("%s leads to %v, %v", at, got, err)
		}
		for _, nobody := range []netip.Addr{podAddrs(6)[i], {}} {
			if got, err := s.sockets.Read(nobody, at); err != nil || got != nil {
				t.Errorf("%s: %s leads to %v, %v", nobody, at, got, err)
			}
		}
		direct := netip.AddrPortFrom(endpoints(1)[i], 8080)
		if got, peer, err := s.dial(s.client, direct); err != nil || got != "e1" || peer != direct {
			t.Errorf("directly: %s from %s, %v", got, peer, err)
		}
	}
	if r := s.sockets.Report(); r != (Report{Pods: 1, Services: 2, Connections: 2}) {
		t.Errorf("%+v", r)
	}
	cookie := s.pods[podAddrs(5)[0]]
	want := fmt.Sprintf("network namespace %d is a pod's\nservice 10.96.0.1:80 leads to 10.244.2.1:8080\nservice [fd00:96::1]:80 leads to [fd00:244:0:2::1]:8080\n", cookie)
	if text, err := s.sockets.Dump(); text != want || err != nil {
		t.Errorf("%v\ngot  %s\nwant %s", err, text, want)
	}
}

// TestMapped: a socket of IPv6 may be connected to an IPv4 address, as Java's are. It is led, and sees the Service in the form that it gave.
func TestMapped(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1)
	s.apply()
	s.client.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet6{Port: 80, Addr: vips(1)[0].As16()}
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		if peer, err := peerOfFD(fd); err != nil || peer != netip.AddrPortFrom(netip.AddrFrom16(to.Addr), 80) {
			t.Errorf("connected to %s, %v", peer, err)
		}
		return nil
	})
	if n := s.sockets.Report().Connections; n != 1 {
		t.Errorf("%d connections were led", n)
	}
}

// TestAgain: a socket whose connection was refused may be connected to something else. What it was led to then is forgotten.
func TestAgain(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1)
	s.b.SetService(model.ServiceSpec{Name: name(2), ClusterIPs: vips(2), Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}}})
	s.b.SetSlice(model.Slice{Name: model.Name{Namespace: "default", Name: "s2-0"}, Service: "s2", Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 9999}},
		Endpoints: []model.Endpoint{{Addr: endpoints(1)[0], Ready: true, Serving: true}}})
	s.apply()
	s.client.Do(func() error {
		for _, then := range []netip.AddrPort{netip.AddrPortFrom(endpoints(1)[0], 8080), netip.AddrPortFrom(vips(1)[0], 80)} {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			connect := func(to netip.AddrPort) error {
				return unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
			}
			if err := connect(netip.AddrPortFrom(vips(2)[0], 80)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("where nobody listens: %v", err)
			}
			if err := connect(then); err != nil {
				t.Errorf("%s: %v", then, err)
			}
			if peer, err := peerOfFD(fd); err != nil || peer != then {
				t.Errorf("%s: connected to %s, %v", then, peer, err)
			}
		}
		return nil
	})
	// Also when it is the very endpoint that refused.
	fd, refused := 0, &unix.SockaddrInet4{Port: 9999, Addr: endpoints(1)[0].As4()}
	s.client.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 80, Addr: vips(2)[0].As4()}); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("where nobody listens: %v", err)
		}
		return nil
	})
	defer unix.Close(fd)
	s.node.EchoAs("late", "tcp", netip.AddrPortFrom(endpoints(1)[0], 9999).String())
	if err := unix.Connect(fd, refused); err != nil {
		t.Fatal(err)
	}
	if peer, err := peerOfFD(fd); err != nil || peer != netip.AddrPortFrom(endpoints(1)[0], 9999) {
		t.Errorf("connected directly, it sees %s, %v", peer, err)
	}
}

// TestComeAndGo: pods are led from when they are told, and when they go; without programs connections live on, and see where they lead; and programs that
// were suspended come again with what there is then.
func TestComeAndGo(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1)
	s.apply()
	at := netip.AddrPortFrom(vips(1)[0], 80)
	s.tell(s.neighbour, 6)
	s.sockets.Attached()
	if got, _, err := s.dial(s.neighbour, at); err != nil || got != "e1" || s.sockets.Report().Pods != 2 {
		t.Errorf("a new pod: %s %v, %+v", got, err, s.sockets.Report())
	}
	pods := maps.Clone(s.pods)
	maps.DeleteFunc(pods, func(a netip.Addr, _ uint64) bool { return slices.Contains(podAddrs(6), a) })
	pods[addr("10.244.1.7")] = 0 // whose namespace nobody knows
	s.pods = pods
	s.sockets.Verify()
	if got, err := s.sockets.Read(podAddrs(6)[0], at); got != nil || err != nil || s.sockets.Report().Pods != 1 {
		t.Errorf("a pod that is gone: %v %v, %+v", got, err, s.sockets.Report())
	}
	conn, err := s.client.Dial(t.Context(), "tcp", "", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s.sockets.Suspend()
	if r := s.sockets.Report(); r != (Report{}) {
		t.Errorf("suspended: %+v", r)
	}
	if a, err := testnet.AskOn(conn); err != nil || a.Name != "e1" {
		t.Errorf("without programs: %+v, %v", a, err)
	}
	if peer, err := peerOf(conn); err != nil || peer != netip.AddrPortFrom(endpoints(1)[0], 8080) {
		t.Errorf("without programs: %s, %v", peer, err)
	}
	s.sockets.Attached() // and there is nothing to tell
	s.sockets.Verify()
	if got, peer, err := s.dial(s.client, at); err != nil || got != "e1" || peer != at {
		t.Errorf("verified: %s from %s, %v", got, peer, err)
	}
	s.sockets.Suspend()
	s.lead(1, 2)
	s.apply()
	if got, _, err := s.dial(s.client, at); err != nil || got != "e2" {
		t.Errorf("applied: %s, %v", got, err)
	}
	s.sockets.Close()
	s.sockets.Verify()
	if r := s.sockets.Report(); r != (Report{}) {
		t.Errorf("closed: %+v", r)
	}
	if text, err := s.sockets.Dump(); err == nil || !strings.Contains(err.Error(), "nothing is programmed yet") {
		t.Errorf("closed: %q, %v", text, err)
	}
}

// TestTwoAgents: programs of two agents are there at once, as when one is replaced. Each connection is led once, and sees the Service.
func TestTwoAgents(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1)
	s.apply()
	first := s.sockets
	s.start()
	s.apply()
	at := netip.AddrPortFrom(vips(1)[1], 80)
	for range 2 {
		if got, peer, err := s.dial(s.client, at); err != nil || got != "e1" || peer != at {
			t.Errorf("%s from %s, %v", got, peer, err)
		}
	}
	if n := first.Report().Connections + s.sockets.Report().Connections; n != 2 {
		t.Errorf("%d connections were led", n)
	}
	first.Close()
	if got, peer, err := s.dial(s.client, at); err != nil || got != "e1" || peer != at || s.sockets.Report().Connections == 0 {
		t.Errorf("without the first: %s from %s, %v", got, peer, err)
	}
}

// TestOff: where the programs cannot be loaded, or pods not be known, everything goes on without. Why is named, once, and it is tried again.
func TestOff(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1)
	var log bytes.Buffer
	var broken error
	s.sockets = New(func() (map[netip.Addr]uint64, error) { return s.pods, broken }, slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(s.sockets.Close)
	s.node.Without(func() {
		s.sockets.Apply(s.b.Build())
		s.sockets.Verify()
	}, unix.CAP_SYS_ADMIN, unix.CAP_BPF)
	if r := s.sockets.Report(); !strings.Contains(r.Off, "it needs the capabilities BPF and NET_ADMIN") || r.Pods+r.Services != 0 {
		t.Errorf("without capabilities: %+v", r)
	}
	for n := 0; s.sockets.Report().Off != "" && n < 4; n++ {
		s.sockets.Verify()
	}
	if got, _, err := s.dial(s.client, netip.AddrPortFrom(vips(1)[0], 80)); err != nil || got != "e1" {
		t.Errorf("tried again: %s, %v, %+v", got, err, s.sockets.Report())
	}
	broken = errors.New("leases are damaged")
	s.sockets.Verify()
	if r := s.sockets.Report(); !strings.Contains(r.Off, broken.Error()) || r.Pods+r.Services != 0 {
		t.Errorf("with damaged leases: %+v", r)
	}
	if warned, well := strings.Count(log.String(), "level=WARN"), strings.Count(log.String(), "works again"); warned != 2 || well != 1 {
		t.Errorf("said %d times that it is off, and %d that it works:\n%s", warned, well, log.String())
	}
}

// TestCrowded: when there are more endpoints than there is room for, what has no room is left to the rules, and said; the rest is led, and what comes to have room is, too.
func TestCrowded(t *testing.T) {
	s := newScene(t)
	const services, each = 28, 10_000 // of 262,144
	ends := make([]model.Endpoint, each)
	for i := range ends {
		ends[i] = model.Endpoint{Addr: addr("10.128.%d.%d", i/256, i%256), Ready: true, Serving: true}
	}
	for i := 10; i < 10+services; i++ {
		s.b.SetService(model.ServiceSpec{Name: name(i), ClusterIPs: vips(i)[:1], Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}}})
		s.b.SetSlice(model.Slice{Name: name(i), Service: name(i).Name, Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}}, Endpoints: ends})
	}
	s.lead(1, 1)
	s.apply()
	crowded := s.sockets.Report().Crowded
	if r := s.sockets.Report(); r.Crowded < 2 || r.Crowded > 4 || r.Services+r.Crowded != services+2 {
		t.Fatalf("%+v", r)
	}
	led := func(i int) bool {
		t.Helper()
		got, err := s.sockets.Read(podAddrs(5)[0], netip.AddrPortFrom(vips(i)[0], 80))
		if err != nil || len(got) != 0 && len(got) != each && i != 1 {
			t.Fatalf("%s has %d endpoints, %v", name(i), len(got), err)
		}
		return len(got) > 0
	}
	var gone int
	for i := 10; i < 10+services; i++ {
		if led(i) {
			gone = i
			s.b.DeleteService(name(i))
			break
		}
	}
	s.apply()
	if led(gone) {
		t.Error("a Service that is gone leads somewhere")
	}
	s.sockets.Verify() // nothing about the others has changed
	if r := s.sockets.Report(); r.Crowded != crowded-1 || r.Services+r.Crowded != services+1 {
		t.Errorf("after one is gone: %+v, %d were crowded", r, crowded)
	}
}

// TestNotInAPod: what would be something else in a pod, its loopback or an address of its own, is never led, whatever a Service claims.
func TestNotInAPod(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1)
	s.b.SetService(model.ServiceSpec{Name: name(1), ClusterIPs: vips(1), Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}},
		Exposure: &model.Exposure{Balancers: []netip.Addr{addr("127.0.0.1"), podAddrs(5)[0]}, ExternalIPs: []netip.Addr{podAddrs(5)[1]}}})
	s.apply()
	for _, at := range []string{"127.0.0.1:80", "10.244.1.5:80", "[fd00:244:0:1::5]:80"} {
		s.client.EchoAs("own", "tcp", at)
		if got, _, err := s.dial(s.client, netip.MustParseAddrPort(at)); err != nil || got != "own" {
			t.Errorf("%s: %s, %v", at, got, err)
		}
	}
	if got, _, err := s.dial(s.client, netip.AddrPortFrom(vips(1)[0], 80)); err != nil || got != "e1" {
		t.Errorf("the Service: %s, %v", got, err)
	}
}

// TestBarred: a Service whose endpoint becomes something to the rules is left to them, and is led again when that ends.
func TestBarred(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1, 2)
	s.apply()
	at := netip.AddrPortFrom(vips(1)[0], 80)
	other := model.ServiceSpec{Name: name(2), ClusterIPs: vips(2), Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}}}
	for _, tt := range []struct {
		what   string
		change func()
		led    int
	}{
		{"an external address", func() {
			other.Exposure = &model.Exposure{ExternalIPs: []netip.Addr{endpoints(2)[0]}}
			s.b.SetService(other)
		}, 0},
		{"an endpoint less", func() { s.lead(1, 1) }, 1},
		{"the endpoint again", func() { s.lead(1, 2) }, 0},
		{"another external address", func() {
			other.Exposure = &model.Exposure{ExternalIPs: []netip.Addr{endpoints(3)[0]}}
			s.b.SetService(other)
		}, 1},
		{"a node port at an endpoint that is no address of the node", func() {
			other.Ports = []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080, NodePort: 8080}}
			s.b.SetService(other)
		}, 1},
		{"the endpoint as an address of the node", func() { s.b.SetNode(model.Node{Name: "n1", Addrs: []netip.Addr{endpoints(2)[0]}}) }, 0},
		{"no node port", func() {
			other.Ports = []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}}
			s.b.SetService(other)
		}, 1},
		{"a node port", func() {
			other.Ports = []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080, NodePort: 8080}}
			s.b.SetService(other)
		}, 0},
		{"no such Service", func() { s.b.DeleteService(other.Name) }, 1},
		{"a range of Services with the endpoint", func() { s.b.SetServiceCIDR("x", []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}) }, 0},
		{"no such range", func() { s.b.DeleteServiceCIDR("x") }, 1},
	} {
		tt.change()
		s.apply()
		if got, err := s.sockets.Read(podAddrs(5)[0], at); err != nil || len(got) != tt.led {
			t.Errorf("%s: leads to %v, %v, want %d", tt.what, got, err, tt.led)
		}
	}
}

// TestSeated: whatever comes and goes, everyone who is there has one seat, nobody else has, and who stays keeps the seat if it is not the place of one who is missing.
func TestSeated(t *testing.T) {
	r := seeded(t)
	var seats []netip.AddrPort
	for range 2000 {
		var to []netip.AddrPort
		for i := range 1 + r.IntN(12) {
			if r.IntN(3) > 0 {
				to = append(to, netip.AddrPortFrom(addr("10.0.0.%d", i), 80))
			}
		}
		before := slices.Clone(seats)
		seats = seated(before, to)
		got := slices.Clone(seats)
		slices.SortFunc(got, netip.AddrPort.Compare)
		slices.SortFunc(to, netip.AddrPort.Compare)
		if !slices.Equal(got, to) {
			t.Fatalf("%v to %v: %v", before, to, seats)
		}
		moved := 0
		for i, a := range seats {
			if at := slices.Index(before, a); at >= 0 && at != i {
				moved++
				if at < len(seats) {
					t.Fatalf("%v to %v: %s moved from %d to %d: %v", before, to, a, at, i, seats)
				}
			}
		}
		if moved > max(0, len(before)-len(seats)) {
			t.Fatalf("%v to %v: %d moved: %v", before, to, moved, seats)
		}
	}
}

func seeded(t *testing.T) *rand.Rand {
	a, b := rand.Uint64(), rand.Uint64()
	t.Logf("seed %d %d", a, b)
	return rand.New(rand.NewPCG(a, b))
}

// TestUnderChange: while two Services change all the time, and others come and go whose memory the kernel uses again, each connection arrives at an endpoint that
// its own Service has had around then. What finds an empty seat, because the change is under way, is left to the rules, which are not here: it is refused.
func TestUnderChange(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1, 2)
	s.lead(2, 5, 6)
	s.apply()
	r := seeded(t)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var arrived, left atomic.Int64
	for worker := range 4 {
		wg.Go(func() {
			for n := worker; !stop.Load(); n++ {
				i := 1 + n%2
				conn, err := s.client.Dial(t.Context(), "tcp", "", netip.AddrPortFrom(vips(i)[n/2%2], 80))
				if err != nil {
					left.Add(1)
					continue
				}
				a, err := testnet.AskOn(conn)
				conn.Close()
				if own := map[int]string{1: "e1 e2 e3 e4", 2: "e5 e6 e7 e8"}[i]; err != nil || !strings.Contains(own, a.Name) {
					t.Errorf("Service %d: answered by %q, %v", i, a.Name, err)
					return
				}
				arrived.Add(1)
			}
		})
	}
	some := func(from int) (to []int) {
		for len(to) == 0 {
			for i := range 4 {
				if r.IntN(2) == 0 {
					to = append(to, from+i)
				}
			}
		}
		return to
	}
	for n := 0; n < 3000 || arrived.Load() < 500; n++ {
		s.lead(1, some(1)...)
		s.lead(2, some(5)...)
		if i := 3 + r.IntN(20); r.IntN(2) == 0 {
			s.lead(i, 9)
		} else {
			s.b.DeleteService(name(i))
		}
		s.apply()
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d connections arrived, %d were left to the rules", arrived.Load(), left.Load())
	if left.Load() > arrived.Load()/10 {
		t.Error("too few were led")
	}
	fresh := New(func() (map[netip.Addr]uint64, error) { return s.pods, nil }, nil)
	defer fresh.Close()
	fresh.Apply(s.b.Build())
	want, err := fresh.Dump()
	got, err2 := s.sockets.Dump()
	if got != want || err != nil || err2 != nil {
		t.Errorf("%v %v: in the end there is\n%swant\n%s", err, err2, got, want)
	}
	if n, err := entries(s.sockets); err != nil || n != len(strings.Fields(want))-len(strings.Fields("network namespace 1 is a pod's"))-4*s.sockets.Report().Services {
		t.Errorf("%d endpoints have a seat, %v, in\n%s", n, err, want)
	}
}

// entries is how many seats are taken.
func entries(t *Target) (n int, err error) {
	var at seat
	var e endpoint
	all := t.objects.Endpoints.Iterate()
	for all.Next(&at, &e) {
		n++
	}
	return n, all.Err()
}

// TestSealed: an endpoint whose seal is not right, as when the kernel used its memory for another one, is not led to.
func TestSealed(t *testing.T) {
	s := newScene(t)
	s.lead(1, 1)
	s.apply()
	v := vips(1)[0]
	at, to := netip.AddrPortFrom(v, 80), netip.AddrPortFrom(endpoints(1)[0], 8080)
	number := s.sockets.groups[at].number
	right := sealed(at, number, 0, to)
	for what, e := range map[string]endpoint{
		"of another Service": sealed(netip.AddrPortFrom(v, 81), number, 0, to),
		"of another group":   sealed(at, number+1, 0, to),
		"of another seat":    sealed(at, number, 1, to),
		"half another one":   {Seal: right.Seal, Place: placeOf(netip.AddrPortFrom(endpoints(2)[0], 8080))},
	} {
		if err := s.sockets.objects.Endpoints.Put(seat{number, 0}, e); err != nil {
			t.Fatal(err)
		}
		if got, _, err := s.dial(s.client, at); err == nil {
			t.Errorf("%s: led to %s", what, got)
		}
	}
	if err := s.sockets.objects.Endpoints.Put(seat{number, 0}, right); err != nil {
		t.Fatal(err)
	}
	if got, _, err := s.dial(s.client, at); err != nil || got != "e1" {
		t.Errorf("the right one: %s, %v", got, err)
	}
}
