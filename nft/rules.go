// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// Table is the name of the nftables table, of family inet, that holds everything. It belongs to this package alone.
const Table = "fairlead"

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
	exprs   []any // expr.Any or raw
}

// raw is an expression that github.com/google/nftables cannot write.
type raw struct {
	name  string
	attrs message
}

func (r raw) marshal() []byte {
	var m message
	m.putString(unix.NFTA_EXPR_NAME, r.name)
	m.put(unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, r.attrs.buf)
	return m.buf
}

// Registers. A key begins at the first; what a lookup finds goes to the second half.
const (
	reg0   = unix.NFT_REG32_00
	result = unix.NFT_REG32_08
)

func payload(reg, offset, size uint32, header expr.PayloadBase) any {
	return &expr.Payload{DestRegister: reg, Base: header, Offset: offset, Len: size}
}

func (f *family) load(reg, offset uint32) any {
	return payload(reg, offset, uint32(f.size), expr.PayloadBaseNetworkHeader)
}

func loadProto(reg uint32) any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg} }

func loadPort(reg, offset uint32) any {
	return payload(reg, offset, 2, expr.PayloadBaseTransportHeader)
}

const (
	sourcePort = 0
	destPort   = 2
)

// behind is the register behind an address at reg0.
func (f *family) behind() uint32 { return reg0 + uint32(f.size)/4 }

// loadFrontend is "ip daddr . meta l4proto . th dport", from reg0 on.
func (f *family) loadFrontend() []any {
	r := f.behind()
	return []any{f.load(reg0, f.daddr), loadProto(r), loadPort(r+1, destPort)}
}

func equal(reg uint32, data ...byte) any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func (f *family) only() []any {
	return []any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0}, equal(reg0, f.nfproto)}
}

func notEqual(reg uint32, data ...byte) any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}
}

func proto(p model.Protocol) []any { return []any{loadProto(reg0), equal(reg0, byte(p))} }

// in matches when reg0 and what follows is in the set.
func (f *family) in(k kind) any {
	return &expr.Lookup{SourceRegister: reg0, SetName: sets[k][f.index].name()}
}

func (f *family) notIn(k kind) any {
	return &expr.Lookup{SourceRegister: reg0, SetName: sets[k][f.index].name(), Invert: true}
}

// find looks reg0 up in a map.
func (f *family) find(k kind) any {
	return &expr.Lookup{SourceRegister: reg0, DestRegister: result, IsDestRegSet: true, SetName: sets[k][f.index].name()}
}

func jump(to string) any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: to} }

func drop() any { return &expr.Verdict{Kind: expr.VerdictDrop} }

func join(parts ...any) (all []any) {
	for _, p := range parts {
		if list, ok := p.([]any); ok {
			all = append(all, list...)
		} else {
			all = append(all, p)
		}
	}
	return all
}

// A code goes from one rule to the next through the packet's priority, and not in a register: the nft tool (seen in 1.0.6) aborts when it
// has to print what one map found being looked up in another, and with it everything on the machine that lists the ruleset. A priority is
// read by nobody before the packet leaves; for packets that are forwarded the kernel then sets it itself, and for this node's own the
// masquerade chain sets it back.
func loadCode(reg uint32) any { return &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg} }

func setCode(reg uint32) any {
	return &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg}
}

func mask(reg, bits uint32) any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: appendNumber(nil, bits), Xor: make([]byte, 4)}
}

// goOn follows the code to the chain of its way.
func (f *family) goOn(k kind) []any {
	return []any{loadCode(reg0), mask(reg0, lowMask),
		&expr.Lookup{SourceRegister: reg0, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: sets[k][f.index].name()}}
}

// clearWay leaves only the group in the code.
func clearWay() []any {
	return []any{loadCode(reg0), mask(reg0, ^uint32(lowMask)), setCode(reg0)}
}

// follow takes the code from a junction to where it leads.
func (f *family) follow(k kind) []any {
	return join(loadCode(reg0), f.find(k), setCode(result), f.goOn(ends))
}

