// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Command floor is the least that attaching a pod can be: one program that makes a veth pair into a network namespace, with the pod's addresses and two routes
// for each, by system calls alone. It reads no configuration, keeps no addresses and prints no result, so it is no CNI plugin: it is what a plugin is measured against.
//
//	floor add NAME NETNS ADDRESS...
//	floor del NAME
package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 4 && args[0] == "add":
		return add(args[1], args[2], args[3:])
	case len(args) == 2 && args[0] == "del":
		fd, err := socket()
		if err != nil {
			return err
		}
		return send(fd, message(unix.RTM_DELLINK, 0, ifinfo(0, 0), attr(unix.IFLA_IFNAME, append([]byte(args[1]), 0))))
	}
	return fmt.Errorf("want add NAME NETNS ADDRESS... or del NAME")
}

func add(name, netns string, addresses []string) error {
	ns, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	fd, err := socket()
	if err != nil {
		return err
	}
	peer := append(ifinfo(0, 0), cat(attr(unix.IFLA_IFNAME, []byte("eth0\x00")), attr(unix.IFLA_NET_NS_FD, u32(uint32(ns))))...)
	info := cat(attr(unix.IFLA_INFO_KIND, []byte("veth")), attr(unix.IFLA_INFO_DATA, attr(1, peer)))
	err = send(fd, message(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, unix.IFF_UP),
		attr(unix.IFLA_IFNAME, append([]byte(name), 0)), attr(unix.IFLA_LINKINFO, info)))
	if err != nil {
		return err
	}
	link, inside, err := indexOf(fd, name)
	if err != nil {
		return err
	}
	inPod := [][]byte{message(unix.RTM_NEWLINK, 0, ifinfo(inside, unix.IFF_UP))}
	var onNode [][]byte
	for _, address := range addresses {
		addr, err := netip.ParseAddr(address)
		if err != nil {
			return err
		}
		ip, family, gateway := addr.AsSlice(), byte(unix.AF_INET), []byte{169, 254, 1, 1}
		if addr.Is6() {
			family, gateway = unix.AF_INET6, netip.MustParseAddr("fe80::1").AsSlice()
		}
		bits := byte(addr.BitLen())
		onNode = append(onNode, route(family, ip, bits, nil, link))
		inPod = append(inPod,
			message(unix.RTM_NEWADDR, unix.NLM_F_CREATE, append([]byte{family, bits, unix.IFA_F_NODAD, 0}, u32(inside)...), attr(unix.IFA_LOCAL, ip), attr(unix.IFA_ADDRESS, ip)),
			route(family, nil, 0, gateway, inside))
	}
	if err := send(fd, onNode...); err != nil {
		return err
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return err
	}
	if fd, err = socket(); err != nil {
		return err
	}
	return send(fd, inPod...)
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// send sends messages at once and waits for an answer to each.
func send(fd int, messages ...[]byte) error {
	if err := unix.Sendto(fd, cat(messages...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 8192)
	for waiting := len(messages); waiting > 0; {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= 20; b = b[(binary.NativeEndian.Uint32(b)+3)&^3:] {
			if code := int32(binary.NativeEndian.Uint32(b[16:])); code != 0 {
				return syscall.Errno(-code)
			}
			waiting--
		}
	}
	return nil
}

// indexOf asks for an interface's number, and that of its other end.
func indexOf(fd int, name string) (index, other uint32, err error) {
	ask := message(unix.RTM_GETLINK, 0, ifinfo(0, 0), attr(unix.IFLA_IFNAME, append([]byte(name), 0)))
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST) // the answer is enough
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, 0, err
	}
	buf := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil || n < 32 || binary.NativeEndian.Uint16(buf[4:]) != unix.RTM_NEWLINK {
		return 0, 0, fmt.Errorf("ask for %s: %v", name, err)
	}
	index = binary.NativeEndian.Uint32(buf[20:])
	for b := buf[32:n]; len(b) >= 8; b = b[(binary.NativeEndian.Uint16(b)+3)&^3:] {
		if binary.NativeEndian.Uint16(b[2:]) == unix.IFLA_LINK {
			return index, binary.NativeEndian.Uint32(b[4:]), nil
		}
	}
	return 0, 0, fmt.Errorf("ask for %s: it has no other end", name)
}

func message(kind, flags uint16, body []byte, attrs ...[]byte) []byte {
	m := cat(u32(0), u16(kind), u16(unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags), u32(1), u32(0), body, cat(attrs...))
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	return m
}

func ifinfo(index, flags uint32) []byte {
	return cat(make([]byte, 4), u32(index), u32(flags), u32(flags))
}

func route(family byte, dst []byte, bits byte, via []byte, link uint32) []byte {
	scope, flags := byte(unix.RT_SCOPE_LINK), uint32(0)
	attrs := attr(unix.RTA_OIF, u32(link))
	if via != nil {
		scope, flags = unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK
		attrs = append(attrs, attr(unix.RTA_GATEWAY, via)...)
	}
	if dst != nil {
		attrs = append(attrs, attr(unix.RTA_DST, dst)...)
	}
	head := []byte{family, bits, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST}
	return message(unix.RTM_NEWROUTE, unix.NLM_F_CREATE, append(head, u32(flags)...), attrs)
}

func attr(kind uint16, value []byte) []byte {
	return cat(u16(uint16(4+len(value))), u16(kind), value, make([]byte, -len(value)&3))
}

func cat(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func u16(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
