// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
	"unique"

	"github.com/fairlead/fairlead/model"
)

// What the decoder takes: far more than the API allows, and few enough that no file makes an agent ask for memory without end.
const (
	mostText = 1 << 12 // bytes of a string; names have 253 at most
	mostList = 1 << 16 // elements of a list; an EndpointSlice has 1,000 endpoints at most
)

// decoder reads what an encoder wrote. The first error stays, and everything after it yields zeros.
type decoder struct {
	r    *bufio.Reader
	text []byte
	err  error
}

func newDecoder(r io.Reader) *decoder { return &decoder{r: bufio.NewReaderSize(r, 1<<15)} }

// decode hands every object of a stream on. After an error, what was handed on is worth nothing.
func decode(r io.Reader, to model.Objects) error {
	d := newDecoder(r)
	for records := uint64(0); ; records++ {
		switch kind := d.byte(); {
		case d.err != nil:
			return d.err
		case kind == end:
			if n := d.number(1 << 62); d.err == nil && n != records {
				d.fail("%d records where %d were written", records, n)
			}
			if _, err := d.r.ReadByte(); d.err == nil && err != io.EOF {
				d.fail("something follows the end")
			}
			return d.err
		case kind == serviceRecord:
			hand(d, d.service(), to.SetService)
		case kind == sliceRecord:
			hand(d, d.slice(), to.SetSlice)
		case kind == nodeRecord:
			hand(d, d.node(), to.SetNode)
		case kind == podRecord:
			hand(d, d.pod(), to.SetPod)
		case kind == rangeRecord:
			name := d.string()
			hand(d, items(d, d.prefix), func(p []netip.Prefix) { to.SetServiceCIDR(name, p) })
		default:
			d.fail("a record of kind %d", kind)
		}
	}
}

func hand[T any](d *decoder, v T, set func(T)) {
	if d.err == nil {
		set(v)
	}
}

func (d *decoder) service() model.ServiceSpec {
	s := model.ServiceSpec{Name: d.name(), Type: model.ServiceType(d.number(uint64(model.ExternalName))), ClusterIPs: items(d, d.addr)}
	var exposed bool
	d.flags(&s.Unproxied, &s.LocalOnly, &s.PublishNotReady, &exposed)
	s.Affinity = time.Duration(d.number(uint64(24 * time.Hour)))
	if exposed {
		x := new(model.Exposure)
		d.flags(&x.LocalOnly)
		x.Balancers, x.ExternalIPs = items(d, d.addr), items(d, d.addr)
		x.SourceRanges = items(d, d.prefix)
		x.HealthPort = d.portNumber()
		s.Exposure = x
	}
	s.ExternalName = d.string()
	s.Ports = items(d, d.port)
	return s
}

func (d *decoder) slice() model.Slice {
	return model.Slice{Name: d.name(), Service: d.string(), Ports: items(d, d.port), Endpoints: items(d, d.endpoint)}
}

func (d *decoder) endpoint() model.Endpoint {
	e := model.Endpoint{Addr: d.addr()}
	var hinted bool
	d.flags(&e.Ready, &e.Serving, &e.Terminating, &e.Leaving, &hinted)
	e.Hostname, e.Node, e.Zone, e.Pod = d.string(), d.shared(), d.shared(), d.name()
	if hinted {
		e.Hints = &model.Hints{Nodes: items(d, d.shared), Zones: items(d, d.shared)}
	}
	return e
}

func (d *decoder) node() model.Node {
	n := model.Node{Name: d.string(), Addrs: items(d, d.addr), PodCIDRs: items(d, d.prefix), Zone: d.shared()}
	d.flags(&n.Ready, &n.Leaving)
	return n
}

