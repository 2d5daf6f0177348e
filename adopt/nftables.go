// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// table is an nftables table as the kernel has it, and follows packets as the kernel does.
type table struct {
	is4    bool
	chains map[string]*chain
	bases  []*chain // by priority
	sets   map[string]*set
}

// chain is a chain and its rules, each a list of expressions.
type chain struct {
	name     string
	base     bool
	hook     uint32
	priority int32
	rules    [][]expression
}

// expression is one step of a rule. The kernel's attributes are kept as they are.
type expression struct {
	name string
	attributes
}

// set is a set or a map.
type set struct {
	name     string
	interval bool
	dynamic  bool // its elements are written by packets
	timeout  time.Duration
	elements map[string]element
	ranges   []element // of a set of intervals
}

// element is an element, or the range from its key to its last.
type element struct {
	key, last []byte
	value     []byte
	verdict   *verdict
}

// verdict is what a rule decides.
type verdict struct {
	code  int32
	chain string
}

// What the kernel's headers have (linux/netfilter/nf_tables.h) and golang.org/x/sys/unix does not.
const (
	nftJump, nftGoto, nftReturn, nftBreak, nftContinue = -3, -4, -5, -2, -1
	nfDrop, nfAccept                                   = 0, 1
	maxDepth                                           = 16   // NFT_JUMP_STACK_SIZE
	maxHops                                            = 1000 // between chains; the kernel takes no circles, but a table may be read while it changes
)

// through takes a packet along the hooks that it passes.
func (t *table) through(p *trip) (end, error) {
	hooks := []uint32{unix.NF_INET_PRE_ROUTING, unix.NF_INET_FORWARD, unix.NF_INET_LOCAL_IN}
	if p.FromNode {
		hooks = []uint32{unix.NF_INET_LOCAL_OUT, unix.NF_INET_LOCAL_IN}
	}
	for _, hook := range hooks {
		if hook == unix.NF_INET_FORWARD && p.local() || hook == unix.NF_INET_LOCAL_IN && !p.local() {
			continue
		}
		for _, base := range t.bases {
			if base.hook != hook {
				continue
			}
			m := machine{table: t, trip: p}
			if e, err := m.run(base); e != "" || err != nil {
				return e, err
			}
		}
	}
	return "", nil
}

// local reports whether the packet, as it is now, is for the node itself.
func (p *trip) local() bool { return p.ToNode && !p.translated }

// machine runs the rules for one packet at one hook: nf_tables' registers are all its state.
type machine struct {
	*table
	trip      *trip
	registers [80]byte
}

// register is the memory from a register on.
func (m *machine) register(n uint32) ([]byte, error) {
	at := 16 * int(n)
	if n >= unix.NFT_REG32_00 {
		at = 16 + 4*int(n-unix.NFT_REG32_00)
	} else if n > 4 {
		at = len(m.registers)
	}
	if at >= len(m.registers) || n == 0 {
		return nil, fmt.Errorf("register %d does not exist", n)
	}
	return m.registers[at:], nil
}

// store puts data into a register, with zeros up to its end.
func (m *machine) store(n uint32, data []byte) error {
	r, err := m.register(n)
	if err != nil {
		return err
	}
	padded := (len(data) + 3) &^ 3
	if padded > len(r) {
		return fmt.Errorf("%d octets do not fit at register %d", len(data), n)
	}
	clear(r[:padded])
	copy(r, data)
	return nil
}

func (m *machine) load(n uint32, size int) ([]byte, error) {
	r, err := m.register(n)
	if err != nil {
		return nil, err
	}
	if size > len(r) {
		return nil, fmt.Errorf("%d octets are not at register %d", size, n)
	}
	return r[:size], nil
}

