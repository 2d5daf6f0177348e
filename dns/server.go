// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/meter"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/model"
)

// Server answers DNS queries on one node.
type Server struct {
	plan    atomic.Pointer[plan]
	gate    gate
	clients *client.Clients
	meter   *meter.Meter
	options Options
	now     func() time.Time
	started time.Time
	log     *slog.Logger

	taught taught

	conns conns
	late  atomic.Int64 // UDP queries whose answers take longer

	completing time.Duration // completionTime, but for tests

	reload  sync.Mutex // one at a time
	statsMu sync.Mutex // of the list, not of what is in it
	sockets []*socketStats
}

// New makes a server that knows nothing yet. Its error names the setting that is wrong.
func New(o Options) (*Server, error) {
	o = o.withDefaults()
	o.forwarding = forward.NewMetrics()
	p, err := newPlan(o)
	if err != nil {
		return nil, err
	}
	s := &Server{clients: client.New(o.Asking), options: o, now: o.Now, started: o.Now(), log: o.Logger, completing: completionTime}
	s.plan.Store(p)
	if o.Shortcut != nil {
		s.taught = taught{Answers: o.Shortcut, once: new(once), classes: make(map[class]*tally), stats: make(map[netip.AddrPort]*socketStats)}
		s.gate.changed = s.unteach
	}
	s.meter = meter.New(zoneNames(p.primary())...)
	s.conns.most, s.conns.mostOfOne = o.MaxConns, o.MaxConnsOfOne
	s.gate.wait, s.gate.settle, s.gate.maxWaiting, s.gate.now = o.Wait, o.Settle, int64(o.MaxWaiting), o.Now
	s.gate.state.Store(&state{announced: emptyView(o), followed: make(chan struct{})})
	return s, nil
}

// Reload answers by other blocks from now on. Questions under way end as they began, and what is known of upstreams and their answers goes on.
// If the blocks are wrong, nothing changes, and the error says what is wrong.
func (s *Server) Reload(blocks []Block) error {
	s.reload.Lock()
	defer s.reload.Unlock()
	o, old := s.options, s.plan.Load()
	o.Blocks = blocks
	p, err := newPlan(o)
	if err != nil {
		return err
	}
	for _, port := range p.ports() {
		if !slices.Contains(old.ports(), port) {
			p.close()
			return fmt.Errorf("port %d is not open: another port takes another start", port)
		}
	}
	p.adopt(old) // not before all is well: it takes the counters along
	s.plan.Store(p)
	if s.taught.Answers != nil {
		s.taught.Changed(shortcut.All)
	}
	// What has been asked by the old forwarders may take as long as a question may.
	time.AfterFunc(drain, old.close)
	return nil
}

// drain is longer than any question takes.
const drain = 10 * time.Second

// Blocks are what is answered now.
func (s *Server) Blocks() []Block {
	var out []Block
	for _, b := range s.plan.Load().blocks {
		out = append(out, b.Block)
	}
	return out
}

// Ports are those that the blocks want questions taken at.
func (s *Server) Ports() []uint16 { return s.plan.Load().ports() }

// Upstreams are the resolvers that names are forwarded to, and how they are.
func (s *Server) Upstreams() (out []forward.UpstreamStatus) {
	for _, b := range s.plan.Load().blocks {
		if b.upstreams != nil {
			out = append(out, b.upstreams.Status()...)
		}
	}
	return out
}

// Top are the n clients that ask most, by a measure.
func (s *Server) Top(n int, m client.Measure) []client.Talker {
	s.collect()
	return s.clients.Top(s.gate.state.Load().announced.clients, n, m)
}

// Announce takes in a snapshot that has arrived but is not yet in the kernel. What is gone from it is answered no more; what is new in it
// is waited for. It is to be called before the first target is changed.
func (s *Server) Announce(snap *model.Snapshot) { s.gate.announce(snap) }

// Publish takes in a snapshot that every target has acknowledged, and wakes the queries that wait for it. Services that could not be
// programmed are named in refused, and are answered with SERVFAIL until they are published without.
func (s *Server) Publish(snap *model.Snapshot, refused ...model.Name) { s.gate.publish(snap, refused) }

// Programmed counts a change of a Service's endpoints that is published now, by when it happened: what lies before the server's start, nobody could
// have answered sooner.
func (s *Server) Programmed(service model.Name, at time.Time) {
	v := s.gate.state.Load().published
	if v == nil || at.Before(s.started) {
		return
	}
	switch svc, ok := v.snap.Services.Get(service); {
	case ok && svc.Type == model.ClusterIP:
		s.meter.Programmed(meter.ClusterIP, s.now().Sub(at))
	case ok && svc.Type == model.Headless:
		s.meter.Programmed(meter.Headless, s.now().Sub(at))
	}
}

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
		asked := *v
		asked.plan = s.plan.Load()
		return asked.Dump()
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
	t := s.plan.Load().targetOf(name)
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
	c := &socketStats{transport: transport{"dns://" + local.String(), proto, family}, local: local}
	c.meter = s.meter.Socket(c.server, proto)
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	s.sockets = append(s.sockets, c)
	return c
}
