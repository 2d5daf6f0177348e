// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// Table is the name of the nftables table, of family inet, that holds everything. It belongs to this package alone.
const Table = "fairlead"

// datatype is how the nft tool shows a set's key or value, and its length in registers.
type datatype struct {
	magic uint32
	len   uint32
}

// The numbers are nftables' own (include/datatype.h of the tool).
var (
	typeAddr4   = datatype{7, 4}
	typeAddr6   = datatype{8, 16}
	typeProto   = datatype{12, 4}
	typePort    = datatype{13, 4}
	typeNumber  = datatype{4, 4}  // an integer, see typeof
	typeCount   = datatype{23, 4} // a traffic class, see serviceChain
	typeVerdict = datatype{unix.NFT_DATA_VERDICT, 16}
)

func concat(types ...datatype) (t datatype) {
	for _, x := range types {
		t.magic = t.magic<<6 | x.magic
		t.len += x.len
	}
	return t
}

// kind names the sets, of which there is one for each family.
type kind int

const (
	services  kind = iota // address, protocol, port → number of endpoints
	endpoints             // the same and an index → endpoint
	picks                 // number of endpoints → the chain that chooses among so many
	vips                  // virtual addresses
	dnsPorts              // address, protocol of the cluster DNS's port 53
	hairpin               // address twice, of pods of this node
	pods                  // ranges of this node's pods
	cluster               // ranges and addresses of the cluster's pods and nodes
	kinds
)

var kindNames = [kinds]string{"services", "endpoints", "picks", "vips", "dns", "hairpin", "pods", "cluster"}

// maxPicks bounds how many different numbers of endpoints there can be at a time, in each family. A fixed size lets the kernel use
// its fastest kind of map.
const maxPicks = 1024

// set is a set or map of the table.
type set struct {
	kind  kind
	f     *family
	key   datatype
	data  datatype // of a map
	flags uint32
	size  uint32 // most elements; 0: any
}

func (s *set) name() string { return kindNames[s.kind] + s.f.suffix }

// sets are indexed by kind and family.
var sets = func() (all [kinds][2]*set) {
	for _, f := range families {
		port := concat(f.addr, typeProto, typePort)
		for _, s := range []*set{
			{kind: services, key: port, data: typeCount, flags: unix.NFT_SET_MAP},
			{kind: endpoints, key: concat(port, typeNumber), data: concat(f.addr, typePort), flags: unix.NFT_SET_MAP},
			{kind: picks, key: typeCount, data: typeVerdict, flags: unix.NFT_SET_MAP, size: maxPicks},
			{kind: vips, key: f.addr},
			{kind: dnsPorts, key: concat(f.addr, typeProto)},
			{kind: hairpin, key: concat(f.addr, f.addr)},
			{kind: pods, key: f.addr, flags: unix.NFT_SET_INTERVAL},
			{kind: cluster, key: f.addr, flags: unix.NFT_SET_INTERVAL},
		} {
			s.f = f
			all[s.kind][f.index] = s
		}
	}
	return all
}()

// chain is a chain and its rules.
type chain struct {
	name string
	base *base
	rule []rule
}

// base is where the kernel calls a chain.
type base struct {
	kind     string // filter or nat
	hook     uint32
	priority int32
}

// rule is one rule. Its comment tells it from the others of its chain when the chain is read back.
type rule struct {
	comment string
	exprs   []expr.Any
}

// Registers. A key begins at the first; what a lookup finds goes to the second half.
const (
	reg0   = unix.NFT_REG32_00
	result = unix.NFT_REG32_08
)

func payload(reg, offset, size uint32, header expr.PayloadBase) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: header, Offset: offset, Len: size}
}

func (f *family) load(reg, offset uint32) expr.Any {
	return payload(reg, offset, uint32(f.size), expr.PayloadBaseNetworkHeader)
}

func loadProto(reg uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}
}

func loadPort(reg, offset uint32) expr.Any {
	return payload(reg, offset, 2, expr.PayloadBaseTransportHeader)
}

const (
	sourcePort = 0
	destPort   = 2
)

// behind is the register behind an address at reg0.
func (f *family) behind() uint32 { return reg0 + uint32(f.size)/4 }

// loadService is "ip daddr . meta l4proto . th dport", from reg0 on.
func (f *family) loadService() []expr.Any {
	r := f.behind()
	return []expr.Any{f.load(reg0, f.daddr), loadProto(r), loadPort(r+1, destPort)}
}

