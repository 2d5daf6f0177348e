// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	mnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Table is the nftables table, of family inet, that watches the tunnel; there is one while there is the device. Its rules depend on the tunnel's port and on the
// family it runs over, and on nothing else; what changes is the elements of two sets.
//
// A tunnel packet for this node is looked at before it is unpacked: it passes if it comes from a node's address, does not come from a pod, and what is in it
// says that it is from that node's pods or from that node. Connection tracking does not see it, which would keep an entry for each connection inside a
// second time. A TCP connection that is opened through the tunnel is told the route's MTU (its SYN's maximum segment size), so that it does not
// depend on ICMP messages getting through to clients outside the cluster.
const Table = "fairlead-tunnel"

// admission is a node's address and a range that packets from there may say to come from.
type admission struct {
	outer netip.Addr
	inner netip.Prefix
}

// guard is a table's fixed part: a value.
type guard struct {
	port uint16
	over netip.Addr // an address of the family that the tunnel runs over
}

// Where things are in a tunnel packet, in bytes from the beginning of its UDP header: 8 of UDP, 8 of VXLAN, 14 of Ethernet, then the inner packet.
const (
	atVNI       = 8 + 4
	atEtherType = 8 + 8 + 12
	atSource4   = 8 + 8 + 14 + 12
	atSource6   = 8 + 8 + 14 + 8
)

func (g guard) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
}

// set holds admissions of packets with inner addresses of one family.
func (g guard) set(inner6 bool) *nftables.Set {
	outer, inner, name := nftables.TypeIPAddr, nftables.TypeIPAddr, "from4"
	if g.over.Is6() {
		outer = nftables.TypeIP6Addr
	}
	if inner6 {
		inner, name = nftables.TypeIP6Addr, "from6"
	}
	return &nftables.Set{Table: g.table(), Name: name, KeyType: nftables.MustConcatSetType(outer, inner), Interval: true, Concatenation: true}
}

func (a admission) element() nftables.SetElement {
	first, last := a.inner.Addr().AsSlice(), a.inner.Addr().AsSlice()
	for bit := a.inner.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	outer := a.outer.AsSlice()
	return nftables.SetElement{Key: slices.Concat(outer, first), KeyEnd: slices.Concat(outer, last)}
}

// parse is the reverse of element.
func (g guard) parse(e nftables.SetElement) (a admission, ok bool) {
	split := g.over.BitLen() / 8
	if len(e.Key) <= split || len(e.KeyEnd) != len(e.Key) {
		return a, false
	}
	a.outer, _ = netip.AddrFromSlice(e.Key[:split])
	first, last := e.Key[split:], e.KeyEnd[split:]
	bits := 0
	for bits < len(first)*8 && (first[bits/8]^last[bits/8])&(0x80>>(bits%8)) == 0 {
		bits++
	}
	addr, ok := netip.AddrFromSlice(first)
	a.inner = netip.PrefixFrom(addr, bits)
	return a, ok && bytes.Equal(a.element().KeyEnd, e.KeyEnd) && bytes.Equal(e.Key[:split], e.KeyEnd[:split])
}

// line is one rule, and what it is for.
type line struct {
	comment string
	exprs   []expr.Any
}

// chain is a chain and its rules.
type chain struct {
	name     string
	hook     *nftables.ChainHook // nil: it is only gone to
	priority *nftables.ChainPriority
	lines    []line
}

const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_01
)

func load(base expr.PayloadBase, offset, size int) expr.Any {
	return &expr.Payload{DestRegister: reg0, Base: base, Offset: uint32(offset), Len: uint32(size)}
}

func is(data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: data}
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg0} }

func deviceName(name string) expr.Any {
	return is(append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)...)
}

// tunnelPacket matches UDP to the tunnel's port with its VNI; others may use the port with their own. Every packet is asked for the port, and nearly none for
// more.
func (g guard) tunnelPacket() []expr.Any {
	family := byte(unix.NFPROTO_IPV4)
	if g.over.Is6() {
		family = unix.NFPROTO_IPV6
	}
	const th = expr.PayloadBaseTransportHeader
	return []expr.Any{
		load(th, 2, 2), is(byte(g.port>>8), byte(g.port)), meta(expr.MetaKeyL4PROTO), is(unix.IPPROTO_UDP),
		meta(expr.MetaKeyNFPROTO), is(family), load(th, atVNI, 3), is(VNI>>16&0xff, VNI>>8&0xff, VNI&0xff),
	}
}

