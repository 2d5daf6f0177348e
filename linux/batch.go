// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// batchLimit is how many requests travel in one system call. The kernel queues
// an acknowledgement for each before the first one can be read; the queue of a
// socket with the default size holds a few times as many.
const batchLimit = 64

// Batch collects rtnetlink requests and sends them in as few system calls as
// possible. It acts in the network namespace in which it was made, wherever its
// methods are called. It is not a transaction: the kernel works through all
// requests in order, also past one that fails. Not for concurrent use.
type Batch struct {
	fd   int
	seq  uint32
	reqs []request
	in   []byte // what the kernel answers is read into it
}

// request is one encoded message and what is expected of it.
type request struct {
	what string                  // words for the error
	msg  []byte                  // with header; the length is filled in by attr
	fine []syscall.Errno         // errors that mean that the wish is fulfilled
	take func(data []byte) error // what to do with what the kernel answers beside the acknowledgement; nil: nothing
}

// NewBatch opens an empty batch in the current namespace. The caller closes it.
func NewBatch() (*Batch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	// Both only improve errors; a kernel without them works the same.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return &Batch{fd: fd}, nil
}

// Cookie is [NetNS.Cookie] of the namespace in which the batch acts.
func (b *Batch) Cookie() (uint64, error) {
	cookie, err := unix.GetsockoptUint64(b.fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read network namespace cookie: %w", err)
	}
	return cookie, nil
}

// Batch opens an empty batch that acts inside the namespace.
func (n *NetNS) Batch() (batch *Batch, err error) {
	err = n.Do(func() (err error) {
		batch, err = NewBatch()
		return err
	})
	return batch, err
}

// Close drops what was not sent and gives up the socket.
func (b *Batch) Close() error { return unix.Close(b.fd) }

// VethPair describes a pair of connected interfaces.
type VethPair struct {
	Name     string           // this end, made up
	Down     bool             // this end is made down too
	MAC      net.HardwareAddr // of this end; nil: random
	PeerName string           // the other end, made down
	PeerMAC  net.HardwareAddr // of the other end; nil: random
	PeerNS   *NetNS           // where the other end is made; nil: here
	MTU      int              // of both, bytes; 0: the kernel's default
}

// VethAdd makes the pair, the other end directly in its namespace. It fails with
// EEXIST if either name is taken.
func (b *Batch) VethAdd(pair VethPair) {
	r := b.add("create veth "+pair.Name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	up := uint32(unix.IFF_UP)
	if pair.Down {
		up = 0
	}
	r.ifinfo(0, up, up)
	r.linkAttrs(pair.Name, pair.MAC, pair.MTU)
	info := r.nest(unix.IFLA_LINKINFO)
	r.attr(unix.IFLA_INFO_KIND, []byte("veth"))
	data := r.nest(unix.IFLA_INFO_DATA)
	peer := r.nest(vethInfoPeer)
	r.ifinfo(0, 0, 0)
	r.linkAttrs(pair.PeerName, pair.PeerMAC, pair.MTU)
	if pair.PeerNS != nil {
		r.attr(unix.IFLA_NET_NS_FD, u32(uint32(pair.PeerNS.Fd())))
	}
	r.end(peer)
	r.end(data)
	r.end(info)
}

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// LinkGet asks for the interface with this name and fills in into when Send
// returns without error.
func (b *Batch) LinkGet(name string, into *netlink.LinkAttrs) {
	r := b.add("get interface "+name, unix.RTM_GETLINK, 0)
	r.ifinfo(0, 0, 0)
	r.attr(unix.IFLA_IFNAME, zeroed(name))
	r.takeLink(into)
}

// LinkAt is LinkGet by the interface's index.
func (b *Batch) LinkAt(index int, into *netlink.LinkAttrs) {
	r := b.add(fmt.Sprintf("get interface %d", index), unix.RTM_GETLINK, 0)
	r.ifinfo(index, 0, 0)
	r.takeLink(into)
}

func (r *request) takeLink(into *netlink.LinkAttrs) {
	r.attr(unix.IFLA_EXT_MASK, u32(skipStats))
	r.take = func(data []byte) error {
		link, err := netlink.LinkDeserialize(nil, data)
		if err == nil {
			*into = *link.Attrs()
		}
		return err
	}
}

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h: half of the answer is counters that nobody asked for.
const skipStats = 8

// LinkUpBare sets the interface up as an end of a pair that leads to one pod: it takes packets whatever the way back to their source (rp_filter 0), and with
// ipv6 it has no IPv6 address of its own making (addr_gen_mode none), for which the other end must not be up yet.
func (b *Batch) LinkUpBare(index int, ipv6 bool) {
	r := b.add(fmt.Sprintf("set interface %d up without rp_filter", index), unix.RTM_SETLINK, 0)
	r.ifinfo(index, unix.IFF_UP, unix.IFF_UP)
	spec := r.nest(unix.IFLA_AF_SPEC)
	inet := r.nest(unix.AF_INET)
	conf := r.nest(unix.IFLA_INET_CONF)
	r.attr(devconfRPFilter, u32(0))
	r.end(conf)
	r.end(inet)
	if ipv6 {
		inet6 := r.nest(unix.AF_INET6)
		r.attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenModeNone})
		r.end(inet6)
	}
	r.end(spec)
}

