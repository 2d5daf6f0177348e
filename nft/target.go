// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
)

// Options say where the table is and who is told.
type Options struct {
	// Logger gets a line when the table is made, adopted or found changed by somebody else; nil: nobody is told.
	Logger *slog.Logger
	// Flows hears of each pass over the tracked UDP flows of an address family: how long it took and how many it removed; nil: nobody does.
	Flows func(ipv6 bool, took time.Duration, removed int)
	// NetNS is the network namespace; nil: the process's own.
	NetNS *linux.NetNS
}

// Stats count since the Target was made.
type Stats struct {
	// Transactions that the kernel accepted, and those it refused.
	Transactions, Refused uint64
	// Elements written: added and deleted.
	Elements uint64
	// Drift is how many times the table had been changed by somebody else and was mended.
	Drift uint64
	// Flows is how many UDP connection tracking entries were removed because they led to a place that is no candidate.
	Flows uint64
	// Pins is how many clients' pins were removed because their Service is gone or has no affinity any more.
	Pins uint64
	// Services and Endpoints in the kernel now: frontends (address, protocol, port), and endpoints of the groups that they lead to.
	Services, Endpoints int
	// Quarantined Services.
	Quarantined int
	// Last is how long the last Apply or Verify took that wrote something.
	Last time.Duration
}

// QuarantineError lists the Services that the kernel refuses. Everything else has been applied.
type QuarantineError struct {
	Services []Refusal
}

// Refusal is a Service, or a pod for its host ports, and the reason why it is not programmed. What the kernel had of it before, it has still.
type Refusal struct {
	Service model.Name
	Err     error
}

// Error names the Services and the reason of the first.
func (e *QuarantineError) Error() string {
	names := make([]string, 0, 3)
	for _, r := range e.Services[:min(3, len(e.Services))] {
		names = append(names, r.Service.String())
	}
	if more := len(e.Services) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("quarantined %s: %v", strings.Join(names, ", "), e.Services[0].Err)
}

// Unwrap is the reason of the first.
func (e *QuarantineError) Unwrap() error { return e.Services[0].Err }

// Target keeps one network namespace's table equal to the snapshots it is given. Its methods may be used concurrently.
type Target struct {
	options Options

	mu   sync.Mutex
	conn *conn
	// last is the newest snapshot that was applied but for what is quarantined; nil before the first.
	last *model.Snapshot
	// state is what the kernel holds; nil when that is not known, at the start and after an error. The next Apply reads it.
	state *state
	// gen is the ruleset's generation that state belongs to, if nobody else has written; 0 if not known.
	gen         uint32
	quarantined map[model.Name]*quarantine
	// stale are the UDP frontends whose flows have to be looked at; everyStale stands for all.
	stale      map[frontend]struct{}
	everyStale bool
	answering  bool // see AnswerDNS
	answered   []frontend
	stats      Stats
	scratch    []byte // for the next transaction's messages

	// poison, in tests, makes the kernel refuse a Service.
	poison func(model.Name) bool
}

type quarantine struct {
	unit *unit
	err  error
}

// New returns a Target. It touches nothing before the first Apply.
func New(o Options) *Target {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Target{options: o, quarantined: make(map[model.Name]*quarantine), stale: make(map[frontend]struct{})}
}

// Close gives up the connection to the kernel. The table stays and goes on working.
func (t *Target) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != nil {
		t.conn.close()
		t.conn, t.state, t.answered = nil, nil, nil
	}
	return nil
}

// Cleanup removes the table from a namespace. It needs no other state; a table that is not there is fine.
func Cleanup(o Options) error {
	c, err := dial(o.NetNS)
	if err != nil {
		return err
	}
	defer c.close()
	b := newBatch()
	deleteTable(b, Table)
	if err := c.commit(b); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove table %s: %w", Table, err)
	}
	return nil
}

// Stats returns the counters.
func (t *Target) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Quarantined = len(t.quarantined)
	if t.state != nil {
		s.Services = len(t.state.fronts)
		for _, g := range t.state.groups {
			s.Endpoints += len(g.dests)
		}
	}
	return s
}

