// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/testnet"
)

// names serves the cluster's DNS on a node until the test ends, and is told of what the node's other targets are.
func (x *island) names(change func(*dns.Options)) *dns.Server {
	x.t.Helper()
	x.b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, ClusterIPs: resolvers,
		Ports: []model.Port{{Name: "dns", Protocol: model.UDP, Port: 53}, {Name: "dns-tcp", Protocol: model.TCP, Port: 53}}})
	o := dns.Options{
		Blocks:  []dns.Block{{Zones: []string{"."}, Loadbalance: true, Cluster: &dns.Cluster{Zones: []string{"cluster.local."}, TTL: dns.DefaultTTL}}},
		Clients: client.Options{Domain: "cluster.local"}, Shortcut: x.fast.answers,
		Self: []netip.AddrPort{netip.AddrPortFrom(resolvers[0], 53), netip.AddrPortFrom(resolvers[1], 53)},
	}
	if change != nil {
		change(&o)
	}
	s, err := dns.New(o)
	if err != nil {
		x.t.Fatal(err)
	}
	var sockets *dns.Sockets
	x.Do(func() (err error) {
		sockets, err = s.Listen(o.Self)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeSockets(ctx, sockets) }()
	x.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			x.t.Errorf("serve: %v", err)
		}
	})
	if err := x.rules.AnswerDNS(true); err != nil {
		x.t.Fatal(err)
	}
	x.served = s
	return s
}

// query asks from a host, and says what the answer is and whether the node's program gave it.
func (x *island) query(from *testnet.Host, network string, at netip.Addr, name string, qtype uint16) (answer *mdns.Msg, fast bool) {
	x.t.Helper()
	before := x.fast.Report().Answers
	from.Do(func() (err error) {
		c := mdns.Client{Net: network, Timeout: 5 * time.Second}
		answer, _, err = c.Exchange(new(mdns.Msg).SetQuestion(name, qtype), netip.AddrPortFrom(at, 53).String())
		return err
	})
	return answer, x.fast.Report().Answers > before
}

// TestAnswers: pods are answered on the fast path what they were answered by the DNS before, until it changes; and by the DNS while the fast path is off.
func TestAnswers(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	one.names(nil)
	s.apply()
	const name = "web.default.svc.cluster.local."
	for i, family := range []uint16{mdns.TypeA, mdns.TypeAAAA} {
		want := func(name, rcode, addr string, fast bool) {
			t.Helper()
			for _, at := range resolvers {
				if fast { // what was asked once is not taught
					one.query(one.pods[5], "udp", at, name, family)
				}
				m, got := one.query(one.pods[5], "udp", at, name, family)
				text := m.String()
				if mdns.RcodeToString[m.Rcode] != rcode || addr != "" && !strings.Contains(text, "\t"+addr+"\n") || got != fast {
					t.Errorf("%s at %s, on the fast path %t, want %s %s, %t:\n%s", name, at, got, rcode, addr, fast, text)
				}
			}
		}
		vip := vips[i].String()
		want(name, "NOERROR", vip, false)
		want(name, "NOERROR", vip, true)
		want("no"+name, "NXDOMAIN", "", false)
		want("no"+name, "NXDOMAIN", "", true)
		// From anywhere else it is not: nobody's packets come by a pod's device but its own.
		if m, fast := one.query(one.Host, "udp", resolvers[0], name, family); m.Rcode != mdns.RcodeSuccess || fast {
			t.Errorf("the node itself: on the fast path %t, %s", fast, m)
		}
		if m, fast := one.query(one.pods[5], "tcp", resolvers[0], name, family); m.Rcode != mdns.RcodeSuccess || fast {
			t.Errorf("over TCP: on the fast path %t, %s", fast, m)
		}
		if m, fast := one.query(one.pods[6], "udp", resolvers[0], name, family); m.Rcode != mdns.RcodeSuccess || !fast {
			t.Errorf("another pod: on the fast path %t, %s", fast, m)
		}
		// What changes is not answered any more, and what does not is.
		other := web
		other.Name.Name, other.ClusterIPs = "noweb", []netip.Addr{addr("10.96.0.77"), addr("fd00:96::77")}
		other.Ports = []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}}
		one.b.SetService(other)
		one.apply()
		want("no"+name, "NOERROR", other.ClusterIPs[i].String(), false)
		want("no"+name, "NOERROR", other.ClusterIPs[i].String(), true)
		want(name, "NOERROR", vip, true)
		one.b.DeleteService(other.Name)
		one.apply()
		want("no"+name, "NXDOMAIN", "", false)
		want("no"+name, "NXDOMAIN", "", true)
	}
	one.fast.Close()
	if m, fast := one.query(one.pods[5], "udp", resolvers[0], name, mdns.TypeA); m.Rcode != mdns.RcodeSuccess || fast {
		t.Errorf("without the fast path: on it %t, %s", fast, m)
	}
	one.apply()
	for i := range 3 {
		if m, fast := one.query(one.pods[5], "udp", resolvers[0], name, mdns.TypeA); m.Rcode != mdns.RcodeSuccess || fast != (i > 0) {
			t.Errorf("question %d after the fast path came back: on it %t, %s", i, fast, m)
		}
	}
}