// devconfRPFilter is IPV4_DEVCONF_RP_FILTER of linux/ip.h.
const devconfRPFilter = 8

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenModeNone = 1

// LinkUp sets the interface with this index up.
func (b *Batch) LinkUp(index int) {
	r := b.add(fmt.Sprintf("set interface %d up", index), unix.RTM_NEWLINK, 0)
	r.ifinfo(index, unix.IFF_UP, unix.IFF_UP)
}

// LinkDel removes the interface with this name (and the other end of a veth
// pair). One that is not there is fine.
func (b *Batch) LinkDel(name string) {
	r := b.add("delete interface "+name, unix.RTM_DELLINK, 0)
	r.ifinfo(0, 0, 0)
	r.attr(unix.IFLA_IFNAME, zeroed(name))
	r.fine = []syscall.Errno{unix.ENODEV}
}

// AddrAdd gives the interface the address addr.Addr() with the prefix length
// addr.Bits(), usable at once: duplicate address detection is left out. An
// address that is there already is fine.
func (b *Batch) AddrAdd(index int, addr netip.Prefix) {
	r := b.add("add address "+addr.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	flags := byte(unix.IFA_F_PERMANENT)
	if addr.Addr().Is6() {
		flags |= unix.IFA_F_NODAD
	}
	r.raw([]byte{family(addr.Addr()), byte(addr.Bits()), flags, unix.RT_SCOPE_UNIVERSE}, u32(uint32(index)))
	r.attr(unix.IFA_LOCAL, addr.Addr().AsSlice())
	r.attr(unix.IFA_ADDRESS, addr.Addr().AsSlice())
	r.fine = []syscall.Errno{unix.EEXIST}
}

// Route is one route of the main table, made with [RouteProtocol].
type Route struct {
	Dst   netip.Prefix // masked; 0.0.0.0/0 or ::/0 is the default route
	Via   netip.Addr   // gateway, taken to be on the link whatever the addresses there say; zero: Dst itself is on the link
	Index int          // outgoing interface
	Src   netip.Addr   // preferred source address; zero: the kernel chooses
	MTU   int          // bytes; 0: the interface's
}

// RouteAdd adds a route and fails with EEXIST when there is already one to the
// same destination, whoever made it and wherever it leads.
func (b *Batch) RouteAdd(route Route) { b.route(route, unix.NLM_F_EXCL) }

// RouteReplace adds a route or replaces the one to the same destination.
func (b *Batch) RouteReplace(route Route) { b.route(route, unix.NLM_F_REPLACE) }

func (b *Batch) route(route Route, how uint16) {
	r := b.add("add route to "+route.Dst.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|how)
	scope, flags := byte(unix.RT_SCOPE_LINK), uint32(0)
	if route.Via.IsValid() {
		scope, flags = unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK
	}
	r.rtmsg(route.Dst, RouteProtocol, scope, flags)
	r.attr(unix.RTA_OIF, u32(uint32(route.Index)))
	if route.Via.IsValid() {
		r.attr(unix.RTA_GATEWAY, route.Via.AsSlice())
	}
	if route.Src.IsValid() {
		r.attr(unix.RTA_PREFSRC, route.Src.AsSlice())
	}
	if route.MTU > 0 {
		metrics := r.nest(unix.RTA_METRICS)
		r.attr(unix.RTAX_MTU, u32(uint32(route.MTU)))
		r.end(metrics)
	}
}

// RouteDel removes a route of ours: with [RouteProtocol], to route.Dst, and
// through route.Index if that is set. One that is not there is fine.
func (b *Batch) RouteDel(route Route) {
	r := b.add("delete route to "+route.Dst.String(), unix.RTM_DELROUTE, 0)
	r.rtmsg(route.Dst, RouteProtocol, unix.RT_SCOPE_NOWHERE, 0)
	if route.Index > 0 {
		r.attr(unix.RTA_OIF, u32(uint32(route.Index)))
	}
	r.fine = []syscall.Errno{unix.ESRCH}
}

// NeighSet pins the link address of a neighbour for good, so that it is never
// asked for.
func (b *Batch) NeighSet(index int, addr netip.Addr, mac net.HardwareAddr) {
	r := b.add("set neighbour "+addr.String(), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	r.raw([]byte{family(addr), 0, 0, 0}, u32(uint32(index)), u16(unix.NUD_PERMANENT), []byte{0, 0})
	r.attr(unix.NDA_DST, addr.AsSlice())
	r.attr(unix.NDA_LLADDR, mac)
	r.attr(ndaProtocol, []byte{RouteProtocol})
}

// ndaProtocol is NDA_PROTOCOL of linux/neighbour.h (Linux 5.0; ignored before).
const ndaProtocol = 12

// Len returns how many requests are waiting to be sent.
func (b *Batch) Len() int { return len(b.reqs) }

// Send sends all requests and waits for their answers. The error joins those of
// all requests that failed, each an errno wrapped in words. The batch is empty
// afterwards and can be used again.
func (b *Batch) Send() error {
	var errs []error
	for part := range slices.Chunk(b.reqs, batchLimit) {
		if err := b.sendPart(part, &errs); err != nil {
			errs = append(errs, err)
			break
		}
	}
	b.reqs = b.reqs[:0]
	return errors.Join(errs...)
}

// sendPart does one system call's worth. Errors of single requests go to errs;
// the returned error means that nothing more can be sent.
func (b *Batch) sendPart(part []request, errs *[]error) error {
	var out []byte
	for i := range part {
		out = append(out, part[i].msg...)
	}
	if err := unix.Sendto(b.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink requests: %w", err)
	}
	first := binary.NativeEndian.Uint32(part[0].msg[8:])
	if b.in == nil {
		b.in = make([]byte, 64<<10)
	}
	for waiting := len(part); waiting > 0; {
		answers, err := b.receive(b.in)
		if err != nil {
			return err
		}
		for _, answer := range answers {
			at := answer.Header.Seq - first
			if at >= uint32(len(part)) {
				continue
			}
			done, err := part[at].answer(answer)
			if err != nil {
				*errs = append(*errs, fmt.Errorf("%s: %w", part[at].what, err))
			}
			if done {
				waiting--
			}
		}
	}
	return nil
}

// receive waits for what the kernel says next, and takes it apart in buf.
func (b *Batch) receive(buf []byte) ([]syscall.NetlinkMessage, error) {
	for {
		n, _, err := unix.Recvfrom(b.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read netlink answers: %w", err)
		}
		answers, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, fmt.Errorf("parse netlink answers: %w", err)
		}
		return answers, nil
	}
}

// answer takes one message of the kernel; done says that it was the last one for
// this request.
func (r *request) answer(answer syscall.NetlinkMessage) (done bool, err error) {
	if answer.Header.Type != unix.NLMSG_ERROR {
		if r.take == nil {
			return false, nil
		}
		return false, r.take(answer.Data) // the acknowledgement follows
	}
	if len(answer.Data) < 4 {
		return true, unix.EPROTO
	}
	errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(answer.Data)))
	if errno == 0 || slices.Contains(r.fine, errno) {
		return true, nil
	}
	if text := extAck(answer); text != "" {
		return true, fmt.Errorf("%w (%s)", errno, text)
	}
	return true, errno
}