// run follows a base chain to a decision; none means that the packet goes on.
func (m *machine) run(base *chain) (end, error) {
	type place struct {
		chain *chain
		rule  int
	}
	at := place{chain: base}
	var back []place
	for hops := 0; ; {
		if at.rule == len(at.chain.rules) {
			if len(back) == 0 {
				return "", nil
			}
			at, back = back[len(back)-1], back[:len(back)-1]
			continue
		}
		rule := at.chain.rules[at.rule]
		v, e, err := m.rule(rule)
		if err != nil {
			return "", fmt.Errorf("chain %s, rule %d: %w", at.chain.name, at.rule+1, err)
		}
		if e != "" {
			return e, nil
		}
		at.rule++
		switch v.code {
		case nftContinue, nftBreak:
		case nfDrop:
			return noAnswer, nil
		case nfAccept:
			return "", nil
		case nftReturn:
			at.rule = len(at.chain.rules)
		case nftJump, nftGoto:
			to, ok := m.chains[v.chain]
			if hops++; !ok || len(back) == maxDepth || hops > maxHops {
				return "", fmt.Errorf("chain %s leads to chain %q, which does not exist or goes in a circle", at.chain.name, v.chain)
			}
			if v.code == nftJump {
				back = append(back, at)
			}
			at = place{chain: to}
		default:
			return "", fmt.Errorf("chain %s: verdict %d is not understood", at.chain.name, v.code)
		}
	}
}

var goOn = verdict{code: nftContinue}

// rule runs a rule's expressions until one does not match or decides.
func (m *machine) rule(rule []expression) (verdict, end, error) {
	for i := range rule {
		e := &rule[i]
		ok, v, decided, err := m.step(e)
		switch {
		case err != nil:
			return goOn, "", fmt.Errorf("expression %s: %w", e.name, err)
		case decided != "":
			return goOn, decided, nil
		case v != nil && v.code != nftContinue:
			return *v, "", nil
		case !ok:
			return goOn, "", nil
		}
	}
	return goOn, "", nil
}

// step runs one expression: whether the rule goes on, or what is decided.
func (m *machine) step(e *expression) (ok bool, v *verdict, decided end, err error) {
	switch e.name {
	case "counter", "objref", "log", "masq":
		return true, nil, "", nil
	case "payload":
		return true, nil, "", m.payload(e)
	case "meta":
		return true, nil, "", m.meta(e)
	case "ct":
		return true, nil, "", m.ct(e)
	case "fib":
		return true, nil, "", m.fib(e)
	case "cmp":
		ok, err = m.compare(e)
		return ok, nil, "", err
	case "bitwise":
		return true, nil, "", m.bitwise(e)
	case "numgen":
		if e.number(unix.NFTA_NG_MODULUS) == 0 {
			return false, nil, "", fmt.Errorf("draws among none")
		}
		n := uint32(m.trip.choose(int(e.number(unix.NFTA_NG_MODULUS)))) + e.number(unix.NFTA_NG_OFFSET)
		return true, nil, "", m.store(e.number(unix.NFTA_NG_DREG), binary.NativeEndian.AppendUint32(nil, n))
	case "dynset":
		if s := m.sets[e.text(unix.NFTA_DYNSET_SET_NAME)]; s != nil {
			m.trip.affinity = s.timeout
		}
		return true, nil, "", nil
	case "lookup":
		return m.lookup(e)
	case "immediate":
		value, verdict, err := data(e.attributes[unix.NFTA_IMMEDIATE_DATA])
		if err != nil || verdict != nil {
			return true, verdict, "", err
		}
		return true, nil, "", m.store(e.number(unix.NFTA_IMMEDIATE_DREG), value)
	case "reject":
		return true, nil, refused, nil
	case "nat":
		return true, &verdict{code: nfAccept}, "", m.nat(e)
	}
	return false, nil, "", fmt.Errorf("it is not understood")
}

func (m *machine) payload(e *expression) error {
	var header []byte
	switch e.number(unix.NFTA_PAYLOAD_BASE) {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		src, dst := m.trip.Src.Addr().AsSlice(), m.trip.to.Addr().AsSlice()
		if m.is4 {
			header = make([]byte, 12)
			header[9] = byte(m.trip.Protocol)
		} else {
			header = make([]byte, 8)
			header[6] = byte(m.trip.Protocol)
		}
		header = append(append(header, src...), dst...)
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		header = binary.BigEndian.AppendUint16(nil, m.trip.Src.Port())
		header = binary.BigEndian.AppendUint16(header, m.trip.to.Port())
	}
	from, size := e.number(unix.NFTA_PAYLOAD_OFFSET), e.number(unix.NFTA_PAYLOAD_LEN)
	if _, writes := e.attributes[unix.NFTA_PAYLOAD_SREG]; writes || uint64(from)+uint64(size) > uint64(len(header)) {
		return fmt.Errorf("%d octets at %d of header %d are not understood", size, from, e.number(unix.NFTA_PAYLOAD_BASE))
	}
	return m.store(e.number(unix.NFTA_PAYLOAD_DREG), header[from:from+size])
}

