// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/testnet"
)

// packet builds what travels in a UDP datagram to the tunnel's port: a VXLAN header, an Ethernet header, and a UDP datagram from one address to another.
func packet(vni uint32, to mac, from, at netip.AddrPort, payload string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, at.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	var ip []byte
	etherType := []byte{0x08, 0x00}
	if at.Addr().Is4() {
		ip = []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, 17, 0, 0}
		ip = slices.Concat(ip, from.Addr().AsSlice(), at.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))
	} else {
		etherType = []byte{0x86, 0xdd}
		ip = slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(udp)), 17, 64}, from.Addr().AsSlice(), at.Addr().AsSlice())
		pseudo := slices.Concat(from.Addr().AsSlice(), at.Addr().AsSlice(), []byte{0, 0, 0, byte(len(udp)), 0, 0, 0, 17})
		binary.BigEndian.PutUint16(udp[6:], ^sum(sum(0, pseudo), udp)) // IPv6 wants one
	}
	head := []byte{0x08, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	return slices.Concat(head, to[:], []byte{2, 0, 0, 0, 0, 9}, etherType, ip, udp)
}

// sum is the checksum of RFC 1071, not inverted.
func sum(start uint16, data []byte) uint16 {
	total := uint32(start)
	for i := 0; i < len(data); i += 2 {
		total += uint32(data[i]) << 8
		if i+1 < len(data) {
			total += uint32(data[i+1])
		}
	}
	for total>>16 != 0 {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// TestForged: what comes to the tunnel's port gets to a pod only from a node's address, and only with a source that is that node's. What another program's
// tunnel sends to the same port is none of our business.
func TestForged(t *testing.T) {
	testnet.MustRoot(t)
	for _, nodes := range []int{v4only, v6only} {
		t.Run(map[int]string{v4only: "over IPv4", v6only: "over IPv6"}[nodes], func(t *testing.T) {
			s := newSite(t, nodes, dual)
			for i := range s.members {
				s.set(i, Auto)
			}
			for f := range 2 {
				s.forge(f)
			}
		})
	}
}

// forge sends to the pod of the first node, in one family.
func (s *site) forge(f int) {
	one, two, far := s.members[0], s.members[1], s.members[2]
	end := one.node.Addrs[0]
	pod := func(m *member) netip.AddrPort { return netip.AddrPortFrom(podAddr(m.node.PodCIDRs[f]), 9000) }
	outside := netip.MustParseAddrPort([]string{"192.0.2.1:9000", "[2001:db8::1]:9000"}[f])
	server, err := one.pod.NS.ListenPacket("udp", netip.AddrPortFrom(pod(one).Addr(), 0).String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer server.Close()
	at := server.LocalAddr().(*net.UDPAddr).AddrPort()
	send := func(from *testnet.Host, vni uint32, source netip.AddrPort, text string) {
		s.t.Helper()
		c, err := from.Dial(context.Background(), "udp", "", netip.AddrPortFrom(end, DefaultPort))
		if err != nil {
			s.t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(packet(vni, macOf(end), source, at, text)); err != nil {
			s.t.Fatal(err)
		}
	}
	var got []string
	cases := []struct {
		what   string
		from   *testnet.Host
		vni    uint32
		source netip.AddrPort
		passes bool
	}{
		{"a node's pod, from that node", far.Host, VNI, pod(far), true},
		{"the same of a node on the link", two.Host, VNI, pod(two), true},
		{"a node's pod, from another node", two.Host, VNI, pod(far), false},
		{"this node's pod, from another node", far.Host, VNI, pod(one), false},
		{"an address outside the cluster, from a node", far.Host, VNI, outside, false},
		{"a node's pod, from no node", s.router, VNI, pod(far), false},
		{"a node's pod, from a pod of this node", one.pod, VNI, pod(far), false},
		{"a node's pod, from that pod itself", far.pod, VNI, pod(far), false},
		{"another network on the same port", far.Host, VNI + 1, pod(far), false},
	}
	for i, c := range cases {
		text := fmt.Sprintf("%d", i)
		send(c.from, c.vni, c.source, text)
		end := "after " + text
		send(far.Host, VNI, pod(far), end)
		for !slices.Contains(got, end) {
			buf := make([]byte, 100)
			server.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, _, err := server.ReadFrom(buf)
			if err != nil {
				s.t.Fatalf("%s: what is right does not arrive: %v", c.what, err)
			}
			got = append(got, string(buf[:n]))
		}
	}
	if far.node.Addrs[0].Is4() {
		// The pod says that it is a node.
		spoof(s.t, one.pod, far.node.Addrs[0], end, packet(VNI, macOf(end), pod(far), at, "spoofed"))
		if one.counters(s.t)["of a pod of this node"] == 0 || slices.Contains(got, "spoofed") {
			s.t.Error("what a pod sends in a node's name passes")
		}
	}
	for i, c := range cases {
		if slices.Contains(got, fmt.Sprintf("%d", i)) != c.passes {
			s.t.Errorf("%s, to %s: passes: %t", c.what, at, !c.passes)
		}
	}
	if n := one.counters(s.t)["forged, or of a node not known yet"]; n == 0 {
		s.t.Error("nothing was counted as forged")
	}
}

// spoof sends a UDP datagram to the tunnel's port in another's name.
func spoof(t *testing.T, by *testnet.Host, from, to netip.Addr, payload []byte) {
	t.Helper()
	udp := binary.BigEndian.AppendUint16([]byte{0x23, 0x28}, DefaultPort)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	ip := slices.Concat([]byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, 17, 0, 0}, from.AsSlice(), to.AsSlice())
	by.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, append(ip, udp...), 0, &unix.SockaddrInet4{Addr: to.As4()})
	})
}

