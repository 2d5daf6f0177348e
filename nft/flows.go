// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// A UDP flow has no end that conntrack could see: as long as packets come, they go where the first one went, also when nobody is there any
// more, or somebody else. So after a change, every UDP flow to an address and port that changed is looked at, and
// removed if it leads to what is no candidate now. This follows from what is, not from what happened: a flow that was missed once
// is found the next time, at the latest when the agent starts.

// Attributes of conntrack messages that golang.org/x/sys/unix does not name (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctGet      = 1
	ctDelete   = 2
	ctGetStats = 5

	ctStatsEntries = 1 // CTA_STATS_GLOBAL_ENTRIES

	ctTupleOrig  = 1
	ctTupleReply = 2
	ctID         = 12
	ctZone       = 18
	ctFilter     = 25

	ctTupleIP    = 1
	ctTupleProto = 2
	ctIPv4Src    = 1
	ctIPv4Dst    = 2
	ctIPv6Src    = 3
	ctIPv6Dst    = 4
	ctProtoNum   = 1
	ctProtoSrc   = 2
	ctProtoDst   = 3

	ctFilterOrig    = 1
	ctFilterIPDst   = 1 << 1
	ctFilterNum     = 1 << 3
	ctFilterPortDst = 1 << 5
)

// manyPorts is from how many changed frontends on one reading of all UDP flows is cheaper than one reading for each.
const manyPorts = 4

// flow is a UDP conntrack entry.
type flow struct {
	from, to netip.AddrPort // the client, and where it sends to
	leads    netip.AddrPort // who answers
	origin   []byte         // what the kernel needs to find it again
	id       []byte
	zone     []byte
}

// cleanFlows removes the flows that lead to no candidate of the frontends that changed.
func (t *Target) cleanFlows() error {
	if len(t.stale) == 0 && !t.everyStale {
		return nil
	}
	if n, err := t.conn.tracked(); err == nil && n == 0 { // else the kernel goes through its whole, empty table
		clear(t.stale)
		t.everyStale = false
		return nil
	}
	isOwn := t.ownAddrs()
	for _, f := range families {
		var fronts []frontend
		for k := range t.stale {
			if familyOf(k.Addr) == f {
				fronts = append(fronts, k)
			}
		}
		if !t.everyStale && len(fronts) == 0 {
			continue
		}
		if t.everyStale || len(fronts) > manyPorts {
			fronts = []frontend{{}}
		}
		start, before := time.Now(), t.stats.Flows
		for _, k := range fronts {
			if err := t.cleanPort(f, k, isOwn); err != nil {
				return fmt.Errorf("remove flows to past endpoints: %w", err)
			}
		}
		if t.options.Flows != nil {
			t.options.Flows(f == v6, time.Since(start), int(t.stats.Flows-before))
		}
	}
	clear(t.stale)
	t.everyStale = false
	return nil
}

func (t *Target) cleanPort(f *family, k frontend, isOwn func(netip.Addr) bool) error {
	var found []flow
	err := t.conn.flows(f, k, func(x flow) {
		if t.isStale(x, isOwn) {
			x.origin, x.id, x.zone = slices.Clone(x.origin), slices.Clone(x.id), slices.Clone(x.zone)
			found = append(found, x)
		}
	})
	if err != nil {
		return err
	}
	for _, x := range found {
		deleted, err := t.conn.deleteFlow(f, x)
		if err != nil {
			return err
		}
		if deleted {
			t.stats.Flows++
		}
	}
	return nil
}

// ownAddrs knows this node's addresses, which it reads when it is asked for the first time.
func (t *Target) ownAddrs() func(netip.Addr) bool {
	own := sync.OnceValue(func() (all []net.Addr) {
		read := func() (err error) { all, err = net.InterfaceAddrs(); return err }
		var err error
		if t.options.NetNS == nil {
			err = read()
		} else {
			err = t.options.NetNS.Do(read)
		}
		if err != nil {
			t.options.Logger.Warn("cannot read this node's addresses; UDP flows of others may be removed, and made again by their next packet", "err", err)
			return nil
		}
		return all
	})
	return func(a netip.Addr) bool {
		return a.IsLoopback() || own() == nil || slices.ContainsFunc(own(), func(o net.Addr) bool {
			p, err := netip.ParsePrefix(o.String())
			return err == nil && p.Addr().Unmap() == a
		})
	}
}

