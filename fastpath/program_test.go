// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package fastpath

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// skb is the context that the kernel takes for a test run: struct __sk_buff.
type skb struct {
	_       [10]uint32
	Ifindex uint32
	_       [37]uint32
}

// frame is an Ethernet frame to be judged.
type frame struct {
	src, dst  netip.AddrPort
	flags     byte
	hops      byte
	proto     byte
	frag      uint16 // of IPv4: flags and offset
	options   int    // bytes of them, of IPv4; or one IPv6 extension header, if not 0
	payload   int
	version   byte // of IPv6, if not 0 another one
	vlan      bool
	elsewhere bool // to the link address of another host
}

const (
	fin, syn, rst, ack = 1, 2, 4, 16
	tcp, udp, icmp     = 6, 17, 1
	mf, df             = 0x2000, 0x4000
)

func (f frame) bytes() []byte {
	b := make([]byte, 12, 1600)
	if f.vlan {
		b = append(b, 0x81, 0, 0, 7)
	}
	tail := make([]byte, 20+f.payload)
	binary.BigEndian.PutUint16(tail, f.src.Port())
	binary.BigEndian.PutUint16(tail[2:], f.dst.Port())
	tail[12], tail[13] = 5<<4, f.flags
	binary.BigEndian.PutUint16(tail[16:], checksum(pseudo(f.src.Addr(), f.dst.Addr(), len(tail)), tail))
	if f.src.Addr().Is4() {
		ip := make([]byte, 20+f.options)
		ip[0], ip[8], ip[9] = 0x40|byte(len(ip)/4), f.hops, f.proto
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(tail)))
		binary.BigEndian.PutUint16(ip[6:], f.frag)
		copy(ip[12:], f.src.Addr().AsSlice())
		copy(ip[16:], f.dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return append(append(append(b, 8, 0), ip...), tail...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = cmp.Or(f.version, 0x60), f.proto, f.hops
	if f.options > 0 {
		ip[6] = 60 // destination options
		tail = append([]byte{f.proto, 0, 1, 4, 0, 0, 0, 0}, tail...)
	}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(tail)))
	copy(ip[8:], f.src.Addr().AsSlice())
	copy(ip[24:], f.dst.Addr().AsSlice())
	return append(append(append(b, 0x86, 0xdd), ip...), tail...)
}

// pseudo is what TCP's checksum is over beside the segment.
func pseudo(src, dst netip.Addr, size int) []byte {
	return append(slices.Concat(src.AsSlice(), dst.AsSlice()), 0, tcp, byte(size>>8), byte(size))
}