// from lets packets pass whose outer and inner sources belong together.
func (g guard) from(inner6 bool) line {
	etherType, at, size, comment := []byte{0x08, 0x00}, atSource4, 4, "IPv4 of that node"
	if inner6 {
		etherType, at, size, comment = []byte{0x86, 0xdd}, atSource6, 16, "IPv6 of that node"
	}
	outerAt, outerSize := 12, 4
	if g.over.Is6() {
		outerAt, outerSize = 8, 16
	}
	return line{comment, []expr.Any{
		load(expr.PayloadBaseTransportHeader, atEtherType, 2), is(etherType...),
		load(expr.PayloadBaseNetworkHeader, outerAt, outerSize),
		&expr.Payload{DestRegister: uint32(reg0 + outerSize/4), Base: expr.PayloadBaseTransportHeader, Offset: uint32(at), Len: uint32(size)},
		&expr.Lookup{SourceRegister: reg0, SetName: g.set(inner6).Name},
		&expr.Notrack{}, &expr.Verdict{Kind: expr.VerdictAccept},
	}}
}

// chains are all rules.
func (g guard) chains() []chain {
	drop := []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	local := []expr.Any{&expr.Fib{Register: reg0, ResultADDRTYPE: true, FlagDADDR: true}, is(unix.RTN_LOCAL, 0, 0, 0),
		&expr.Verdict{Kind: expr.VerdictGoto, Chain: "received"}}
	return []chain{
		{name: "received", lines: []line{
			{"of a pod of this node", slices.Concat([]expr.Any{meta(expr.MetaKeyIIFNAME), is('f', 'l')}, drop)},
			g.from(false), g.from(true),
			{"forged, or of a node not known yet", drop},
		}},
		{"prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []line{{"to this node", slices.Concat(g.tunnelPacket(), local)}}},
		{"output", nftables.ChainHookOutput, nftables.ChainPriorityRaw, []line{{"not tracked", append(g.tunnelPacket(), &expr.Notrack{})}}},
		{"forward", nftables.ChainHookForward, nftables.ChainPriorityMangle, []line{{"segments that fit", []expr.Any{
			meta(expr.MetaKeyOIFNAME), deviceName(Device), meta(expr.MetaKeyL4PROTO), is(unix.IPPROTO_TCP),
			load(expr.PayloadBaseTransportHeader, 13, 1),
			&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 1, Mask: []byte{synFlag | rstFlag}, Xor: []byte{0}}, is(synFlag),
			&expr.Rt{Register: reg1, Key: expr.RtTCPMSS},
			&expr.Byteorder{SourceRegister: reg1, DestRegister: reg1, Op: expr.ByteorderHton, Len: 2, Size: 2},
			&expr.Exthdr{SourceRegister: reg1, Type: tcpOptionMSS, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
		}}}},
	}
}

const (
	synFlag, rstFlag = 2, 4
	tcpOptionMSS     = 2
)

// comments are those of a chain's rules. The first says which rules these are: a table with others was made by another version, or has been changed.
func (g guard) comments(c chain) (all [][]byte) {
	for i, l := range c.lines {
		text := l.comment
		if i == 0 {
			sum := sha256.New()
			for _, l := range c.lines {
				for _, e := range l.exprs {
					data, err := expr.Marshal(unix.NFPROTO_INET, e)
					if err != nil {
						panic(fmt.Sprintf("nodenet: rule %q: %v", l.comment, err)) // the rules are constant
					}
					sum.Write(data)
				}
			}
			text = fmt.Sprintf("%s (layout %x)", text, sum.Sum(nil)[:4])
		}
		all = append(all, userdata.AppendString(nil, userdata.TypeComment, text))
	}
	return all
}

// read returns what is admitted; ok is false if there is no table, or not this one.
func (g guard) read() (have map[admission]struct{}, ok bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, false, fmt.Errorf("open netfilter socket: %w", err)
	}
	table := g.table() // without it there are no rules
	for _, ch := range g.chains() {
		rules, err := c.GetRules(table, &nftables.Chain{Name: ch.name, Table: table})
		if errors.Is(err, unix.ENOENT) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("read rules of table %s: %w", Table, err)
		}
		if !slices.EqualFunc(rules, g.comments(ch), func(r *nftables.Rule, comment []byte) bool { return bytes.Equal(r.UserData, comment) }) {
			return nil, false, nil
		}
	}
	have = make(map[admission]struct{})
	for _, inner6 := range []bool{false, true} {
		elements, err := c.GetSetElements(g.set(inner6))
		if err != nil {
			return nil, false, fmt.Errorf("read sets of table %s: %w", Table, err)
		}
		for _, e := range elements {
			a, ok := g.parse(e)
			if !ok {
				return nil, false, nil
			}
			have[a] = struct{}{}
		}
	}
	return have, true, nil
}