// upTimeout bounds [Batch.WaitUp]: the kernel's worker needs milliseconds, on a
// machine with much to do more.
const upTimeout = 5 * time.Second

// WaitUp sends what is in the batch and waits until the interface with this name
// can send. An end of a veth pair that was set up before the other one drops
// everything until a worker of the kernel has noticed the other: without waiting,
// the first packet may be lost. Asking makes kernels since 6.9 do that work at
// once; with older ones it takes a few tries.
//
// It also waits until the addresses, which [Batch.AddrAdd] has added, are the namespace's own: with IPv6 that too is a worker's work, of which
// the kernel tells. A worker that waits for the lock of interfaces is not to be held up by those who ask whether it is ready.
func (b *Batch) WaitUp(name string, addrs ...netip.Addr) error {
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		// Without it the address is noticed a little later.
		_ = unix.SetsockoptInt(b.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_IPV6_ROUTE)
	}
	var link netlink.LinkAttrs
	for end, pause := time.Now().Add(upTimeout), 50*time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		if link.OperState != netlink.OperUp {
			b.LinkGet(name, &link)
		}
		ways := make([]Found, len(addrs))
		for i, addr := range addrs {
			b.RouteGet(addr, &ways[i])
		}
		if err := b.Send(); err != nil {
			return err
		}
		up, missing := link.OperState == netlink.OperUp, slices.IndexFunc(ways, func(way Found) bool { return !way.Local })
		switch {
		case up && missing < 0:
			return nil
		case time.Now().Before(end):
		case up:
			return fmt.Errorf("wait for address %s: interface %s does not answer to it after %s", addrs[missing], name, upTimeout)
		default:
			return fmt.Errorf("wait for interface %s: it is %s after %s", name, link.OperState, upTimeout)
		}
		limit := unix.NsecToTimespec(pause.Nanoseconds())
		_, _ = unix.Ppoll([]unix.PollFd{{Fd: int32(b.fd), Events: unix.POLLIN}}, &limit, nil)
	}
}