func equal(reg uint32, data ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func (f *family) only() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0}, equal(reg0, f.nfproto)}
}

func proto(p model.Protocol) []expr.Any {
	return []expr.Any{loadProto(reg0), equal(reg0, byte(p))}
}

// in matches when reg0 and what follows is in the set.
func (f *family) in(k kind) expr.Any {
	return &expr.Lookup{SourceRegister: reg0, SetName: sets[k][f.index].name()}
}

func (f *family) notIn(k kind) expr.Any {
	return &expr.Lookup{SourceRegister: reg0, SetName: sets[k][f.index].name(), Invert: true}
}

// find looks reg0 up in a map.
func (f *family) find(k kind) expr.Any {
	return &expr.Lookup{SourceRegister: reg0, DestRegister: result, IsDestRegSet: true, SetName: sets[k][f.index].name()}
}

func jump(to string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: to} }

func join(parts ...any) (all []expr.Any) {
	for _, p := range parts {
		switch p := p.(type) {
		case []expr.Any:
			all = append(all, p...)
		case expr.Any:
			all = append(all, p)
		}
	}
	return all
}

// Names of the chains.
const (
	chainRefuse     = "refuse"
	chainQuestions  = "dns-questions"
	chainAnswers    = "dns-answers"
	chainAnswerHere = "dns-here"
)

func (f *family) chainServices() string   { return "service" + f.suffix }
func (f *family) chainPick(n int) string  { return fmt.Sprintf("pick%s-%d", f.suffix, n) }
func (f *family) chainMasquerade() string { return "masquerade" + f.suffix }

// program is the whole of the rules but for the pick chains. Only the elements of the sets ever change.
var program = sync.OnceValue(func() []chain {
	var pre, out, post, questions, answers []rule
	for _, f := range families {
		guard := f.only()
		toServices := rule{f.word, join(guard, jump(f.chainServices()))}
		pre, out = append(pre, toServices), append(out, toServices)
		post = append(post, rule{f.word, join(guard, jump(f.chainMasquerade()))})
		questions = append(questions, f.dnsQuestions()...)
		answers = append(answers, f.dnsAnswers())
	}
	chains := []chain{
		{name: chainRefuse, rule: []rule{
			{"as a closed port does", join(proto(model.TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})},
			v4.refuseOwn(), v6.refuseOwn(),
			{"other protocols", join(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})},
		}},
		{name: chainAnswerHere, rule: []rule{
			{"no conntrack, no NAT", join(&expr.Notrack{}, &expr.Verdict{Kind: expr.VerdictAccept})},
		}},
		{name: chainQuestions, rule: questions},
		{name: chainAnswers, rule: answers},
	}
	for _, f := range families {
		chains = append(chains, f.serviceChain(), f.masqueradeChain())
	}
	return append(chains,
		chain{"prerouting", &base{"nat", unix.NF_INET_PRE_ROUTING, -100}, pre},
		chain{"output", &base{"nat", unix.NF_INET_LOCAL_OUT, -100}, out},
		chain{"postrouting", &base{"nat", unix.NF_INET_POST_ROUTING, 100}, post},
		// These two see every packet, so they look at one port and no more.
		chain{"raw-prerouting", &base{"filter", unix.NF_INET_PRE_ROUTING, -300},
			[]rule{{"questions", join(port53(destPort), jump(chainQuestions))}}},
		chain{"raw-output", &base{"filter", unix.NF_INET_LOCAL_OUT, -300},
			[]rule{{"answers", join(port53(sourcePort), jump(chainAnswers))}}},
	)
})

// serviceChain decides about the first packet of a connection.
//
// The number of endpoints goes from one map to the next through the packet's priority, and not in a register: the nft tool (seen in
// 1.0.6) aborts when it has to print a map's result being looked up in another map, and with it everything on the machine that
// lists the ruleset. A priority is read by nobody before the packet leaves; pickChain sets it back.
func (f *family) serviceChain() chain {
	return chain{name: f.chainServices(), rule: []rule{
		{"service with endpoints", join(f.only(), f.loadService(), f.find(services), setPriority(result),
			&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg0},
			&expr.Lookup{SourceRegister: reg0, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: sets[picks][f.index].name()})},
		{"no endpoint, or no such port", join(f.only(), f.load(reg0, f.daddr), f.in(vips), jump(chainRefuse))},
	}}
}