// Quarantined lists the Services that the kernel refused, by name.
func (t *Target) Quarantined() []Refusal {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refusals()
}

func (t *Target) refusals() []Refusal {
	list := make([]Refusal, 0, len(t.quarantined))
	for name, q := range t.quarantined {
		list = append(list, Refusal{name, q.err})
	}
	slices.SortFunc(list, func(a, b Refusal) int { return a.Service.Compare(b.Service) })
	return list
}

// Apply brings the table to the snapshot and returns when the kernel has done so. The first Apply adopts the table that is
// there: it reads it and writes the differences. Later ones write what differs from the last snapshot, each Service in one
// transaction, and cost what changed. A snapshot that changes nothing retries what is quarantined and otherwise writes nothing.
//
// The error is a [QuarantineError] if only some Services could not be applied, now or before. After any other error the table is
// between two snapshots, every Service being either old or new, and the next Apply starts by reading it.
func (t *Target) Apply(ctx context.Context, snap *model.Snapshot) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bring(ctx, snap, t.state == nil || t.last == nil)
}

// Verify compares the whole table with the last snapshot, mends what somebody else has changed and retries what is quarantined.
// When no program has changed any table of the namespace since the last look, it costs one question.
func (t *Target) Verify(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		return nil
	}
	if t.state != nil && t.gen != 0 {
		gen, err := t.conn.generation()
		if err == nil && gen == t.gen {
			return t.bring(ctx, t.last, false)
		}
	}
	was := t.stats.Transactions
	err := t.bring(ctx, t.last, true)
	if n := t.stats.Transactions - was; n > 0 {
		t.stats.Drift++
		t.options.Logger.Warn("the nftables table had been changed by another program", "table", Table, "transactions", n)
	}
	return err
}

// bring does what Apply and Verify promise; whole compares everything and not only what changed.
func (t *Target) bring(ctx context.Context, snap *model.Snapshot, whole bool) error {
	start, before := time.Now(), t.stats.Transactions
	err := t.connect()
	if err == nil {
		if whole {
			err = t.applyAll(ctx, snap)
		} else {
			err = t.applyChanges(ctx, snap)
		}
	}
	if err == nil {
		t.last = snap
		err = errors.Join(t.cleanFlows(), t.cleanPins(), t.answerHere(snap))
	} else {
		t.state = nil
	}
	if t.stats.Transactions != before {
		t.stats.Last = time.Since(start)
	}
	if err == nil && len(t.quarantined) > 0 {
		return &QuarantineError{t.refusals()}
	}
	return err
}

func (t *Target) connect() (err error) {
	if t.conn == nil {
		t.conn, err = dial(t.options.NetNS)
	}
	return err
}

func (t *Target) applyChanges(ctx context.Context, snap *model.Snapshot) error {
	us := changes(t.last, snap)
	if len(us) == 0 {
		for n, q := range t.quarantined {
			us[n] = q.unit
		}
	}
	for n, u := range us {
		if q := t.quarantined[n]; q != nil && q.unit != u {
			u.merge(q.unit)
		}
	}
	var common part
	if model.Differ(t.last.Nodes, snap.Nodes) || t.last.Self != snap.Self {
		common |= ofNodes
	}
	if model.Differ(t.last.Pods, snap.Pods) {
		common |= ofPods
	}
	if model.Differ(t.last.Foreign, snap.Foreign) {
		common |= ofForeign
	}
	if len(us) > 0 || !slices.Equal(t.last.DNS, snap.DNS) {
		common |= ofDNS
	}
	list := us.sorted()
	if !slices.Equal(t.last.ServiceCIDRs, snap.ServiceCIDRs) || !slices.Equal(t.last.NodePortAddrs, snap.NodePortAddrs) {
		common |= ofConfig
		// Those that were outside the ranges may be inside now, or the other way round.
		all := &unit{vips: slices.Collect(maps.Keys(t.state.vips))}
		for a := range snap.VIPs.All() {
			all.vips = append(all.vips, a)
		}
		list = append(list, all)
	}
	return t.write(ctx, snap, t.exclude(snap, list), common)
}