// extAck returns the kernel's own words for an error: NLMSGERR_ATTR_MSG after
// the error code and the header of the request.
func extAck(answer syscall.NetlinkMessage) string {
	const attrMsg, attrsAt = 1, 4 + unix.NLMSG_HDRLEN
	if answer.Header.Flags&unix.NLM_F_ACK_TLVS == 0 || len(answer.Data) < attrsAt {
		return ""
	}
	for kind, value := range attrs(answer.Data[attrsAt:]) {
		if kind == attrMsg {
			return unix.ByteSliceToString(value)
		}
	}
	return ""
}

// add appends an empty request with its header.
func (b *Batch) add(what string, kind, flags uint16) *request {
	b.seq++
	header := slices.Concat(u32(0), u16(kind), u16(unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags), u32(b.seq), u32(0))
	b.reqs = append(b.reqs, request{what: what, msg: header})
	r := &b.reqs[len(b.reqs)-1]
	r.raw()
	return r
}

// raw appends fixed parts and keeps the length in the header right.
func (r *request) raw(parts ...[]byte) {
	for _, part := range parts {
		r.msg = append(r.msg, part...)
	}
	binary.NativeEndian.PutUint32(r.msg, uint32(len(r.msg)))
}

// ifinfo appends a struct ifinfomsg.
func (r *request) ifinfo(index int, flags, change uint32) {
	r.raw(make([]byte, 4), u32(uint32(index)), u32(flags), u32(change))
}

// rtmsg appends a struct rtmsg and its destination.
func (r *request) rtmsg(dst netip.Prefix, proto, scope byte, flags uint32) {
	r.raw([]byte{family(dst.Addr()), byte(dst.Bits()), 0, 0, unix.RT_TABLE_MAIN, proto, scope, unix.RTN_UNICAST}, u32(flags))
	if dst.Bits() > 0 {
		r.attr(unix.RTA_DST, dst.Addr().AsSlice())
	}
}

func (r *request) linkAttrs(name string, mac net.HardwareAddr, mtu int) {
	r.attr(unix.IFLA_IFNAME, zeroed(name))
	if mac != nil {
		r.attr(unix.IFLA_ADDRESS, mac)
	}
	if mtu > 0 {
		r.attr(unix.IFLA_MTU, u32(uint32(mtu)))
	}
	// One queue is what the kernel gives a veth anyway. Where it has not been asked for one, it makes one for each processor and puts the others away, which
	// takes two RCU grace periods of all who wait for the lock of interfaces.
	r.attr(unix.IFLA_NUM_TX_QUEUES, u32(1))
	r.attr(unix.IFLA_NUM_RX_QUEUES, u32(1))
}

// attr appends an attribute, padded to four bytes.
func (r *request) attr(kind uint16, value []byte) {
	size := unix.SizeofRtAttr + len(value)
	r.raw(u16(uint16(size)), u16(kind), value, make([]byte, align(size)-size))
}

// nest opens an attribute that holds what is appended until end.
func (r *request) nest(kind uint16) (start int) {
	start = len(r.msg)
	r.attr(kind, nil)
	return start
}

func (r *request) end(start int) {
	binary.NativeEndian.PutUint16(r.msg[start:], uint16(len(r.msg)-start))
}

func family(addr netip.Addr) byte {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

func u16(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func zeroed(s string) []byte { return append([]byte(s), 0) }

// attrs goes through the netlink attributes in b, without their flags, up to the
// first that does not fit.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtAttr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}
