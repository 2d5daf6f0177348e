// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ConntrackMatch selects connection tracking entries. All fields that are set
// have to match; at least one address must be set, so that an empty value can
// never empty the table.
type ConntrackMatch struct {
	Proto    uint8          // IP protocol number (6 TCP, 17 UDP); 0: any
	OrigDst  netip.AddrPort // where the client sent to, before any rewriting; port 0: any port; zero value: any
	ReplySrc netip.AddrPort // who answers: the endpoint after DNAT; port 0: any port; zero value: any
}

// flow is an entry of the table as far as a match looks at it.
type flow struct {
	proto             uint8
	origDst, replySrc netip.AddrPort
}

func (m ConntrackMatch) matches(f flow) bool {
	return (m.Proto == 0 || m.Proto == f.proto) && matchEnd(m.OrigDst, f.origDst) && matchEnd(m.ReplySrc, f.replySrc)
}

func matchEnd(want, got netip.AddrPort) bool {
	return !want.Addr().IsValid() || want.Addr() == got.Addr() && (want.Port() == 0 || want.Port() == got.Port())
}

// clean returns the match with IPv4 addresses in their one form, or an error if
// it has no address or two families.
func (m ConntrackMatch) clean() (ConntrackMatch, error) {
	m.OrigDst = netip.AddrPortFrom(m.OrigDst.Addr().Unmap(), m.OrigDst.Port())
	m.ReplySrc = netip.AddrPortFrom(m.ReplySrc.Addr().Unmap(), m.ReplySrc.Port())
	orig, reply := m.OrigDst.Addr(), m.ReplySrc.Addr()
	switch {
	case !orig.IsValid() && !reply.IsValid():
		return m, errors.New("conntrack match without an address")
	case orig.IsValid() && reply.IsValid() && orig.Is4() != reply.Is4():
		return m, fmt.Errorf("conntrack match mixes %s and %s", orig, reply)
	}
	return m, nil
}

func (m ConntrackMatch) family() uint8 {
	if m.OrigDst.Addr().IsValid() {
		return family(m.OrigDst.Addr())
	}
	return family(m.ReplySrc.Addr())
}

// fewMatches is up to how many matches are looked for one by one. Each costs a
// walk through the table inside the kernel, which is cheap; for more, everything
// is read once, which costs a copy of the table.
const fewMatches = 16

// DeleteConntrack removes the entries of the current namespace that any of the
// matches selects and returns how many there were. The kernel looks for them
// (since Linux 5.8; older ones hand over the table), so that little is copied that
// does not matter. Entries that end by themselves meanwhile are not an error.
func DeleteConntrack(matches ...ConntrackMatch) (int, error) {
	families := map[uint8][]ConntrackMatch{}
	for _, m := range matches {
		m, err := m.clean()
		if err != nil {
			return 0, err
		}
		families[m.family()] = append(families[m.family()], m)
	}
	total := 0
	for family, matches := range families {
		walks := [][]ConntrackMatch{matches}
		if len(matches) <= fewMatches {
			walks = slices.Collect(slices.Chunk(matches, 1))
		}
		for _, walk := range walks {
			n, err := deleteFlows(family, walk)
			total += n
			if err != nil {
				return total, fmt.Errorf("delete conntrack entries: %w", err)
			}
		}
	}
	return total, nil
}

// deleteFlows reads once and deletes what matches. An interrupted reading is
// repeated: what was deleted in the first round is not found in the second.
func deleteFlows(family uint8, matches []ConntrackMatch) (total int, err error) {
	for try := 0; ; try++ {
		found, dumpErr := findFlows(family, matches)
		for _, msg := range found {
			req := conntrackRequest(nl.IPCTNL_MSG_CT_DELETE, family, unix.NLM_F_ACK)
			req.AddRawData(msg[nl.SizeofNfgenmsg:]) // the entry itself, with its ID: it cannot hit another one
			_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
			switch {
			case err == nil:
				total++
			case !errors.Is(err, fs.ErrNotExist):
				return total, err
			}
		}
		if try >= dumpTries || !errors.Is(dumpErr, netlink.ErrDumpInterrupted) {
			return total, dumpErr
		}
	}
}

// findFlows returns the messages of all entries that match. A single match goes
// to the kernel as a filter.
func findFlows(family uint8, matches []ConntrackMatch) (found [][]byte, err error) {
	req := conntrackRequest(nl.IPCTNL_MSG_CT_GET, family, unix.NLM_F_DUMP)
	if len(matches) == 1 {
		req.AddRawData(matches[0].filter())
	}
	err = req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		f := parseFlow(msg)
		if slices.ContainsFunc(matches, func(m ConntrackMatch) bool { return m.matches(f) }) {
			found = append(found, slices.Clone(msg))
		}
		return true
	})
	return found, err
}