// Names of the chains.
const (
	chainRefuse     = "refuse"
	chainNoLocal    = "no-local-endpoint"
	chainNotAllowed = "not-in-source-ranges"
	chainQuestions  = "dns-questions"
	chainAnswers    = "dns-answers"
	chainAnswerHere = "dns-here"
	chainRefusals   = "refusals"
	chainHeldBack   = "held-back"
)

func (f *family) chainRefused() string    { return "refused" + f.suffix }
func (f *family) chainServices() string   { return "service" + f.suffix }
func (f *family) chainSplit() string      { return "split" + f.suffix }
func (f *family) chainGuard() string      { return "guard" + f.suffix }
func (f *family) chainOnward() string     { return "onward" + f.suffix }
func (f *family) chainMasquerade() string { return "masquerade" + f.suffix }
func (f *family) chainFromPod() string    { return "masquerade-pod" + f.suffix }
func (f *family) chainOurs() string       { return "masquerade-service" + f.suffix }

// chainOf is the name of a way's chain.
func (f *family) chainOf(w way) string {
	if w.affinity == 0 {
		return fmt.Sprintf("pick%s-%d", f.suffix, w.n)
	}
	return fmt.Sprintf("stay%s-%d-%ds", f.suffix, w.n, w.affinity)
}

// parseChain is the reverse of chainOf.
func (f *family) parseChain(name string) (w way, ok bool) {
	if _, err := fmt.Sscanf(name, "pick"+f.suffix+"-%d", &w.n); err != nil {
		if _, err := fmt.Sscanf(name, "stay"+f.suffix+"-%d-%ds", &w.n, &w.affinity); err != nil {
			return way{}, false
		}
	}
	return w, w.n > 0 && f.chainOf(w) == name
}

// fixedWays are the elements of ways and ends that belong to the program.
func (f *family) fixedWays(k kind) map[uint32]string {
	fixed := map[uint32]string{wayRefuse: chainRefuse, wayNoLocal: chainNoLocal}
	if k == ways {
		fixed[waySplit], fixed[wayGuard], fixed[wayOnward] = f.chainSplit(), f.chainGuard(), f.chainOnward()
	}
	return fixed
}

// program is the whole of the rules but for the ways to groups. Only the elements of the sets ever change.
var program = sync.OnceValue(func() []chain {
	var pre, out, post, questions, answers, refusals []rule
	for _, f := range families {
		guard := f.only()
		toServices := rule{f.word, join(guard, jump(f.chainServices()))}
		pre, out = append(pre, toServices), append(out, toServices)
		post = append(post, rule{f.word, join(guard, jump(f.chainMasquerade()))})
		questions = append(questions, f.dnsQuestions()...)
		answers = append(answers, f.dnsAnswers())
		refusals = append(refusals, rule{f.word, join(guard, f.load(reg0, f.daddr), f.in(retrying), jump(f.chainRefused()))})
	}
	chains := []chain{
		{name: chainRefuse, rule: []rule{
			{"as a closed port does", join(proto(model.TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})},
			v4.refuseOwn(), v6.refuseOwn(),
			{"other protocols", join(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})},
		}},
		{name: chainNoLocal, rule: []rule{{"counted", join(&expr.Counter{}, drop())}}},
		{name: chainNotAllowed, rule: []rule{{"counted", join(&expr.Counter{}, drop())}}},
		{name: chainHeldBack, rule: []rule{{"counted", join(&expr.Counter{}, drop())}}},
		{name: chainAnswerHere, rule: []rule{
			{"no conntrack, no NAT", join(&expr.Notrack{}, &expr.Verdict{Kind: expr.VerdictAccept})},
		}},
		{name: chainQuestions, rule: questions},
		{name: chainAnswers, rule: answers},
		{name: chainRefusals, rule: refusals},
	}
	for _, f := range families {
		chains = append(chains, f.splitChain(), f.guardChain(), f.onwardChain(), f.refusedChain(), f.serviceChain(), f.oursChain(), f.fromPodChain(), f.masqueradeChain())
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
		// It sees every packet too, and looks at its flags first.
		chain{"filter-prerouting", &base{"filter", unix.NF_INET_PRE_ROUTING, -150},
			[]rule{{"a refusal", join(isRefusal(), jump(chainRefusals))}}},
	)
})

