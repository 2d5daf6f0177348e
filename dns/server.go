// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

// Server answers DNS queries on one node.
type Server struct {
	zone    *zone
	gate    gate
	forward *forwarder // nil without upstreams
	options Options
	now     func() time.Time
	log     *slog.Logger

	noUpstream string // what a query outside the zones is told when there is no forwarder

	strangers atomic.Uint64
	conns     conns

	statsMu sync.Mutex // of the list, not of what is in it
	sockets []*socketStats
}

// New makes a server that knows nothing yet. Its error names the setting that is wrong.
func New(o Options) (*Server, error) {
	o = o.withDefaults()
	z, err := newZone(o)
	if err != nil {
		return nil, err
	}
	s := &Server{zone: z, options: o, now: o.Now, log: o.Logger}
	s.noUpstream = "no upstream resolver is configured: only names below " + z.domains[0].name + " and the cluster's reverse names are answered"
	if len(o.Upstreams) > 0 {
		if s.forward, err = newForwarder(o); err != nil {
			return nil, err
		}
	}
	s.conns.most, s.conns.mostOfOne = o.MaxConns, o.MaxConnsOfOne
	s.gate.wait, s.gate.settle, s.gate.maxWaiting, s.gate.now = o.Wait, o.Settle, int64(o.MaxWaiting), o.Now
	empty := &View{zone: z, snap: &model.Snapshot{}, clients: newClients(o.Clients, nil)}
	s.gate.state.Store(&state{announced: empty, followed: make(chan struct{})})
	return s, nil
}

// Announce takes in a snapshot that has arrived but is not yet in the kernel. What is gone from it is answered no more; what is new in it
// is waited for. It is to be called before the first target is changed.
func (s *Server) Announce(snap *model.Snapshot) { s.gate.announce(snap) }

// Publish takes in a snapshot that every target has acknowledged, and wakes the queries that wait for it. Services that could not be
// programmed are named in refused, and are answered with SERVFAIL until they are published without.
func (s *Server) Publish(snap *model.Snapshot, refused ...model.Name) { s.gate.publish(snap, refused) }

// Published is the snapshot that is answered from; nil before the first.
func (s *Server) Published() *model.Snapshot {
	if v := s.gate.state.Load().published; v != nil {
		return v.snap
	}
	return nil
}

// Dump prints the zones as they are published, in zone-file form.
func (s *Server) Dump() string {
	if v := s.gate.state.Load().published; v != nil {
		return v.Dump()
	}
	return ""
}

// Lookup answers one question as a client would be answered, with the same waiting, but for the names outside the cluster's zones: they
// are not forwarded.
func (s *Server) Lookup(ctx context.Context, name string, qtype uint16) (Answer, error) {
	if !strings.HasSuffix(name, ".") {
		name += "."
	}
	if _, ok := mdns.IsDomainName(name); !ok {
		return Answer{}, fmt.Errorf("look up %q: not a domain name", name)
	}
	t := s.zone.parse(name)
	if t.kind == kindOutside {
		return Answer{Outside: true}, nil
	}
	if a, ok := s.gate.answer(t, name, qtype); ok {
		return a, nil
	}
	return s.gate.await(ctx, t, name, qtype), ctx.Err()
}

func (s *Server) stats() []*socketStats {
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	return append([]*socketStats(nil), s.sockets...)
}

// newStats is where the queries at a socket are counted.
func (s *Server) newStats(proto string, local netip.AddrPort) *socketStats {
	family := "2"
	if local.Addr().Is4() {
		family = "1"
	}
	c := &socketStats{transport: transport{"dns://" + local.String(), proto, family}}
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	s.sockets = append(s.sockets, c)
	return c
}