// refuseOwn refuses a datagram that this node itself sends. To reject it on its way out would tell the sender "operation not
// permitted" before any answer; so it goes to loopback's port 0, which no socket can have, and the kernel answers as for
// any closed port. Only a packet that comes from nowhere is the node's own: it has no input interface.
func (f *family) refuseOwn() rule {
	return rule{f.word + " datagram of this node", join(fromHere(), f.only(), proto(model.UDP),
		&expr.Immediate{Register: reg0, Data: f.loopback.AsSlice()},
		&expr.Immediate{Register: f.behind(), Data: []byte{0, 0}},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: reg0, RegProtoMin: f.behind()},
	)}
}

// fromHere matches what this node itself sends.
func fromHere() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIF, Register: reg0}, equal(reg0, 0, 0, 0, 0)}
}

func setPriority(reg uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg}
}

// pickChain chooses one of n endpoints. A packet may have read the number of endpoints just before a transaction that
// lowers it, and then find none at its index: the second rule takes the first endpoint instead. If it was the whole table that was
// replaced, the packet falls through to the new one.
func (f *family) pickChain(n int) chain {
	index := f.behind() + 2
	dnat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: result, RegProtoMin: result + uint32(f.size)/4}
	random := func(below int) expr.Any {
		return &expr.Numgen{Register: index, Modulus: uint32(below), Type: unix.NFT_NG_RANDOM}
	}
	unset := []expr.Any{&expr.Immediate{Register: reg0, Data: appendNumber(nil, 0)}, setPriority(reg0)}
	return chain{name: f.chainPick(n), rule: []rule{
		{"any", join(unset, f.only(), f.loadService(), random(n), f.find(endpoints), dnat)},
		{"number changed meanwhile", join(f.only(), f.loadService(), random(1), f.find(endpoints), dnat)},
		{"all gone meanwhile", join(f.only(), f.load(reg0, f.daddr), f.in(vips), jump(chainRefuse))},
	}}
}

// masqueradeChain is asked once for a connection, after the destination is chosen and the route is known.
func (f *family) masqueradeChain() chain {
	return chain{name: f.chainMasquerade(), rule: []rule{
		{"pod to itself", join(f.only(), f.load(reg0, f.saddr), f.load(f.behind(), f.daddr), f.in(hairpin), &expr.Masq{})},
		// A question to the local address of the cluster DNS comes from that address, if the route has no other; every node has it.
		{"question of this node to another", join(fromHere(), f.only(), f.load(reg0, f.saddr), f.in(vips), &expr.Masq{})},
		{"pod out of the cluster", join(f.only(), f.load(reg0, f.saddr), f.in(pods), f.load(reg0, f.daddr), f.notIn(cluster), &expr.Masq{})},
	}}
}

func port53(end uint32) []expr.Any {
	return []expr.Any{loadPort(reg0, end), equal(reg0, 0, model.DNSPort)}
}

// isDNS matches when an address (and the protocol) is the cluster DNS's.
func (f *family) isDNS(addr uint32) []expr.Any {
	return join(f.only(), f.load(reg0, addr), loadProto(f.behind()), f.in(dnsPorts))
}

// dnsQuestions let a question reach this node's own socket. A socket that is bound to all addresses is somebody else's. Of a TCP
// connection being opened or ended there is no full socket, so that only the last rule knows it; and there is one only
// if the first packet met a listener that was right.
func (f *family) dnsQuestions() []rule {
	socket := func(k expr.SocketKey) expr.Any { return &expr.Socket{Key: k, Register: reg0} }
	return []rule{
		{f.word + " socket for the address", join(f.isDNS(f.daddr), socket(expr.SocketKeyWildcard), equal(reg0, 0), jump(chainAnswerHere))},
		{f.word + " socket for any address", join(f.isDNS(f.daddr), socket(expr.SocketKeyWildcard), equal(reg0, 1), &expr.Verdict{Kind: expr.VerdictAccept})},
		{f.word + " half-open or closing", join(f.isDNS(f.daddr), proto(model.TCP), socket(expr.SocketKeyTransparent),
			&expr.Cmp{Op: expr.CmpOpLte, Register: reg0, Data: []byte{1}}, jump(chainAnswerHere))},
	}
}

func (f *family) dnsAnswers() rule {
	return rule{f.word, join(f.isDNS(f.saddr), jump(chainAnswerHere))}
}

// layout identifies the program: a table with another one was made by another version.
var layout = sync.OnceValue(func() string {
	b := newBatch()
	addTable(b, Table, 0, "")
	addProgram(b)
	for _, f := range families {
		addChain(b, f.pickChain(2))
	}
	sum := sha256.Sum256(b.buf)
	return hex.EncodeToString(sum[:6])
})

