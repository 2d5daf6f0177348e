// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Found is what the kernel says of the way to an address.
type Found struct {
	Index int  // of the outgoing interface; 0: there is no way
	Local bool // the address is one of this namespace's own
	Via   bool // by way of a gateway
	MTU   int  // that the route has, bytes; 0: the interface's
}

// noRoute are the errors by which the kernel says that there is no way to an address, or one that refuses.
var noRoute = []syscall.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EAFNOSUPPORT, unix.EINVAL}

// RouteGet asks for the way to an address and fills in into when Send returns without error. It stays as it is if there is none.
func (b *Batch) RouteGet(dst netip.Addr, into *Found) {
	r := b.add("look up route to "+dst.String(), unix.RTM_GETROUTE, 0)
	r.raw([]byte{family(dst), byte(dst.BitLen()), 0, 0, 0, 0, 0, 0}, u32(0))
	r.attr(unix.RTA_DST, dst.AsSlice())
	r.fine = noRoute
	r.take = func(data []byte) error {
		if len(data) < unix.SizeofRtMsg {
			return unix.EPROTO
		}
		into.Local = data[7] == unix.RTN_LOCAL
		for kind, value := range attrs(data[unix.SizeofRtMsg:]) {
			switch {
			case kind == unix.RTA_OIF && len(value) == 4:
				into.Index = int(binary.NativeEndian.Uint32(value))
			case kind == unix.RTA_GATEWAY || kind == unix.RTA_VIA:
				into.Via = true
			case kind == unix.RTA_METRICS:
				for metric, value := range attrs(value) {
					if metric == unix.RTAX_MTU && len(value) == 4 {
						into.MTU = int(binary.NativeEndian.Uint32(value))
					}
				}
			}
		}
		return nil
	}
}

// InUse is an address that somebody has, here or one step away.
type InUse struct {
	Addr netip.Addr
	Link string // the interface of this namespace that has the address, or whose other end is in the namespace that has it
}

// AddrsInUse returns the addresses of the current namespace and of every namespace to which a veth pair leads from it, whoever made them: on a node, those
// of all pods. It looks at addresses and at nothing else, neither at routes nor at other programs' files. A namespace that ends meanwhile has
// none. It needs Linux 4.20 and CAP_NET_ADMIN.
func AddrsInUse() ([]InUse, error) {
	links, err := Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	const here = -1
	type end struct{ ns, index int }
	names := map[end]string{} // of the interface here by its own index and by that of its other end
	inside := map[int]string{here: ""}
	for _, link := range links {
		attrs := link.Attrs()
		names[end{here, attrs.Index}] = attrs.Name
		if link.Type() == "veth" && attrs.NetNsID >= 0 {
			names[end{attrs.NetNsID, attrs.ParentIndex}] = attrs.Name
			inside[attrs.NetNsID] = attrs.Name
		}
	}
	var all []InUse
	for ns, way := range inside {
		found, err := Dump(func() ([]indexed, error) { return addrsOf(ns) })
		if errors.Is(err, unix.EINVAL) && ns != here {
			continue // the kernel does not know the number any more
		}
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range found {
			name := names[end{ns, a.index}]
			if name == "" { // another interface of the same pod
				name = way
			}
			all = append(all, InUse{a.addr, name})
		}
	}
	return all, nil
}

// indexed is an address and its interface in its own namespace.
type indexed struct {
	index int
	addr  netip.Addr
}

// ifaTargetNetNSID is IFA_TARGET_NETNSID of linux/if_addr.h.
const ifaTargetNetNSID = 10

// addrsOf lists the addresses of the namespace that has this number here, or of this one if it is negative.
func addrsOf(nsid int) (all []indexed, err error) {
	b, err := NewBatch()
	if err != nil {
		return nil, err
	}
	defer b.Close()
	// Without it the kernel takes no notice of the number, and lists this namespace.
	if err := unix.SetsockoptInt(b.fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return nil, fmt.Errorf("ask for strict checks: %w", err)
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		r := b.add("", unix.RTM_GETADDR, unix.NLM_F_DUMP)
		r.raw([]byte{family, 0, 0, 0}, u32(0))
		if nsid >= 0 {
			r.attr(ifaTargetNetNSID, u32(uint32(nsid)))
		}
		err := b.dump(r.msg, func(data []byte) {
			if len(data) < unix.SizeofIfAddrmsg {
				return
			}
			found := indexed{index: int(binary.NativeEndian.Uint32(data[4:]))}
			for kind, value := range attrs(data[unix.SizeofIfAddrmsg:]) {
				// Of a pair of addresses, IFA_LOCAL is this end's; IPv6 has it only then.
				if kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !found.addr.IsValid() {
					found.addr, _ = netip.AddrFromSlice(value)
				}
			}
			if found.addr.IsValid() {
				all = append(all, found)
			}
		})
		b.reqs = b.reqs[:0]
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// dump sends one request for a list and calls each with every entry.
func (b *Batch) dump(msg []byte, each func(data []byte)) error {
	if err := unix.Sendto(b.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink request: %w", err)
	}
	seq := binary.NativeEndian.Uint32(msg[8:])
	in := make([]byte, 64<<10)
	interrupted := false
	for {
		answers, err := b.receive(in)
		if err != nil {
			return err
		}
		for _, answer := range answers {
			if answer.Header.Seq != seq {
				continue
			}
			interrupted = interrupted || answer.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch answer.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(answer.Data) >= 4 {
					if errno := -int32(binary.NativeEndian.Uint32(answer.Data)); errno != 0 {
						return syscall.Errno(errno)
					}
				}
				if interrupted {
					return netlink.ErrDumpInterrupted
				}
				return nil
			default:
				each(answer.Data)
			}
		}
	}
}