// elementsAtOnce bounds a netlink attribute, which holds 64 KiB.
const elementsAtOnce = 400

// batchBytes bounds one transaction: of a hundred thousand nodes, all at once.
const batchBytes = 64 << 20

// dialGuard opens a socket that takes a whole transaction in one piece.
func dialGuard() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithSockOptions(func(c *mnetlink.Conn) error { return c.SetWriteBuffer(batchBytes) }))
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	return c, nil
}

// write adds and removes admissions in one step; anew makes the whole table anew in the same step.
func (g guard) write(anew bool, add, remove []admission) error {
	c, err := dialGuard()
	if err != nil {
		return err
	}
	if anew {
		c.AddTable(g.table()) // so that it is there to be removed
		c.DelTable(g.table())
		if err := g.build(c); err != nil {
			return err
		}
	}
	for _, inner6 := range []bool{false, true} {
		of := func(list []admission) (elements []nftables.SetElement) {
			for _, a := range list {
				if a.inner.Addr().Is6() == inner6 {
					elements = append(elements, a.element())
				}
			}
			return elements
		}
		for part := range slices.Chunk(of(remove), elementsAtOnce) {
			if err := c.SetDeleteElements(g.set(inner6), part); err != nil {
				return fmt.Errorf("write sets of table %s: %w", Table, err)
			}
		}
		for part := range slices.Chunk(of(add), elementsAtOnce) {
			if err := c.SetAddElements(g.set(inner6), part); err != nil {
				return fmt.Errorf("write sets of table %s: %w", Table, err)
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", Table, err)
	}
	return nil
}

func (g guard) build(c *nftables.Conn) error {
	table := c.AddTable(g.table())
	for i, inner6 := range []bool{false, true} {
		s := g.set(inner6)
		s.ID, s.KeyByteOrder = uint32(i+1), binaryutil.BigEndian
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("make sets of table %s: %w", Table, err)
		}
	}
	for _, ch := range g.chains() {
		made := &nftables.Chain{Name: ch.name, Table: table, Hooknum: ch.hook, Priority: ch.priority}
		if ch.hook != nil {
			made.Type = nftables.ChainTypeFilter
		}
		c.AddChain(made)
		comments := g.comments(ch)
		for i, l := range ch.lines {
			c.AddRule(&nftables.Rule{Table: table, Chain: made, Exprs: l.exprs, UserData: comments[i]})
		}
	}
	return nil
}

func hasTable(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == Table }), nil
}

// removeGuard removes the table if there is one.
func removeGuard() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	c.DelTable(guard{}.table())
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove table %s: %w", Table, err)
	}
	return nil
}

// Dropped returns how many packets that came to the tunnel have not been let out of it, by the reason.
func Dropped() (map[string]uint64, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	table := guard{}.table()
	rules, err := c.GetRules(table, &nftables.Chain{Name: "received", Table: table})
	if err != nil {
		return nil, fmt.Errorf("read counters of table %s: %w", Table, err)
	}
	all := make(map[string]uint64)
	for _, r := range rules {
		for _, e := range r.Exprs {
			if n, ok := e.(*expr.Counter); ok {
				comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
				comment, _, _ = strings.Cut(comment, " (layout")
				all[comment] = n.Packets
			}
		}
	}
	return all, nil
}

func (a admission) compare(b admission) int {
	return cmp.Or(a.outer.Compare(b.outer), a.inner.Compare(b.inner))
}

// String is the admission as Dump prints it.
func (a admission) String() string { return fmt.Sprintf("%s from %s", a.inner, a.outer) }