func tableComment() string { return "layout " + layout() }

// addTable appends the making of a table with a comment; empty: without.
func addTable(b *batch, name string, flags uint32, comment string) {
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, func(m *message) {
		m.putString(unix.NFTA_TABLE_NAME, name)
		m.put32(unix.NFTA_TABLE_FLAGS, flags)
		if comment != "" {
			m.put(tableUserdata, commentData(comment))
		}
	})
}

const tableUserdata = 6 // NFTA_TABLE_USERDATA

// commentData is userdata that the nft tool shows as a comment; it has type 0 for tables and rules.
func commentData(s string) []byte {
	return append([]byte{0, byte(len(s) + 1)}, append([]byte(s), 0)...)
}

func deleteTable(b *batch, name string) {
	b.add(unix.NFT_MSG_DELTABLE, 0, func(m *message) { m.putString(unix.NFTA_TABLE_NAME, name) })
}

// flushSet appends the removal of all of a set's elements.
func flushSet(b *batch, table string, s *set) {
	b.add(unix.NFT_MSG_DELSETELEM, 0, func(m *message) {
		m.putString(unix.NFTA_SET_ELEM_LIST_TABLE, table)
		m.putString(unix.NFTA_SET_ELEM_LIST_SET, s.name())
	})
}

// addProgram appends sets, chains and rules, in this order, so that every name is known when it is used.
func addProgram(b *batch) {
	id := uint32(0)
	for k := range kinds {
		for _, s := range sets[k] {
			id++
			addSet(b, Table, s, id)
		}
	}
	for _, c := range program() {
		declareChain(b, Table, c)
	}
	for _, c := range program() {
		for _, r := range c.rule {
			addRule(b, Table, c.name, r)
		}
	}
}

// setUserdata is NFTA_SET_USERDATA.
const setUserdata = 13

// userdata tells the nft tool how to print: plain numbers are in the machine's order, all else in network order.
func (s *set) userdata() []byte {
	const keyOrder, dataOrder, machine, network = 0, 1, 1, 2
	order := func(t datatype) uint32 {
		if t == typeCount {
			return machine
		}
		return network
	}
	u := tlv32(keyOrder, order(s.key))
	if s.data != (datatype{}) && s.data != typeVerdict {
		u = append(u, tlv32(dataOrder, order(s.data))...)
	}
	if s.kind == endpoints {
		u = append(u, s.f.typeof()...)
	}
	return u
}

// typeof tells the nft tool what the endpoints map's key and value are made of. For a bare integer it has no type that it would take in
// a map, only the expression that the integer comes from. The numbers are the tool's own (struct udata of expressions and protocols).
func (f *family) typeof() []byte {
	const (
		key, data                       = 3, 4
		concatenation, fromPacket       = 13, 7
		meta, l4proto, numgen, random   = 9, 16, 23, 1
		transport, transportDestination = 11, 2
	)
	expression := func(kind uint32, about ...[]byte) []byte {
		return slices.Concat(tlv32(0, kind), tlv(1, slices.Concat(about...)))
	}
	of := func(parts ...[]byte) []byte {
		for i, p := range parts {
			parts[i] = tlv(byte(i), p)
		}
		return expression(concatenation, parts...)
	}
	addr := expression(fromPacket, tlv32(0, f.udata[0]), tlv32(1, f.udata[1]))
	port := expression(fromPacket, tlv32(0, transport), tlv32(1, transportDestination))
	index := expression(numgen, tlv32(0, random), tlv32(1, 2), tlv32(2, 0))
	return append(tlv(key, of(addr, expression(meta, tlv32(0, l4proto)), port, index)), tlv(data, of(addr, port))...)
}

// tlv is an entry of userdata.
func tlv(typ byte, val []byte) []byte { return append([]byte{typ, byte(len(val))}, val...) }

func tlv32(typ byte, v uint32) []byte { return tlv(typ, appendNumber(nil, v)) }