// serviceChain decides about the first packet of a connection.
func (f *family) serviceChain() chain {
	c := chain{name: f.chainServices(), rule: []rule{
		{"a Service's address and port", join(f.only(), f.loadFrontend(), f.find(services), setCode(result), f.goOn(ways))},
		{"no such Service, or no such port", join(f.only(), f.load(reg0, f.daddr), f.in(ranges), f.load(reg0, f.daddr), f.notIn(foreign), jump(chainRefuse))},
		{"no such port, outside the ranges", join(f.only(), f.load(reg0, f.daddr), f.in(vips), jump(chainRefuse))},
	}}
	if f == v4 {
		// Node ports on loopback need route_localnet, which would let neighbours reach them, and what else listens there.
		c.rule = append(c.rule, rule{"loopback from elsewhere", join(notFromHere(), f.only(),
			payload(reg0, f.daddr, 1, expr.PayloadBaseNetworkHeader), equal(reg0, 127), drop())})
	}
	c.rule = append(c.rule, rule{"not this node's", join(&expr.Fib{Register: reg0, ResultADDRTYPE: true, FlagDADDR: true},
		notEqual(reg0, unix.RTN_LOCAL, 0, 0, 0), &expr.Verdict{Kind: expr.VerdictReturn})})
	if f == v6 {
		c.rule = append(c.rule, rule{"nothing leaves from ::1", join(f.only(), f.load(reg0, f.saddr), equal(reg0, f.loopback.AsSlice()...),
			&expr.Verdict{Kind: expr.VerdictReturn})})
	}
	c.rule = append(c.rule, []rule{
		{"node port", join(f.only(), f.load(reg0, f.daddr), f.in(portsOn), f.load(reg0, f.daddr), f.notIn(portsOff),
			loadProto(reg0), loadPort(reg0+1, destPort), f.find(nodeports), setCode(result), f.goOn(ways))},
		{"host port at this address", join(f.only(), f.loadFrontend(), f.find(hostportsAt), setCode(result), f.goOn(ways))},
		{"host port", join(f.only(), loadProto(reg0), loadPort(reg0+1, destPort), f.find(hostports), setCode(result), f.goOn(ways))},
	}...)
	return c
}

// splitChain parts clients inside the cluster, for which a load balancer is simulated that sends everywhere, from those outside.
func (f *family) splitChain() chain {
	return chain{name: f.chainSplit(), rule: []rule{
		{"this node's own", join(fromHere(), f.follow(inside))},
		{"pods", join(f.only(), f.load(reg0, f.saddr), f.in(allPods), f.follow(inside))},
		{"others", f.follow(outside)},
	}}
}

// guardChain lets some clients pass.
func (f *family) guardChain() chain {
	return chain{name: f.chainGuard(), rule: []rule{
		{"allowed", join(f.only(), loadCode(reg0), f.load(reg0+1, f.saddr), f.in(sources), jump(f.chainSplit()))},
		{"others", join(jump(chainNotAllowed))},
	}}
}