func (m *machine) meta(e *expression) error {
	key := e.number(unix.NFTA_META_KEY)
	if _, writes := e.attributes[unix.NFTA_META_SREG]; writes {
		value, err := m.load(e.number(unix.NFTA_META_SREG), 4)
		if err == nil && key == unix.NFT_META_MARK {
			m.trip.mark = binary.NativeEndian.Uint32(value)
			return nil
		}
		return fmt.Errorf("key %d is not understood", key)
	}
	var value []byte
	switch key {
	case unix.NFT_META_L4PROTO:
		value = []byte{byte(m.trip.Protocol)}
	case unix.NFT_META_NFPROTO:
		value = []byte{unix.NFPROTO_IPV6}
		if m.is4 {
			value = []byte{unix.NFPROTO_IPV4}
		}
	case unix.NFT_META_MARK:
		value = binary.NativeEndian.AppendUint32(nil, m.trip.mark)
	default:
		return fmt.Errorf("key %d is not understood", key)
	}
	return m.store(e.number(unix.NFTA_META_DREG), value)
}

func (m *machine) ct(e *expression) error {
	const stateNew, statusDNAT = 1 << 3, 1 << 5 // NF_CT_STATE_BIT(IP_CT_NEW), IPS_DST_NAT
	var value uint32
	switch key := e.number(unix.NFTA_CT_KEY); key {
	case unix.NFT_CT_STATE:
		value = stateNew
	case unix.NFT_CT_STATUS:
		if m.trip.translated {
			value = statusDNAT
		}
	default:
		return fmt.Errorf("key %d is not understood", key)
	}
	return m.store(e.number(unix.NFTA_CT_DREG), binary.NativeEndian.AppendUint32(nil, value))
}

func (m *machine) fib(e *expression) error {
	flags := e.number(unix.NFTA_FIB_FLAGS)
	var local bool
	switch {
	case e.number(unix.NFTA_FIB_RESULT) != unix.NFT_FIB_RESULT_ADDRTYPE:
		return fmt.Errorf("result %d is not understood", e.number(unix.NFTA_FIB_RESULT))
	case flags == unix.NFTA_FIB_F_SADDR:
		local = m.trip.FromNode
	case flags == unix.NFTA_FIB_F_DADDR:
		local = m.trip.local()
	default:
		return fmt.Errorf("flags %d are not understood", flags)
	}
	kind := uint32(unix.RTN_UNICAST)
	if local {
		kind = unix.RTN_LOCAL
	}
	return m.store(e.number(unix.NFTA_FIB_DREG), binary.NativeEndian.AppendUint32(nil, kind))
}

func (m *machine) compare(e *expression) (bool, error) {
	want, _, err := data(e.attributes[unix.NFTA_CMP_DATA])
	if err != nil {
		return false, err
	}
	is, err := m.load(e.number(unix.NFTA_CMP_SREG), len(want))
	if err != nil {
		return false, err
	}
	c := bytes.Compare(is, want)
	switch op := e.number(unix.NFTA_CMP_OP); op {
	case unix.NFT_CMP_EQ:
		return c == 0, nil
	case unix.NFT_CMP_NEQ:
		return c != 0, nil
	case unix.NFT_CMP_LT:
		return c < 0, nil
	case unix.NFT_CMP_LTE:
		return c <= 0, nil
	case unix.NFT_CMP_GT:
		return c > 0, nil
	case unix.NFT_CMP_GTE:
		return c >= 0, nil
	default:
		return false, fmt.Errorf("comparison %d is not understood", op)
	}
}