func (d *decoder) pod() model.Pod {
	p := model.Pod{Name: d.name(), Addrs: items(d, d.addr), Hostname: d.string(), Subdomain: d.string()}
	var resolver bool
	d.flags(&p.Terminating, &p.HostNetwork, &resolver)
	if resolver {
		p.Resolver = &model.Resolver{Policy: model.DNSPolicy(d.number(uint64(model.DNSNone))), Searches: items(d, d.shared), Ndots: int(d.number(16)) - 1}
	}
	p.HostPorts = items(d, d.hostPort)
	p.Created = time.Unix(d.signed(), 0).UTC()
	return p
}

func (d *decoder) hostPort() (h model.HostPort) {
	var at bool
	if d.flags(&at); at {
		h.Addr = d.addr()
	}
	h.Protocol, h.Port, h.Target = d.protocol(), d.portNumber(), d.portNumber()
	return h
}

func (d *decoder) port() model.Port {
	return model.Port{Name: d.shared(), Protocol: d.protocol(), Port: d.portNumber(), NodePort: d.portNumber()}
}

func (d *decoder) protocol() model.Protocol {
	p := model.Protocol(d.number(255))
	if _, known := model.ParseProtocol(p.String()); !known {
		d.fail("protocol %d", p)
	}
	return p
}

func (d *decoder) portNumber() uint16 { return uint16(d.number(1<<16 - 1)) }

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
}

func (d *decoder) byte() byte {
	if d.err != nil {
		return 0
	}
	b, err := d.r.ReadByte()
	d.broken(err)
	return b
}

// broken takes in what a reader says. The end is no end here: records have one of their own.
func (d *decoder) broken(err error) {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if d.err == nil && err != nil {
		d.err = err
	}
}

// number reads one that is at most most.
func (d *decoder) number(most uint64) uint64 {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(d.r)
	d.broken(err)
	if d.err == nil && n > most {
		d.fail("number %d, where at most %d can be", n, most)
	}
	if d.err != nil {
		return 0
	}
	return n
}

func (d *decoder) signed() int64 {
	if d.err != nil {
		return 0
	}
	n, err := binary.ReadVarint(d.r)
	d.broken(err)
	return n
}

// bytes are valid until the next call.
func (d *decoder) bytes(n uint64) []byte {
	if uint64(cap(d.text)) < n {
		d.text = make([]byte, n)
	}
	d.text = d.text[:n]
	if d.err == nil {
		_, err := io.ReadFull(d.r, d.text)
		d.broken(err)
	}
	return d.text
}

func (d *decoder) string() string {
	b := d.bytes(d.number(mostText))
	if d.err != nil {
		return ""
	}
	return string(b)
}

// shared is a string that many objects have: it is kept once.
func (d *decoder) shared() string { return unique.Make(d.string()).Value() }

func (d *decoder) name() model.Name { return model.Name{Namespace: d.shared(), Name: d.string()} }

func (d *decoder) flags(bits ...*bool) {
	b := d.byte()
	for i, set := range bits {
		*set = b&(1<<i) != 0
	}
	if b>>len(bits) != 0 {
		d.fail("flags %#x", b)
	}
}

func (d *decoder) addr() netip.Addr {
	n := d.byte()
	if n != 4 && n != 16 {
		d.fail("an address of %d bytes", n)
	}
	if d.err != nil {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(d.bytes(uint64(n)))
	if a.Is4In6() {
		d.fail("address %s is IPv4 written as IPv6", a)
	}
	return a
}

func (d *decoder) prefix() netip.Prefix {
	a, bits := d.addr(), d.byte()
	p := netip.PrefixFrom(a, int(bits))
	if d.err == nil && !p.IsValid() {
		d.fail("a range of %d bits at %s", bits, a)
	}
	return p
}

// items are what list wrote.
func items[T any](d *decoder, one func() T) []T {
	n := d.number(mostList + 1)
	if n == 0 {
		return nil
	}
	all := make([]T, 0, min(n-1, 1<<10))
	for range n - 1 {
		if d.err != nil {
			return nil
		}
		all = append(all, one())
	}
	return all
}
