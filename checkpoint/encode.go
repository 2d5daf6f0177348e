// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"bufio"
	"encoding/binary"
	"io"
	"net/netip"

	"github.com/fairlead/fairlead/model"
)

// The kinds of records. A record is its kind and the fields of the object in the order in which the model has them.
const (
	end = iota // followed by the number of records
	serviceRecord
	sliceRecord
	nodeRecord
	podRecord
	rangeRecord
)

// encoder writes objects as records. The first error stays, and everything after it does nothing. An object that the decoder would not take is left out:
// the API does not bound everything that an endpoint says.
type encoder struct {
	w        *bufio.Writer
	scratch  []byte
	tooLarge bool // the object in scratch
	records  uint64
	err      error
}

var _ model.Objects = (*encoder)(nil)

func newEncoder(w io.Writer) *encoder { return &encoder{w: bufio.NewWriterSize(w, 1<<15)} }

// finish writes the end of the records.
func (e *encoder) finish() error {
	n := e.records
	e.begin(end)
	e.number(n)
	e.write()
	if e.err == nil {
		e.err = e.w.Flush()
	}
	return e.err
}

func (e *encoder) begin(kind byte) { e.scratch, e.tooLarge = append(e.scratch[:0], kind), false }

func (e *encoder) write() {
	if e.tooLarge {
		return
	}
	e.records++
	if e.err == nil {
		_, e.err = e.w.Write(e.scratch)
	}
}

// SetService implements model.Objects; when it arrived is not kept.
func (e *encoder) SetService(s model.ServiceSpec) {
	e.begin(serviceRecord)
	e.name(s.Name)
	e.number(uint64(s.Type))
	list(e, s.ClusterIPs, e.addr)
	e.flags(s.Unproxied, s.LocalOnly, s.PublishNotReady, s.Exposure != nil)
	e.number(uint64(s.Affinity))
	if x := s.Exposure; x != nil {
		e.flags(x.LocalOnly)
		list(e, x.Balancers, e.addr)
		list(e, x.ExternalIPs, e.addr)
		list(e, x.SourceRanges, e.prefix)
		e.number(uint64(x.HealthPort))
	}
	e.text(s.ExternalName)
	list(e, s.Ports, e.port)
	e.write()
}

// SetSlice implements model.Objects.
func (e *encoder) SetSlice(s model.Slice) {
	e.begin(sliceRecord)
	e.name(s.Name)
	e.text(s.Service)
	list(e, s.Ports, e.port)
	list(e, s.Endpoints, e.endpoint)
	e.write()
}

func (e *encoder) endpoint(p model.Endpoint) {
	e.addr(p.Addr)
	e.flags(p.Ready, p.Serving, p.Terminating, p.Leaving, p.Hints != nil)
	e.text(p.Hostname)
	e.text(p.Node)
	e.text(p.Zone)
	e.name(p.Pod)
	if p.Hints != nil {
		list(e, p.Hints.Nodes, e.text)
		list(e, p.Hints.Zones, e.text)
	}
}

// SetNode implements model.Objects.
func (e *encoder) SetNode(n model.Node) {
	e.begin(nodeRecord)
	e.text(n.Name)
	list(e, n.Addrs, e.addr)
	list(e, n.PodCIDRs, e.prefix)
	e.text(n.Zone)
	e.flags(n.Ready, n.Leaving)
	e.write()
}

// SetPod implements model.Objects.
func (e *encoder) SetPod(p model.Pod) {
	e.begin(podRecord)
	e.name(p.Name)
	list(e, p.Addrs, e.addr)
	e.text(p.Hostname)
	e.text(p.Subdomain)
	e.flags(p.Terminating, p.HostNetwork, p.Resolver != nil)
	if r := p.Resolver; r != nil {
		e.number(uint64(r.Policy))
		list(e, r.Searches, e.text)
		e.number(uint64(r.Ndots + 1))
	}
	list(e, p.HostPorts, e.hostPort)
	e.scratch = binary.AppendVarint(e.scratch, p.Created.Unix())
	e.write()
}

// SetServiceCIDR implements model.Objects.
func (e *encoder) SetServiceCIDR(name string, ranges []netip.Prefix) {
	e.begin(rangeRecord)
	e.text(name)
	list(e, ranges, e.prefix)
	e.write()
}

func (e *encoder) number(n uint64) { e.scratch = binary.AppendUvarint(e.scratch, n) }

func (e *encoder) text(s string) {
	e.tooLarge = e.tooLarge || len(s) > mostText
	e.number(uint64(len(s)))
	e.scratch = append(e.scratch, s...)
}

func (e *encoder) name(n model.Name) {
	e.text(n.Namespace)
	e.text(n.Name)
}

func (e *encoder) flags(bits ...bool) {
	var b byte
	for i, set := range bits {
		if set {
			b |= 1 << i
		}
	}
	e.scratch = append(e.scratch, b)
}

func (e *encoder) addr(a netip.Addr) {
	b := a.AsSlice()
	e.scratch = append(append(e.scratch, byte(len(b))), b...)
}

func (e *encoder) prefix(p netip.Prefix) {
	e.addr(p.Addr())
	e.scratch = append(e.scratch, byte(p.Bits()))
}

func (e *encoder) hostPort(h model.HostPort) {
	e.flags(h.Addr.IsValid())
	if h.Addr.IsValid() {
		e.addr(h.Addr)
	}
	e.number(uint64(h.Protocol))
	e.number(uint64(h.Port))
	e.number(uint64(h.Target))
}

func (e *encoder) port(p model.Port) {
	e.text(p.Name)
	e.number(uint64(p.Protocol))
	e.number(uint64(p.Port))
	e.number(uint64(p.NodePort))
}

// list writes one more than the length, and zero for nil, because a Service with nil for an empty list would count as another one.
func list[T any](e *encoder, all []T, one func(T)) {
	if all == nil {
		e.number(0)
		return
	}
	e.tooLarge = e.tooLarge || len(all) > mostList
	e.number(uint64(len(all)) + 1)
	for _, v := range all {
		one(v)
	}
}