func (m *machine) bitwise(e *expression) error {
	const operation = 6 // NFTA_BITWISE_OP: 0 is "and, then exclusive or"
	mask, _, err := data(e.attributes[unix.NFTA_BITWISE_MASK])
	if err != nil {
		return err
	}
	xor, _, err := data(e.attributes[unix.NFTA_BITWISE_XOR])
	if err != nil {
		return err
	}
	if e.number(operation) != 0 || len(mask) != len(xor) {
		return fmt.Errorf("operation %d is not understood", e.number(operation))
	}
	value, err := m.load(e.number(unix.NFTA_BITWISE_SREG), len(mask))
	if err != nil {
		return err
	}
	result := make([]byte, len(mask))
	for i := range result {
		result[i] = value[i]&mask[i] ^ xor[i]
	}
	return m.store(e.number(unix.NFTA_BITWISE_DREG), result)
}

func (m *machine) lookup(e *expression) (ok bool, v *verdict, decided end, err error) {
	name := e.text(unix.NFTA_LOOKUP_SET)
	s := m.sets[name]
	if s == nil {
		return false, nil, "", fmt.Errorf("set %q does not exist", name)
	}
	from, err := m.register(e.number(unix.NFTA_LOOKUP_SREG))
	if err != nil {
		return false, nil, "", err
	}
	found, ok := s.find(from)
	if _, maps := e.attributes[unix.NFTA_LOOKUP_DREG]; !maps {
		inverse := e.number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0
		return ok != inverse, nil, "", nil
	}
	switch {
	case !ok:
		return false, nil, "", nil
	case found.verdict != nil:
		return true, found.verdict, "", nil
	}
	return true, nil, "", m.store(e.number(unix.NFTA_LOOKUP_DREG), found.value)
}

// find looks up what is in the registers. The client was never here before, so it is in no set that packets write to.
func (s *set) find(registers []byte) (element, bool) {
	if s.dynamic {
		return element{}, false
	}
	for _, r := range s.ranges {
		if len(r.key) <= len(registers) {
			if is := registers[:len(r.key)]; bytes.Compare(is, r.key) >= 0 && bytes.Compare(is, r.last) <= 0 {
				return r, true
			}
		}
	}
	for key := range s.elements { // any: all have one length
		if len(key) <= len(registers) {
			e, ok := s.elements[string(registers[:len(key)])]
			return e, ok
		}
		break
	}
	return element{}, false
}

func (m *machine) nat(e *expression) error {
	const destination = 1 // NFT_NAT_DNAT
	if e.number(unix.NFTA_NAT_TYPE) != destination {
		return fmt.Errorf("type %d is not understood", e.number(unix.NFTA_NAT_TYPE))
	}
	size := 16
	if m.is4 {
		size = 4
	}
	raw, err := m.load(e.number(unix.NFTA_NAT_REG_ADDR_MIN), size)
	if err != nil {
		return err
	}
	addr, _ := netip.AddrFromSlice(raw)
	port := m.trip.to.Port()
	if n := e.number(unix.NFTA_NAT_REG_PROTO_MIN); n != 0 {
		raw, err := m.load(n, 2)
		if err != nil {
			return err
		}
		port = binary.BigEndian.Uint16(raw)
	}
	m.trip.to, m.trip.translated = netip.AddrPortFrom(addr, port), true
	return nil
}

// frontends are what kube-proxy's maps have a word about, with the chain that it names after the Service.
func (t *table) frontends(add func(model.Frontend, string)) {
	for _, name := range []string{"service-ips", "no-endpoint-services", "firewall-ips", "service-nodeports", "no-endpoint-nodeports"} {
		s := t.sets[name]
		if s == nil {
			continue
		}
		for _, e := range s.elements {
			key := e.key
			f := model.Frontend{Addr: netip.IPv6Unspecified()}
			if t.is4 {
				f.Addr = netip.IPv4Unspecified()
			}
			if size := f.Addr.BitLen() / 8; len(key) == size+8 {
				f.Addr, _ = netip.AddrFromSlice(key[:size])
				key = key[size:]
			}
			if len(key) != 8 {
				continue
			}
			f.Protocol, f.Port = model.Protocol(key[0]), binary.BigEndian.Uint16(key[4:])
			to := ""
			if e.verdict != nil {
				to = e.verdict.chain
			}
			add(f, to)
		}
	}
}