// checksum is that of the Internet, RFC 1071, over all of the parts; 0 over what has a right one. Only the last may have an odd length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for len(b) > 1 {
			sum += uint32(binary.BigEndian.Uint16(b))
			b = b[2:]
		}
		if len(b) > 0 {
			sum += uint32(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ends are the source and the destination of a frame of TCP that went the fast way. It is to be whole, and to have one hop less.
func ends(t *testing.T, b []byte, hops byte) (src, dst netip.AddrPort) {
	t.Helper()
	ip := b[14:]
	left, size, header := ip[8], 4, 20
	if ip[0]>>4 == 6 {
		left, size, header = ip[7], 16, 40
	} else if checksum(ip[:header]) != 0 {
		t.Errorf("checksum of the header: % x", ip[:header])
	}
	from, _ := netip.AddrFromSlice(ip[header-2*size : header-size])
	to, _ := netip.AddrFromSlice(ip[header-size : header])
	segment := ip[header:]
	if left != hops-1 {
		t.Errorf("%d hops became %d", hops, left)
	}
	if checksum(pseudo(from, to, len(segment)), segment) != 0 {
		t.Errorf("checksum of the segment: % x", segment[:20])
	}
	return netip.AddrPortFrom(from, binary.BigEndian.Uint16(segment)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(segment[2:]))
}

// judge has the kernel run the program for a frame that came from a device of a node. If it goes the fast way, its source and destination are returned.
func (x *island) judge(dev string, f frame) (fast bool, src, dst netip.AddrPort) {
	x.t.Helper()
	const next, redirect = 0xffffffff, 7
	in := f.bytes()
	if !f.elsewhere {
		link, err := x.Link.LinkByName(dev)
		if err != nil {
			x.t.Fatal(err)
		}
		copy(in, link.Attrs().HardwareAddr)
	}
	opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: skb{Ifindex: uint32(x.Index(dev))}}
	var verdict uint32
	program := x.fast.objects.FromPod
	if dev == "eth0" || dev == nodenet.Device {
		program = x.fast.objects.FromNode
	}
	x.Do(func() (err error) { verdict, err = program.Run(&opts); return err })
	switch verdict {
	case redirect:
		src, dst = ends(x.t, opts.DataOut[:len(in)], f.hops)
		return true, src, dst
	case next:
		if string(opts.DataOut[:len(in)]) != string(in) {
			x.t.Errorf("what is left to the long way was changed: % x became % x", in, opts.DataOut)
		}
		return false, f.src, f.dst
	}
	x.t.Errorf("verdict %d", int32(verdict))
	return false, f.src, f.dst
}

// TestPackets is the table of what goes the fast way, judged by the program in the kernel.
func TestPackets(t *testing.T) {
	s := newScene(t, nodenet.Never)
	// Somebody claims the addresses of a pod here and of one on the other node for a Service.
	s.lead(nil, [2]int{1, 5}, [2]int{2, 5})
	claimed := web
	claimed.Name.Name, claimed.ClusterIPs, claimed.Ports = "claimed", []netip.Addr{addr("10.96.0.2"), addr("fd00:96::2")}, []model.Port{{Protocol: model.TCP, Port: 8080}}
	claimed.Exposure = &model.Exposure{ExternalIPs: slices.Concat(podAddrs(1, 6), podAddrs(2, 6))}
	one := s.nodes[1]
	one.b.SetService(claimed)
	s.apply()
	for i, family := range []string{"IPv4", "IPv6"} {
		is4 := i == 0
		pod := func(n, i2 int) netip.AddrPort { return netip.AddrPortFrom(podAddrs(n, i2)[i], uint16(8000+i2)) }
		here, there, taken := pod(1, 5), pod(2, 5), pod(1, 6)
		at := func(a string, b string) netip.AddrPort {
			return netip.AddrPortFrom(netip.MustParseAddr(map[bool]string{true: a, false: b}[is4]), 443)
		}
		base := frame{src: here, dst: there, flags: ack, hops: 64, proto: tcp, frag: df, payload: 100}
		for _, tt := range []struct {
			what string
			dev  string
			edit func(*frame)
			fast bool
			only string // of one family
		}{
			{"between pods", "fl5", func(*frame) {}, true, ""},
			{"a first packet", "fl5", func(f *frame) { f.flags = syn }, true, ""},
			{"an answer to it", "fl5", func(f *frame) { f.flags = syn | ack }, true, ""},
			{"a last one", "fl5", func(f *frame) { f.flags = fin | ack }, true, ""},
			{"a reset", "fl5", func(f *frame) { f.flags = rst }, true, ""},
			{"back", "eth0", func(f *frame) { f.src, f.dst = there, here }, true, ""},
			{"to an address that somebody claims", "fl5", func(f *frame) { f.dst = taken }, true, ""},
			{"a first packet there", "fl5", func(f *frame) { f.dst, f.flags = taken, syn }, false, ""},
			{"a first packet to such an address on another node", "fl5", func(f *frame) { f.dst, f.flags = pod(2, 6), syn }, false, ""},
			{"a later one", "fl5", func(f *frame) { f.dst = pod(2, 6) }, true, ""},
			{"an answer from there", "fl6", func(f *frame) { f.src, f.dst, f.flags = taken, here, syn|ack }, true, ""},
			{"from one pod in another's name", "fl6", func(*frame) {}, false, ""},
			{"from a pod in the name of one elsewhere", "fl5", func(f *frame) { f.src, f.dst = there, taken }, false, ""},
			{"from a link in the name of nobody's pod", "eth0", func(f *frame) { f.src, f.dst = at("198.51.100.1", "2001:db8::1"), here }, false, ""},
			{"from a link in the name of a pod of this node", "eth0", func(f *frame) { f.src, f.dst = taken, here }, false, ""},
			{"to another host's link address", "eth0", func(f *frame) { f.src, f.dst, f.elsewhere = there, here, true }, false, ""},
			{"from a link to another node's pod", "eth0", func(f *frame) { f.src, f.dst = pod(2, 9), there }, false, ""},
			{"from no device of ours", "lo", func(*frame) {}, false, ""},
			{"out of the cluster", "fl5", func(f *frame) { f.dst = at("198.51.100.1", "2001:db8::1") }, false, ""},
			{"to a Service", "fl5", func(f *frame) { f.dst = netip.AddrPortFrom(vips[i], 80) }, false, ""},
			{"to a node", "fl5", func(f *frame) { f.dst = netip.AddrPortFrom(nodeAddrs(2)[i], 80) }, false, ""},
			{"to the node itself", "fl5", func(f *frame) { f.dst = netip.AddrPortFrom(nodeAddrs(1)[i], 80) }, false, ""},
			{"to an address of the range that no pod has", "fl5", func(f *frame) { f.dst = pod(1, 77) }, false, ""},
			{"UDP", "fl5", func(f *frame) { f.proto = udp }, false, ""},
			{"ICMP", "fl5", func(f *frame) { f.proto = icmp }, false, ""},
			{"at its last hop", "fl5", func(f *frame) { f.hops = 1 }, false, ""},
			{"before its last hop", "fl5", func(f *frame) { f.hops = 2 }, true, ""},
			{"with options or an extension header", "fl5", func(f *frame) { f.options = 8 }, false, ""},
			{"a first fragment", "fl5", func(f *frame) { f.frag = mf }, false, "IPv4"},
			{"a last fragment", "fl5", func(f *frame) { f.frag = 100 }, false, "IPv4"},
			{"that may be fragmented", "fl5", func(f *frame) { f.frag = 0 }, true, "IPv4"},
			{"of the largest size", "fl5", func(f *frame) { f.payload = 1500 - 40 - 20*i }, true, ""},
			{"that is too large", "fl5", func(f *frame) { f.payload = 1500 - 40 - 20*i + 1 }, false, ""},
			{"that is of no version 6", "fl5", func(f *frame) { f.version = 0x40 }, false, "IPv6"},
			{"of a VLAN", "fl5", func(f *frame) { f.vlan = true }, false, ""},
		} {
			f := base
			if tt.edit(&f); tt.only != "" && tt.only != family {
				continue
			}
			if fast, src, dst := one.judge(tt.dev, f); fast != tt.fast || src != f.src || dst != f.dst {
				t.Errorf("%s %s: fast %t, want %t; from %s to %s, was %s and %s", family, tt.what, fast, tt.fast, src, dst, f.src, f.dst)
			}
		}
	}
}
