// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// want is everything that a snapshot asks the kernel for.
type want struct {
	routes []wish // in a fixed order
	// Of the tunnel's device: who has a gateway's address, and which node a link address is at.
	neighs map[netip.Addr]mac
	fdb    map[mac]netip.Addr
	// rules are ranges of own pods that look into podTable first.
	rules map[netip.Prefix]struct{}
	// admit is what may come out of the tunnel.
	admit map[admission]struct{}
	// links are the devices that the routes lead to.
	links Links
	// problems is what is asked for in vain, whatever the kernel says; sorted.
	problems []string
	// linked and tunnelled are how many other nodes are reached in which way; a node of two families may be both.
	linked, tunnelled int
}

// wish is a route and for whom it is, in words.
type wish struct {
	route
	who string
}

// conditions are what decides beside the snapshot.
type conditions struct {
	mode Mode
	// dev is the number of the tunnel's device; 0: there is none, and off says why.
	dev int
	off string
	way func(netip.Addr) way
}

// desired turns a snapshot into what it asks for. It is pure.
func desired(s *model.Snapshot, c conditions) *want {
	w := &want{
		neighs: make(map[netip.Addr]mac), fdb: make(map[mac]netip.Addr),
		rules: make(map[netip.Prefix]struct{}), admit: make(map[admission]struct{}),
		links: Links{Tunnel: c.dev, Ways: make(map[netip.Prefix]Way)},
	}
	for _, vip := range s.DNS {
		w.add("cluster DNS", route{kind: unix.RTN_LOCAL, dst: single(vip)})
	}
	if s.Left.Has(model.Network) {
		return w
	}
	nodes, self := inOrder(s), s.Node()
	owner, inner := owners(nodes), make(map[netip.Addr][]netip.Prefix)
	within := nested(owner)
	for _, n := range nodes {
		p := &peer{Node: n, self: self, conditions: c}
		for _, cidr := range n.PodCIDRs {
			cidr = cidr.Masked()
			if first := owner[cidr]; first != n.Name {
				w.problem("pods of node %s (%s) cannot be reached: node %s has the same range", n.Name, cidr, first)
				continue
			}
			if part, ok := within[cidr]; ok { // packets go by the longer prefix, so only these are lost
				w.problem("pods of node %s (%s) with addresses in %s cannot be reached: node %s has that range", n.Name, cidr, part, owner[part])
			}
			if n.Name == s.Self {
				w.add("unused pod addresses of this node", route{kind: unix.RTN_UNREACHABLE, dst: cidr})
				continue
			}
			w.lead(p, cidr)
			p.admitted = append(p.admitted, cidr)
		}
		if outer := p.outer(); n.Name != s.Self && outer.IsValid() {
			// Two nodes may have one address, by mistake or for a moment.
			inner[outer] = slices.Concat(inner[outer], p.admitted, singles(p.Addrs))
		}
		w.linked += p.linked
		w.tunnelled += p.tunnelled
	}
	for outer, ranges := range inner {
		w.admits(outer, ranges)
	}
	if self != nil {
		for _, cidr := range self.PodCIDRs {
			if slices.ContainsFunc(w.routes, func(r wish) bool { return r.pods && r.dst.Addr().Is4() == cidr.Addr().Is4() }) {
				w.rules[cidr.Masked()] = struct{}{}
			}
		}
	}
	if c.mode == Always && c.dev == 0 && s.Nodes.Len() > 1 { // alone, there is nobody to reach
		w.problem("--tunnel=always cannot be followed: the tunnel %s", c.off)
	}
	slices.SortStableFunc(w.routes, func(a, b wish) int { return a.compare(b.route) })
	// Two nodes beyond the tunnel may have one address: one of their own making that moves between them, say. The first has it.
	w.routes = slices.CompactFunc(w.routes, func(a, b wish) bool { return a.key() == b.key() })
	for _, r := range w.routes {
		if r.kind != unix.RTN_UNICAST || r.pods {
			continue
		}
		if r.dev == c.dev {
			w.links.Ways[r.dst] = Way{Dev: r.dev, Via: r.via, MTU: r.mtu, Tunnel: true}
			continue
		}
		w.links.Ways[r.dst] = Way{Dev: r.dev, Via: r.via, MTU: c.way(r.via).mtu}
		if at, found := slices.BinarySearch(w.links.Plain, r.dev); !found {
			w.links.Plain = slices.Insert(w.links.Plain, at, r.dev)
		}
	}
	slices.Sort(w.problems)
	return w
}

// inOrder are the nodes, first this one, whose range is its own, and then by name: of two with the same range the first has it.
func inOrder(s *model.Snapshot) []*model.Node {
	nodes := make([]*model.Node, 0, s.Nodes.Len())
	for name, n := range s.Nodes.All() {
		if name != s.Self {
			nodes = append(nodes, n)
		}
	}
	slices.SortFunc(nodes, func(a, b *model.Node) int { return cmp.Compare(a.Name, b.Name) })
	if self := s.Node(); self != nil {
		nodes = slices.Insert(nodes, 0, self)
	}
	return nodes
}