// TestAnswersSum: the checksum of an answer is right where the pod's kernel looks at it, because its device does not leave it to others; and where nobody looks, it is
// begun as whoever has to finish it wants it: somebody who hands it on to another machine, as in the pod of a virtual one.
func TestAnswersSum(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	one.names(nil)
	s.apply()
	pod := one.pods[5]
	var seen int
	pod.Do(func() (err error) {
		seen, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
		return err
	})
	defer unix.Close(seen)
	const name = "web.default.svc.cluster.local."
	for _, offload := range []string{"on", "off"} {
		pod.Do(func() error { return setChecksums("eth0", offload == "on") })
		for _, at := range resolvers {
			for _, n := range []string{name, "o" + name} { // of even and of odd length
				var m *mdns.Msg
				fast := false
				for range 3 {
					m, fast = one.query(pod, "udp", at, n, mdns.TypeA)
				}
				if !fast {
					t.Errorf("offload %s: not on the fast path: %s", offload, m)
				}
			}
		}
		answers, buf := 0, make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(seen, buf, 0)
			if err != nil {
				break
			}
			ip, size, header, proto := buf[:n], 4, 20, buf[9]
			if ip[0]>>4 == 6 {
				size, header, proto = 16, 40, buf[6]
			}
			if proto != udp || binary.BigEndian.Uint16(ip[header:]) != 53 {
				continue
			}
			answers++
			from, _ := netip.AddrFromSlice(ip[header-2*size : header-size])
			to, _ := netip.AddrFromSlice(ip[header-size : header])
			segment := ip[header:]
			over := pseudo(from, to, len(segment))
			over[len(over)-3] = udp
			if has := binary.BigEndian.Uint16(segment[6:]); offload == "on" && has != ^checksum(over) {
				t.Errorf("to %s: the checksum begins as %x, want %x", to, has, ^checksum(over))
			} else if offload == "off" && checksum(over, segment) != 0 {
				t.Errorf("to %s: the checksum is %x", to, has)
			}
		}
		if answers != 12 {
			t.Errorf("offload %s: the pod saw %d answers", offload, answers)
		}
	}
}

// setChecksums says whether a device takes packets whose checksums are not finished.
func setChecksums(dev string, on bool) error {
	const txChecksums = 0x17 // ETHTOOL_STXCSUM
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ command, on uint32 }{command: txChecksums}
	if on {
		value.on = 1
	}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("set checksums of %s: %w", dev, errno)
	}
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// TestAnswersByTools: what programs of pods make of it.
func TestAnswersByTools(t *testing.T) {
	s := newScene(t, nodenet.Never)
	one := s.nodes[1]
	one.names(nil)
	s.apply()
	for range 3 {
		for i, family := range []string{"A", "AAAA"} {
			for _, flags := range []string{"+noedns", "+nocookie", "+nocookie +dnssec", "+nocookie +norec", ""} {
				args := append([]string{"dig", "+short", "+time=5", "@" + resolvers[i].String(), "web.Default.svc.cluster.LOCAL.", family}, strings.Fields(flags)...)
				var out []byte
				one.pods[5].Do(func() (err error) { out, err = exec.Command(args[0], args[1:]...).CombinedOutput(); return err })
				if got := strings.TrimSpace(string(out)); got != vips[i].String() {
					t.Errorf("%v: %q", args, got)
				}
			}
		}
	}
	if n := one.fast.Report().Answers; n < 8 {
		t.Errorf("%d questions of dig were answered on the fast path", n)
	}
}