// onwardChain sends what still arrives for a pod that is ending on to its Service's others. This node's own processes mean the pod itself: the
// kubelet's probes are among them.
func (f *family) onwardChain() chain {
	return chain{name: f.chainOnward(), rule: []rule{
		{"this node's own", join(fromHere(), &expr.Verdict{Kind: expr.VerdictAccept})},
		// Connection tracking may begin in the middle of a connection, of which it has not seen what was before, or was told to forget it.
		{"no new connection", join(proto(model.TCP), tcpFlags(tcpSYN|tcpACK), notEqual(reg0, tcpSYN), &expr.Verdict{Kind: expr.VerdictAccept})},
		{"others", f.follow(inside)},
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
func fromHere() []any {
	return []any{&expr.Meta{Key: expr.MetaKeyIIF, Register: reg0}, equal(reg0, 0, 0, 0, 0)}
}

func notFromHere() []any {
	return []any{&expr.Meta{Key: expr.MetaKeyIIF, Register: reg0}, notEqual(reg0, 0, 0, 0, 0)}
}

// dnats are rules that rewrite the destination to what a look-up finds, one for each protocol: the nft tool wants to know the protocol
// where a port is rewritten.
func (f *family) dnats(comment string, find ...any) (rules []rule) {
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: result, RegProtoMin: result + uint32(f.size)/4}
	for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		rules = append(rules, rule{comment + ", " + p.String(), join(proto(p), join(find...), nat)})
	}
	return rules
}

func random(reg, below uint32) any {
	return &expr.Numgen{Register: reg, Modulus: below, Type: unix.NFT_NG_RANDOM}
}

// wayChain chooses one endpoint of a group.
func (f *family) wayChain(w way) chain {
	if w.affinity == 0 {
		return f.pickChain(w)
	}
	return f.stayChain(w)
}

// pickChain chooses one of n endpoints. A packet may have read the number of endpoints just before a transaction that
// lowers it, and then find none at its index: the second group of rules takes the first endpoint instead. If it was the whole table that was
// replaced, the packet falls through to the new one.
func (f *family) pickChain(w way) chain {
	rules := []rule{{"group", clearWay()}}
	rules = append(rules, f.dnats("any", loadCode(reg0), random(reg0+1, w.n), f.find(endpoints))...)
	rules = append(rules, f.dnats("number changed meanwhile", loadCode(reg0), random(reg0+1, 1), f.find(endpoints))...)
	return chain{name: f.chainOf(w), rule: append(rules, f.allGone()...)}
}

func (f *family) allGone() []rule {
	return []rule{
		{"all gone meanwhile", join(f.only(), f.load(reg0, f.daddr), f.in(ranges), jump(chainRefuse))},
		{"all gone meanwhile, outside the ranges", join(f.only(), f.load(reg0, f.daddr), f.in(vips), jump(chainRefuse))},
	}
}

// stayChain gives a client the endpoint that it had, if that is still one, and otherwise chooses one and remembers it.
//
// What is remembered is the endpoint's seat, which nobody else gets while it is in the group. A seat is drawn first, for then one
// statement does for both: it makes a pin with it where there is none, and only renews the one that is there. When the seat of a pin is
// empty, the pin is removed and the same is done once more.
//
// A pin is of a group: a frontend that leads to another one, by another traffic policy or because another Service has it, must not go on to the first.
func (f *family) stayChain(w way) chain {
	const client = unix.NFT_REG32_12
	onPin := func(op uint32, timeout time.Duration) []any {
		return join(f.only(), loadCode(reg0), mask(reg0, ^uint32(lowMask)), f.load(reg0+1, f.saddr), loadCode(client),
			&expr.Dynset{SrcRegKey: reg0, SrcRegData: client, SetName: sets[pins][f.index].name(), Operation: op, Timeout: timeout})
	}
	draw := join(loadCode(reg0), random(reg0+1, w.n), f.find(seats), setCode(result))
	first := join(loadCode(reg0), mask(reg0, lowMask), equal(reg0, 0, 0, 0, 0), loadCode(reg0), random(reg0+1, 1), f.find(seats), setCode(result))
	keep := onPin(unix.NFT_DYNSET_OP_UPDATE, time.Duration(w.affinity)*time.Second)
	pinned := join(f.only(), loadCode(reg0), f.load(reg0+1, f.saddr), f.find(pins), setCode(result))
	// The nft tool does not take a mask in what is looked up in a map, so the code is made a group before.
	rules := []rule{{"group", clearWay()}, {"draw", draw}, {"keep", keep}, {"group of the pin", clearWay()}, {"pinned", pinned}}
	rules = append(rules, f.dnats("seat", loadCode(reg0), f.find(seated))...)
	rules = append(rules, rule{"empty seat", onPin(dynsetDelete, 0)}, rule{"group again", clearWay()}, rule{"draw again", draw},
		rule{"number changed meanwhile", first}, rule{"keep again", keep})
	rules = append(rules, f.dnats("seat again", loadCode(reg0), f.find(seated))...)
	return chain{name: f.chainOf(w), rule: append(rules, f.allGone()...)}
}

const dynsetDelete = 2 // NFT_DYNSET_OP_DELETE

// masqueradeChain is asked once for a connection, after the destination is chosen and the route is known. model.Snapshot.Masquerade gives the reasons.
func (f *family) masqueradeChain() chain {
	translated := []any{&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0}, mask(reg0, ctDNAT),
		notEqual(reg0, 0, 0, 0, 0)}
	return chain{name: f.chainMasquerade(), rule: []rule{
		{"pod to itself", join(f.only(), f.load(reg0, f.saddr), f.load(f.behind(), f.daddr), f.in(hairpin), &expr.Masq{})},
		{"from a pod", join(f.only(), f.load(reg0, f.saddr), f.in(pods), jump(f.chainFromPod()))},
		{"the code is done with", join(translated, fromHere(), &expr.Immediate{Register: reg0, Data: make([]byte, 4)}, setCode(reg0))},
		{"from an address that only this node knows", join(translated, fromHere(), f.only(), f.load(reg0, f.saddr), f.notIn(cluster), jump(f.chainOurs()))},
		{"the answer must come back here", join(translated, notFromHere(), f.only(), f.load(reg0, f.daddr), f.notIn(pods), jump(f.chainOurs()))},
	}}
}