func addSet(b *batch, table string, s *set, id uint32) {
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, func(m *message) {
		m.putString(unix.NFTA_SET_TABLE, table)
		m.putString(unix.NFTA_SET_NAME, s.name())
		m.put32(unix.NFTA_SET_FLAGS, s.flags)
		m.put32(unix.NFTA_SET_KEY_TYPE, s.key.magic)
		m.put32(unix.NFTA_SET_KEY_LEN, s.key.len)
		if s.flags&unix.NFT_SET_MAP != 0 {
			m.put32(unix.NFTA_SET_DATA_TYPE, s.data.magic)
			m.put32(unix.NFTA_SET_DATA_LEN, s.data.len)
		}
		if s.size > 0 {
			at := m.nest(unix.NFTA_SET_DESC)
			m.put32(unix.NFTA_SET_DESC_SIZE, s.size)
			m.close(at)
		}
		m.put32(unix.NFTA_SET_ID, id)
		m.put(setUserdata, s.userdata())
	})
}

// addChain makes a chain. One of the name that is there already loses its rules.
func addChain(b *batch, c chain) {
	declareChain(b, Table, c)
	b.add(unix.NFT_MSG_DELRULE, 0, func(m *message) {
		m.putString(unix.NFTA_RULE_TABLE, Table)
		m.putString(unix.NFTA_RULE_CHAIN, c.name)
	})
	for _, r := range c.rule {
		addRule(b, Table, c.name, r)
	}
}

func declareChain(b *batch, table string, c chain) {
	b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, func(m *message) {
		m.putString(unix.NFTA_CHAIN_TABLE, table)
		m.putString(unix.NFTA_CHAIN_NAME, c.name)
		if c.base == nil {
			return
		}
		at := m.nest(unix.NFTA_CHAIN_HOOK)
		m.put32(unix.NFTA_HOOK_HOOKNUM, c.base.hook)
		m.put32(unix.NFTA_HOOK_PRIORITY, uint32(c.base.priority))
		m.close(at)
		m.putString(unix.NFTA_CHAIN_TYPE, c.base.kind)
	})
}

func addRule(b *batch, table, chain string, r rule) {
	b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func(m *message) {
		m.putString(unix.NFTA_RULE_TABLE, table)
		m.putString(unix.NFTA_RULE_CHAIN, chain)
		list := m.nest(unix.NFTA_RULE_EXPRESSIONS)
		for _, e := range r.exprs {
			data, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				panic(fmt.Sprintf("nft: rule %q: %v", r.comment, err)) // the program is constant
			}
			m.put(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
		}
		m.close(list)
		m.put(unix.NFTA_RULE_USERDATA, commentData(r.comment))
	})
}

// element is the encoded form of a set's element: key, and for maps a value.
func element(m *message, key, val []byte, end bool) {
	at := m.nest(unix.NFTA_LIST_ELEM)
	k := m.nest(unix.NFTA_SET_ELEM_KEY)
	m.put(unix.NFTA_DATA_VALUE, key)
	m.close(k)
	if val != nil {
		d := m.nest(unix.NFTA_SET_ELEM_DATA)
		m.put(unix.NFTA_DATA_VALUE, val)
		m.close(d)
	}
	if end {
		m.put32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	}
	m.close(at)
}

// verdictElement is an element whose value is "goto chain".
func verdictElement(m *message, key []byte, to string) {
	at := m.nest(unix.NFTA_LIST_ELEM)
	k := m.nest(unix.NFTA_SET_ELEM_KEY)
	m.put(unix.NFTA_DATA_VALUE, key)
	m.close(k)
	d := m.nest(unix.NFTA_SET_ELEM_DATA)
	v := m.nest(unix.NFTA_DATA_VERDICT)
	code := int32(unix.NFT_GOTO)
	m.put(unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, uint32(code)))
	m.putString(unix.NFTA_VERDICT_CHAIN, to)
	m.close(v)
	m.close(d)
	m.close(at)
}

// addElements appends messages that add (or delete) already encoded elements, splitting between elements.
func addElements(b *batch, table string, s *set, kind int, encoded []byte) {
	for len(encoded) > 0 {
		n := 0
		for n < len(encoded) {
			size := align(int(binary.NativeEndian.Uint16(encoded[n:])))
			if n+size > maxMessage {
				break
			}
			n += size
		}
		flags := uint16(0)
		if kind == unix.NFT_MSG_NEWSETELEM {
			flags = unix.NLM_F_CREATE
		}
		b.add(kind, flags, func(m *message) {
			m.putString(unix.NFTA_SET_ELEM_LIST_TABLE, table)
			m.putString(unix.NFTA_SET_ELEM_LIST_SET, s.name())
			at := m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
			m.buf = append(m.buf, encoded[:n]...)
			m.close(at)
		})
		encoded = encoded[n:]
	}
}