// everything is all that the kernel has or the snapshot wants.
func (t *Target) everything(snap *model.Snapshot) []*unit {
	us := make(units, snap.Services.Len())
	for svc := range snap.Owners {
		us.service(snap, svc)
	}
	strangers := &unit{}
	for k := range t.state.fronts {
		if _, ok := snap.Frontends.Get(k); !ok {
			strangers.fronts = append(strangers.fronts, k)
		}
	}
	for a := range t.state.vips {
		if !needsVIP(snap, a) {
			strangers.vips = append(strangers.vips, a)
		}
	}
	slices.SortFunc(strangers.fronts, frontend.Compare)
	slices.SortFunc(strangers.vips, netip.Addr.Compare)
	list := us.sorted()
	// In parts, because a unit is never divided.
	for part := range slices.Chunk(strangers.fronts, 100) {
		list = append(list, &unit{fronts: part})
	}
	return append(list, &unit{vips: strangers.vips})
}

// applyAll reads the table and writes what differs, or makes it if it is not there or not ours.
func (t *Target) applyAll(ctx context.Context, snap *model.Snapshot) error {
	clear(t.quarantined)
	shape, err := t.read(snap, nil)
	if err != nil {
		return err
	}
	t.everyStale = true
	sound := t.state != nil
	if !sound {
		t.state = newState()
		t.state.expect(snap.Services.Len())
	}
	list := t.exclude(snap, t.everything(snap))
	switch {
	case !sound && shape.exists:
		t.options.Logger.Warn("replacing a table of another layout", "table", Table, "found", shape.layout, "want", tableComment())
		if done, err := t.replace(snap, list, shape); done || err != nil {
			return err
		}
		fallthrough
	case !sound:
		if err := t.install(shape.exists); err != nil {
			return err
		}
	case t.last == nil:
		t.options.Logger.Info("adopting the table", "table", Table, "frontends", len(t.state.fronts))
	}
	if err := t.write(ctx, snap, list, ofAll); err != nil {
		return err
	}
	return t.collect()
}

// read learns the state, and what of it belongs to whom: as it was before, if that is known, and to which of a snapshot's Services. It stays nil if the
// table is not sound.
func (t *Target) read(snap *model.Snapshot, before map[owner]ids) (sh *shape, err error) {
	t.state = nil
	t.gen, err = t.conn.settled(func() error {
		if sh, err = t.conn.readShape(); err != nil || !sh.sound() {
			return err
		}
		t.state, err = t.conn.readState(sh)
		return err
	})
	if t.state != nil {
		t.state.claimIDs(snap, before)
	}
	return sh, err
}

// install makes the table without any element.
func (t *Target) install(replace bool) error {
	b := newBatch()
	if replace {
		deleteTable(b, Table)
	}
	addTable(b, Table, 0, tableComment())
	addProgram(b)
	if err := t.commit(b, 0); err != nil {
		return fmt.Errorf("make table %s: %w", Table, err)
	}
	return nil
}

// replace makes the whole table anew in one transaction, so that no packet meets half of it. It returns false if the kernel refused,
// be it because of one Service or because of the size: then the table is made in steps.
//
// A packet that is in the old chains at that moment must find nothing any more, and go on to the new ones. The elements of maps are
// gone for it with their table; those of sets stay, and an address without a Service would be refused, so they are flushed.
func (t *Target) replace(snap *model.Snapshot, list []*unit, old *shape) (bool, error) {
	b := newBatch()
	for _, s := range old.refusing {
		flushSet(b, Table, s)
	}
	deleteTable(b, Table)
	addTable(b, Table, 0, tableComment())
	addProgram(b)
	x := t.state.begin()
	x.setPlains(snap, ofAll)
	for _, u := range list {
		t.plan(x, snap, u)
	}
	x.encode(b)
	err := t.commit(b, x.elements)
	var refused *errRejected
	if errors.As(err, &refused) {
		t.options.Logger.Warn("the table cannot be replaced in one transaction, replacing it in steps", "table", Table, "err", err)
		return false, nil
	}
	if err == nil {
		x.done()
	}
	return err == nil, err
}