// counters reads how many packets the rules that drop have dropped.
func (m *member) counters(t *testing.T) map[string]uint64 {
	t.Helper()
	var counted map[string]uint64
	m.Do(func() (err error) {
		counted, err = Dropped()
		return err
	})
	return counted
}

// TestOtherTunnel: another program's VXLAN device on the same port goes on, beside ours.
func TestOtherTunnel(t *testing.T) {
	testnet.MustRoot(t)
	s := newSite(t, v4only, v4only)
	one, far := s.members[0], s.members[2]
	for i, m := range []*member{one, far} {
		other := []*member{far, one}[i]
		d := otherDevice(m.node.Addrs[0], other.node.Addrs[0], 1, DefaultPort)
		if err := m.Link.LinkAdd(d); err != nil {
			t.Fatal(err)
		}
		m.Up(d.Name)
		m.Addr(d.Name, fmt.Sprintf("10.99.0.%d/24", i+1))
	}
	for i := range s.members {
		s.set(i, Auto)
	}
	ask(t, "through the other tunnel", one.Host, netip.MustParseAddr("10.99.0.1"), far.Host, netip.MustParseAddr("10.99.0.2"))
	s.pair(one, far, true)
}

// TestAdmissions: what is written is read back the same.
func TestAdmissions(t *testing.T) {
	for _, over := range []string{"192.0.2.1", "2001:db8::1"} {
		g := guard{DefaultPort, netip.MustParseAddr(over)}
		for _, inner := range []string{"0.0.0.0/0", "10.244.0.0/16", "10.244.3.0/24", "10.244.3.64/26", "10.244.3.6/31", "10.1.2.3/32", "::/0", "fd00::/8", "fd00:244:0:3::/64", "fd00::1/128", "fd00::2/127"} {
			a := admission{g.over, netip.MustParsePrefix(inner)}
			if got, ok := g.parse(a.element()); !ok || got != a {
				t.Errorf("%s: read back as %s, %t", a, got, ok)
			}
		}
	}
	g := guard{DefaultPort, netip.MustParseAddr("192.0.2.1")}
	e := admission{g.over, netip.MustParsePrefix("10.0.0.0/24")}.element()
	e.KeyEnd[7] = 200 // no range of a prefix
	if a, ok := g.parse(e); ok {
		t.Errorf("a range that is none is read as %s", a)
	}
}