func conntrackRequest(kind int, family uint8, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|kind, flags)
	req.AddRawData([]byte{family, unix.NFNETLINK_V0, 0, 0}) // struct nfgenmsg
	return req
}

// Attributes of linux/netfilter/nfnetlink_conntrack.h that have no Go names
// elsewhere.
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2

	filterIPSrc     = 1 << 0 // that of the destination is the next bit
	filterProtoNum  = 1 << 3
	filterProtoPort = 1 << 4 // of the source; that of the destination is the next bit
)

// filter encodes the match for the kernel, which may let through more than that:
// matches has the last word. A port goes along only with its protocol.
func (m ConntrackMatch) filter() []byte {
	r := request{msg: make([]byte, unix.NLMSG_HDRLEN)} // for its encoders
	flags := [2]uint32{}
	for i, end := range []netip.AddrPort{m.OrigDst, m.ReplySrc} {
		addr := end.Addr()
		if !addr.IsValid() {
			continue
		}
		isDst := 1 - i // the original direction is known by its destination, the reply by its source
		tuple := r.nest(uint16(nl.CTA_TUPLE_ORIG+i) | unix.NLA_F_NESTED)
		ip := r.nest(nl.CTA_TUPLE_IP | unix.NLA_F_NESTED)
		attr := nl.CTA_IP_V4_SRC + isDst
		if addr.Is6() {
			attr = nl.CTA_IP_V6_SRC + isDst
		}
		r.attr(uint16(attr), addr.AsSlice())
		r.end(ip)
		if addr.Is4() { // Linux (6.18 still) takes the IPv6 entries that do not have the address
			flags[i] = filterIPSrc << isDst
		}
		if m.Proto != 0 {
			flags[i] |= filterProtoNum
			proto := r.nest(nl.CTA_TUPLE_PROTO | unix.NLA_F_NESTED)
			r.attr(nl.CTA_PROTO_NUM, []byte{m.Proto})
			if end.Port() != 0 {
				flags[i] |= filterProtoPort << isDst
				r.attr(uint16(nl.CTA_PROTO_SRC_PORT+isDst), binary.BigEndian.AppendUint16(nil, end.Port()))
			}
			r.end(proto)
		}
		r.end(tuple)
	}
	filter := r.nest(ctaFilter | unix.NLA_F_NESTED)
	r.attr(ctaFilterOrigFlags, u32(flags[0]))
	r.attr(ctaFilterReplyFlags, u32(flags[1]))
	r.end(filter)
	return r.msg[unix.NLMSG_HDRLEN:]
}

// parseFlow takes from an entry's message what a match needs. What it does not
// understand stays empty and matches nothing that is asked for.
func parseFlow(msg []byte) (f flow) {
	if len(msg) < nl.SizeofNfgenmsg {
		return f
	}
	for kind, value := range attrs(msg[nl.SizeofNfgenmsg:]) {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			f.proto, _, f.origDst = parseTuple(value)
		case nl.CTA_TUPLE_REPLY:
			f.proto, f.replySrc, _ = parseTuple(value) // the same protocol
		}
	}
	return f
}

func parseTuple(tuple []byte) (proto uint8, src, dst netip.AddrPort) {
	var addrs [2]netip.Addr
	var ports [2]uint16
	for kind, value := range attrs(tuple) {
		switch kind {
		case nl.CTA_TUPLE_IP:
			for kind, value := range attrs(value) {
				if addr, ok := netip.AddrFromSlice(value); ok {
					addrs[(kind+1)%2] = addr // sources are 1 and 3, destinations 2 and 4
				}
			}
		case nl.CTA_TUPLE_PROTO:
			for kind, value := range attrs(value) {
				switch {
				case kind == nl.CTA_PROTO_NUM && len(value) == 1:
					proto = value[0]
				case (kind == nl.CTA_PROTO_SRC_PORT || kind == nl.CTA_PROTO_DST_PORT) && len(value) == 2:
					ports[kind-nl.CTA_PROTO_SRC_PORT] = binary.BigEndian.Uint16(value)
				}
			}
		}
	}
	return proto, netip.AddrPortFrom(addrs[0], ports[0]), netip.AddrPortFrom(addrs[1], ports[1])
}

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

// ConntrackCount returns how many connections the current namespace tracks.
func ConntrackCount() (int, error) {
	text, err := ReadSysctl("net/netfilter/nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("count conntrack entries: %w", err)
	}
	return n, nil
}