const (
	ctDNAT  = 1 << 5 // IPS_DST_NAT
	ctDying = 1 << 9 // IPS_DYING
)

func (f *family) fromPodChain() chain {
	return chain{name: f.chainFromPod(), rule: []rule{
		{"out of the cluster", join(f.only(), f.load(reg0, f.daddr), f.notIn(cluster), f.load(reg0, f.daddr), f.notIn(kept), &expr.Masq{})},
	}}
}

// oursChain masquerades what this table has translated, and not what others have.
func (f *family) oursChain() chain {
	at, anywhere := f.loadOriginalFrontend(), loadOriginalPort()
	var rules []rule
	for _, way := range []struct {
		comment string
		key     []any
		in      kind
	}{
		{"", at, services},
		{" node port", anywhere, nodeports},
		{" host port at an address", at, hostportsAt},
		{" host port", anywhere, hostports},
	} {
		for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			rules = append(rules, rule{p.String() + way.comment, join(proto(p), f.only(), way.key, f.find(way.in), setCode(result), &expr.Masq{})})
		}
	}
	return chain{name: f.chainOurs(), rule: rules}
}

// loadOriginal is an address of the packet that the client has sent.
func (f *family) loadOriginal(key, reg uint32) any {
	r := raw{name: "ct"}
	r.attrs.put32(unix.NFTA_CT_KEY, key)
	r.attrs.put32(unix.NFTA_CT_DREG, reg)
	r.attrs.put(unix.NFTA_CT_DIRECTION, []byte{0})
	return r
}

// loadOriginalFrontend is loadFrontend for what the client has addressed. In front of it the nft tool wants to see which protocol has the port.
func (f *family) loadOriginalFrontend() []any {
	return []any{f.loadOriginal(f.ctDestination, reg0), loadProto(f.behind()), &expr.Ct{Key: expr.CtKeyPROTODST, Register: f.behind() + 1}}
}

// loadOriginalPort is the same without the address.
func loadOriginalPort() []any {
	return []any{loadProto(reg0), &expr.Ct{Key: expr.CtKeyPROTODST, Register: reg0 + 1}}
}

// The flags of TCP's header (RFC 9293).
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	_
	tcpACK
)