// owners says whose each range is: that of the first who has it.
func owners(nodes []*model.Node) map[netip.Prefix]string {
	owner := make(map[netip.Prefix]string)
	for _, n := range nodes {
		for _, cidr := range n.PodCIDRs {
			if _, taken := owner[cidr.Masked()]; !taken {
				owner[cidr.Masked()] = n.Name
			}
		}
	}
	return owner
}

// nested returns one of the other nodes' ranges that lie in a range, for each that has such.
func nested(owner map[netip.Prefix]string) map[netip.Prefix]netip.Prefix {
	// What lies in a range follows it, in this order.
	all := slices.SortedFunc(maps.Keys(owner), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	within := make(map[netip.Prefix]netip.Prefix)
	for i, r := range all {
		if i+1 < len(all) && r.Overlaps(all[i+1]) {
			within[r] = all[i+1]
		}
	}
	return within
}

func (w *want) add(who string, r route) { w.routes = append(w.routes, wish{r, who}) }

func (w *want) problem(format string, args ...any) {
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// peer is another node, and how it can be reached.
type peer struct {
	*model.Node
	self *model.Node // nil: not known
	conditions
	admitted          []netip.Prefix
	linked, tunnelled int // 1 if any of its ranges is reached so
}

// outer is the peer's end of the tunnel: its first address, if that is of the same family as this node's.
func (p *peer) outer() netip.Addr {
	if p.self == nil || len(p.self.Addrs) == 0 || len(p.Addrs) == 0 || p.self.Addrs[0].Is4() != p.Addrs[0].Is4() {
		return netip.Addr{}
	}
	return p.Addrs[0]
}

// tunnel says why the peer cannot be reached through the tunnel, in words that follow "the tunnel"; empty: it can.
func (p *peer) tunnel() (why string) {
	switch {
	case p.dev == 0:
		return p.off
	case len(p.Addrs) == 0:
		return "needs an address of that node"
	case !p.outer().IsValid():
		return fmt.Sprintf("of this node runs over %s and that node's over %s: let the first addresses of all nodes be of one family", familyName(p.self.Addrs[0]), familyName(p.Addrs[0]))
	}
	if to := p.way(p.outer()); to.err != nil {
		return fmt.Sprintf("finds no route to %s", p.outer())
	}
	return ""
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// lead adds the way to one of a peer's ranges.
func (w *want) lead(p *peer, cidr netip.Prefix) {
	via := p.Addr(cidr.Addr())
	var direct way
	if via.IsValid() {
		direct = p.way(via)
	}
	near := direct.near || p.mode == Never && direct.dev != 0 && !direct.routed
	why := p.tunnel()
	switch {
	case near && (p.mode != Always || why != ""):
		w.add("node "+p.Name, route{kind: unix.RTN_UNICAST, dst: cidr, via: via, dev: direct.dev})
		p.linked = 1
	case p.mode != Never && why == "":
		w.through(p, cidr)
		p.tunnelled = 1
	case !via.IsValid() && p.mode == Never:
		w.problem("pods of node %s (%s) cannot be reached: the node has no address of that family", p.Name, cidr)
	case p.mode == Never:
		w.problem("pods of node %s (%s) cannot be reached: its address %s is on no link that this node shares; that needs the tunnel, which --tunnel=never has switched off", p.Name, cidr, via)
	case !via.IsValid():
		w.problem("pods of node %s (%s) cannot be reached: the node has no address of that family, and the tunnel %s", p.Name, cidr, why)
	default:
		w.problem("pods of node %s (%s) cannot be reached: its address %s is on no link that this node shares, and the tunnel %s", p.Name, cidr, via, why)
	}
}

// through leads to a range, and to the peer's own addresses for this node's pods, by way of the tunnel.
func (w *want) through(p *peer, cidr netip.Prefix) {
	at := macOf(p.outer())
	gateway := at.gateway(cidr)
	for other, taken := w.neighs[gateway]; taken && other != at; other, taken = w.neighs[gateway] {
		gateway = gateway.Next() // a range that lies in another one may begin with the same address
	}
	mtu := p.way(p.outer()).mtu - overhead(p.outer())
	if gateway.Is6() {
		mtu = max(mtu, minMTU6)
	}
	w.neighs[gateway], w.fdb[at] = at, p.outer()
	w.add("node "+p.Name, route{kind: unix.RTN_UNICAST, dst: cidr, via: gateway, dev: p.dev, mtu: mtu, src: p.self.Addr(gateway)})
	for _, a := range p.Addrs {
		if a.Is4() == gateway.Is4() && !slices.Contains(p.self.Addrs, a) {
			w.add("node "+p.Name, route{kind: unix.RTN_UNICAST, dst: single(a), via: gateway, dev: p.dev, mtu: mtu, pods: true})
		}
	}
}

// admits lets packets out of the tunnel that have come from a node's end and say that they are from its pods, or from itself.
func (w *want) admits(outer netip.Addr, inner []netip.Prefix) {
	slices.SortStableFunc(inner, func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) })
	for i, r := range inner {
		// The kernel refuses one that lies within another.
		if !slices.ContainsFunc(inner[:i], r.Overlaps) {
			w.admit[admission{outer, r}] = struct{}{}
		}
	}
}

// single is the range of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func singles(addrs []netip.Addr) (all []netip.Prefix) {
	for _, a := range addrs {
		all = append(all, single(a))
	}
	return all
}