// isStale reports whether a flow is to a frontend that is to be looked at and leads where its Service has no endpoint that could go on
// serving it. A flow that was made before the Service existed leads to the virtual address itself, or to this node; one that leads to an address that
// isOwn does not know for this node's has only its port in common with a node port or host port.
func (t *Target) isStale(x flow, isOwn func(netip.Addr) bool) bool {
	k := frontend{Addr: x.to.Addr(), Protocol: model.UDP, Port: x.to.Port()}
	changed := false
	for _, a := range [...]netip.Addr{k.Addr, model.Unspecified(k.Addr)} {
		for _, host := range [...]bool{false, true} {
			_, stale := t.stale[frontend{Addr: a, Protocol: k.Protocol, Port: k.Port, Host: host}]
			changed = changed || stale
		}
	}
	if !changed && !t.everyStale {
		return false
	}
	w, ok := t.last.Way(k)
	if _, virtual := t.last.VIPs.Get(k.Addr); !ok && !virtual {
		_, w, ok = t.last.AtNode(k)
		ok = ok && (x.leads != x.to || isOwn(k.Addr))
	}
	switch {
	case ok && w.Kind == model.AtLeaving && x.leads == x.to:
		return false // it is the endpoint's own, as long as that is there
	case ok:
		return !slices.ContainsFunc(w.Service.Backends[w.Port], func(b model.Backend) bool { return b.AddrPort() == x.leads && (b.Serving || b.Ready) })
	case changed:
		return x.leads != x.to // the frontend is gone, and the flow is still translated
	}
	// At the start nobody remembers which frontends there were, but virtual addresses are for nothing else.
	_, virtual := t.last.VIPs.Get(k.Addr)
	_, foreign := t.last.Foreign.Get(k.Addr)
	return virtual || !foreign && t.last.InServiceCIDRs(k.Addr)
}

// flows hands every UDP flow of a family to each; with a frontend only those to it. The kernel selects; one that is too old for that
// (before 5.8) gives all, and the caller looks again anyway. What each gets is valid until it returns.
func (c *conn) flows(f *family, k frontend, each func(flow)) error {
	m := &message{}
	m.begin(unix.NFNL_SUBSYS_CTNETLINK<<8|ctGet, unix.NLM_F_DUMP, f.nfproto, 0)
	flags := uint32(ctFilterNum)
	tuple := m.nest(ctTupleOrig)
	if k.Port != 0 {
		flags |= ctFilterPortDst
	}
	if k.Port != 0 && f == v4 && !k.Addr.IsUnspecified() { // for IPv6 the kernel (seen in 6.18) gives those with any other address
		flags |= ctFilterIPDst
		ip := m.nest(ctTupleIP)
		m.put(f.ctDst(), k.Addr.AsSlice())
		m.close(ip)
	}
	proto := m.nest(ctTupleProto)
	m.put(ctProtoNum, []byte{byte(model.UDP)})
	if k.Port != 0 {
		m.put(ctProtoDst, binary.BigEndian.AppendUint16(nil, k.Port))
	}
	m.close(proto)
	m.close(tuple)
	filter := m.nest(ctFilter)
	m.put(ctFilterOrig, binary.NativeEndian.AppendUint32(nil, flags))
	m.close(filter)
	for try := 0; ; try++ {
		changed, err := c.request(m, func(data []byte) error {
			if x, ok := f.parseFlow(data); ok {
				each(x)
			}
			return nil
		})
		if err != nil || !changed || try == readTries {
			return err
		}
	}
}

// tracked is the number of tracked connections of all kinds.
func (c *conn) tracked() (n uint32, err error) {
	m := &message{}
	m.begin(unix.NFNL_SUBSYS_CTNETLINK<<8|ctGetStats, unix.NLM_F_ACK, unix.AF_UNSPEC, 0)
	found := false
	_, err = c.request(m, func(data []byte) error {
		if v := attribute(data, ctStatsEntries); len(v) == 4 {
			n, found = binary.BigEndian.Uint32(v), true
		}
		return nil
	})
	if err == nil && !found {
		err = errors.New("the kernel does not count tracked connections")
	}
	return n, err
}

func (f *family) ctSrc() uint16 {
	if f == v4 {
		return ctIPv4Src
	}
	return ctIPv6Src
}

func (f *family) ctDst() uint16 {
	if f == v4 {
		return ctIPv4Dst
	}
	return ctIPv6Dst
}

func (f *family) parseFlow(data []byte) (x flow, ok bool) {
	x.origin = attribute(data, ctTupleOrig)
	x.id = attribute(data, ctID)
	x.zone = attribute(data, ctZone)
	proto := attribute(x.origin, ctTupleProto, ctProtoNum)
	var ok1, ok2, ok3 bool
	x.from, ok1 = f.parseEnd(x.origin, f.ctSrc(), ctProtoSrc)
	x.to, ok2 = f.parseEnd(x.origin, f.ctDst(), ctProtoDst)
	x.leads, ok3 = f.parseEnd(attribute(data, ctTupleReply), f.ctSrc(), ctProtoSrc)
	return x, ok1 && ok2 && ok3 && len(proto) == 1 && proto[0] == byte(model.UDP)
}

func (f *family) parseEnd(tuple []byte, ip, port uint16) (netip.AddrPort, bool) {
	a, p := attribute(tuple, ctTupleIP, ip), attribute(tuple, ctTupleProto, port)
	if len(a) != f.size || len(p) != 2 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(f.address(a), binary.BigEndian.Uint16(p)), true
}

// deleteFlow removes exactly that entry, which may have ended by itself.
func (c *conn) deleteFlow(f *family, x flow) (bool, error) {
	m := &message{}
	m.begin(unix.NFNL_SUBSYS_CTNETLINK<<8|ctDelete, unix.NLM_F_ACK, f.nfproto, 0)
	m.put(ctTupleOrig|unix.NLA_F_NESTED, x.origin)
	if x.id != nil {
		m.put(ctID, x.id)
	}
	if x.zone != nil {
		m.put(ctZone, x.zone)
	}
	_, err := c.request(m, nil)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}