// tcpFlags loads those flags that are asked for.
func tcpFlags(which byte) []any {
	const at = 13
	return []any{payload(reg0, at, 1, expr.PayloadBaseTransportHeader),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 1, Mask: []byte{which}, Xor: []byte{0}}}
}

// isRefusal matches the answer of a port on which nobody listens to the first packet of a connection that was translated. Of such a connection, to
// which nobody had answered yet, conntrack keeps nothing: it is removed by the time that this is asked.
func isRefusal() []any {
	const dnatAndDying = ctDNAT | ctDying
	return join(tcpFlags(tcpFIN|tcpSYN|tcpRST|tcpACK), equal(reg0, tcpRST|tcpACK), proto(model.TCP),
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0}, mask(reg0, dnatAndDying), equal(reg0, appendNumber(nil, dnatAndDying)...))
}

// refusedChain holds a refusal back, the first time, if it is an endpoint's: so the client sends its first packet again, a second later, and that is a new
// connection for which an endpoint is chosen anew. By then this node knows of a pod that was being ended.
//
// The client is the one that conntrack knows. The packet itself may be for this node, which has taken the client's place, at another port each time.
func (f *family) refusedChain() chain {
	client := join(proto(model.TCP), f.only(), f.loadOriginal(f.ctSource, reg0), &expr.Ct{Key: expr.CtKeyPROTOSRC, Register: f.behind()})
	hold := join(client, &expr.Dynset{SrcRegKey: reg0, SetName: sets[refused][f.index].name(), Operation: unix.NFT_DYNSET_OP_ADD}, jump(chainHeldBack))
	return chain{name: f.chainRefused(), rule: []rule{
		{"again", join(client, f.in(refused), &expr.Verdict{Kind: expr.VerdictAccept})},
		{"by an endpoint of a Service", join(proto(model.TCP), f.only(), f.loadOriginalFrontend(), f.find(services), setCode(result), hold)},
		{"at a node port", join(proto(model.TCP), f.only(), loadOriginalPort(), f.find(nodeports), setCode(result), hold)},
	}}
}

func port53(end uint32) []any {
	return []any{loadPort(reg0, end), equal(reg0, 0, model.DNSPort)}
}

// isDNS matches when an address (and the protocol) is the cluster DNS's.
func (f *family) isDNS(addr uint32) []any {
	return join(f.only(), f.load(reg0, addr), loadProto(f.behind()), f.in(dnsPorts))
}

// dnsQuestions let a question reach this node's own socket. A socket that is bound to all addresses is somebody else's. Of a TCP
// connection being opened or ended there is no full socket, so that only the last rule knows it; and there is one only
// if the first packet met a listener that was right.
func (f *family) dnsQuestions() []rule {
	socket := func(k expr.SocketKey) any { return &expr.Socket{Key: k, Register: reg0} }
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
		addChain(b, f.wayChain(way{n: 2}))
		addChain(b, f.wayChain(way{n: 2, affinity: 1}))
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
	for _, k := range []kind{ways, ends} {
		for _, f := range families {
			var m message
			fixed := f.fixedWays(k)
			for _, low := range slices.Sorted(maps.Keys(fixed)) {
				verdictElement(&m, appendNumber(nil, low), fixed[low])
			}
			addElements(b, Table, sets[k][f.index], unix.NFT_MSG_NEWSETELEM, m.buf)
		}
	}
	for _, c := range program() {
		for _, r := range c.rule {
			addRule(b, Table, c.name, r)
		}
	}
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
			m.put(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, r.encode(e))
		}
		m.close(list)
		m.put(unix.NFTA_RULE_USERDATA, commentData(r.comment))
	})
}

// encode panics when an expression cannot be written: the program is constant.
func (r rule) encode(e any) []byte {
	if x, ok := e.(raw); ok {
		return x.marshal()
	}
	data, err := expr.Marshal(unix.NFPROTO_INET, e.(expr.Any))
	if err != nil {
		panic(fmt.Sprintf("nft: rule %q: %v", r.comment, err))
	}
	return data
}
