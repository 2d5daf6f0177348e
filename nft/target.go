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

const (
	// maxElements is how many elements a transaction holds before the next begins. A Service is never divided.
	maxElements = 4000
	// idleWays is how many unused ways may stay: a Service that scales to and fro would otherwise make and remove
	// them all the time.
	idleWays = 32
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

// Refusal is a Service and the reason why it is not programmed. What the kernel had of it before, it has still.
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

// unit is what has to change together: all that belongs to one Service. The zero name stands for what belongs to none.
type unit struct {
	service model.Name
	fronts  []frontend
	vips    []netip.Addr
	owners  []owner
}

// units collects what is to be looked at, by Service.
type units map[model.Name]*unit

func (us units) of(n model.Name) *unit {
	u := us[n]
	if u == nil {
		u = &unit{service: n}
		us[n] = u
	}
	return u
}

// service adds all that a version of a Service may have in the table.
func (us units) service(snap *model.Snapshot, svc *model.Service) {
	if svc == nil || svc.Type != model.ClusterIP {
		return
	}
	u := us.of(svc.Name)
	u.vips = append(u.vips, svc.ClusterIPs...)
	snap.Claims(svc, func(k frontend) { u.fronts = append(u.fronts, k) })
	for _, a := range svc.ClusterIPs {
		for _, p := range svc.Ports {
			if o := (owner{svc.Name, familyOf(a), p.Protocol, p.Port}); !slices.Contains(u.owners, o) {
				u.owners = append(u.owners, o)
			}
		}
	}
}

// merge adds what another unit of the same Service has.
func (u *unit) merge(o *unit) {
	u.fronts = append(u.fronts, o.fronts...)
	u.vips = append(u.vips, o.vips...)
	for _, x := range o.owners {
		if !slices.Contains(u.owners, x) {
			u.owners = append(u.owners, x)
		}
	}
}

// sorted puts them in an order of their own, so that two runs write the same.
func (us units) sorted() []*unit {
	return slices.SortedFunc(maps.Values(us), func(a, b *unit) int { return a.service.Compare(b.service) })
}

// changes are the Services that two snapshots differ in. A frontend or address that goes from one Service to another concerns both.
func changes(from, to *model.Snapshot) units {
	us := make(units)
	if from.Services != to.Services {
		for _, c := range model.Diff(from.Services, to.Services) {
			us.service(from, c.Old)
			us.service(to, c.New)
		}
	}
	if from.VIPs != to.VIPs {
		for _, c := range model.Diff(from.VIPs, to.VIPs) {
			us.disputed(from, to, c)
		}
	}
	if from.Foreign != to.Foreign {
		for _, c := range model.Diff(from.Foreign, to.Foreign) {
			us.disputed(from, to, c)
		}
	}
	if from.Frontends != to.Frontends {
		for _, c := range model.Diff(from.Frontends, to.Frontends) {
			us.disputed(from, to, c)
		}
	}
	if everyScope(from) == everyScope(to) {
		return us
	}
	// This node has another zone: hints mean something else.
	for _, svc := range to.Services.All() {
		if us[svc.Name] == nil && hasHints(svc) {
			us.service(to, svc)
		}
	}
	return us
}

// disputed adds the Services between which something passed, which may be the same as they were.
func (us units) disputed(from, to *model.Snapshot, c model.Change[model.Name]) {
	if c.Old == c.New {
		return
	}
	for _, side := range []struct {
		snap *model.Snapshot
		name model.Name
	}{{from, c.Old}, {to, c.New}} {
		if svc, ok := side.snap.Services.Get(side.name); ok && us[side.name] == nil {
			us.service(side.snap, svc)
		}
	}
}

// everyScope is what decisions about all Services rest on beside the Services.
func everyScope(s *model.Snapshot) string {
	if self := s.Node(); self != nil {
		return s.Self + "/" + self.Zone
	}
	return ""
}

func hasHints(svc *model.Service) bool {
	return slices.ContainsFunc(svc.Endpoints, func(e model.Endpoint) bool { return e.Hints != nil })
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
	if differ(t.last.Nodes, snap.Nodes) || t.last.Self != snap.Self {
		common |= ofNodes
	}
	if differ(t.last.Pods, snap.Pods) {
		common |= ofPods
	}
	if differ(t.last.Foreign, snap.Foreign) {
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
	return t.write(ctx, snap, list, common)
}

func differ[K, V comparable](a, b model.Table[K, V]) bool {
	if a == b {
		return false
	}
	for range model.Diff(a, b) {
		return true
	}
	return false
}

// everything is all that the kernel has or the snapshot wants.
func (t *Target) everything(snap *model.Snapshot) []*unit {
	us := make(units, snap.Services.Len())
	for _, svc := range snap.Services.All() {
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
	shape, err := t.read(snap)
	if err != nil {
		return err
	}
	t.everyStale = true
	if t.state == nil {
		t.state = newState()
		t.state.expect(snap.Services.Len())
		list := t.everything(snap)
		if shape.exists {
			t.options.Logger.Warn("replacing a table of another layout", "table", Table, "found", shape.layout, "want", tableComment())
			done, err := t.replace(snap, list, shape)
			if done || err != nil {
				return err
			}
		}
		if err := t.install(shape.exists); err != nil {
			return err
		}
		return t.write(ctx, snap, list, ofAll)
	}
	if t.last == nil {
		t.options.Logger.Info("adopting the table", "table", Table, "frontends", len(t.state.fronts))
	}
	if err := t.write(ctx, snap, t.everything(snap), ofAll); err != nil {
		return err
	}
	return t.collect()
}

// read learns the state, and what of it belongs to which of a snapshot's Services; it stays nil if the table is not sound.
func (t *Target) read(snap *model.Snapshot) (sh *shape, err error) {
	t.state = nil
	t.gen, err = t.conn.settled(func() error {
		if sh, err = t.conn.readShape(); err != nil || !sh.sound() {
			return err
		}
		t.state, err = t.conn.readState(sh)
		return err
	})
	if t.state != nil {
		t.state.claimIDs(snap)
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
		if t.state.check(snap, u.service) == nil {
			t.plan(x, snap, u)
		}
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

// commit sends a transaction and counts it.
func (t *Target) commit(b *batch, elements int) error {
	err := t.conn.commit(b)
	if err != nil {
		t.stats.Refused++
		return err
	}
	t.count(elements)
	return nil
}

// count keeps the books of a transaction that the kernel has done.
func (t *Target) count(elements int) {
	t.stats.Transactions++
	t.stats.Elements += uint64(elements)
	if t.gen != 0 {
		t.gen = max(t.gen+1, 1)
	}
}

// plan puts a Service into a transaction.
func (t *Target) plan(x *tx, snap *model.Snapshot, u *unit) {
	x.plan(snap, u)
	if t.poison != nil && t.poison(u.service) {
		x.put(sets[vips][0], nil, nil)
	}
}

// write brings the units to the snapshot, in transactions of bounded size. When the kernel refuses one, the table is read again,
// in case somebody else has changed it; when that does not help, the Service at fault is found by halving.
func (t *Target) write(ctx context.Context, snap *model.Snapshot, list []*unit, common part) error {
	reread := false
	list = t.exclude(snap, list)
	if len(list) > maxElements {
		n, err := t.stream(ctx, snap, list, common)
		if err != nil {
			return err
		}
		if n > 0 {
			list, common = list[n:], 0
		}
	}
	for common != 0 || len(list) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		x, n := t.state.begin(), 0
		x.setPlains(snap, common)
		x.dropStrays()
		for ; n < len(list) && x.elements < maxElements; n++ {
			t.plan(x, snap, list[n])
		}
		err := t.finish(x)
		var refused *errRejected
		switch {
		case err == nil:
			t.release(list[:n])
		case !errors.As(err, &refused):
			return err
		case !reread:
			reread = true
			if _, err := t.read(snap); err != nil {
				return err
			}
			t.gen = 0 // what else is wrong with the table is for Verify to find
			if t.state == nil {
				return fmt.Errorf("table %s was changed by another program: %w", Table, refused)
			}
			continue
		default:
			if err := t.isolate(snap, list[:n], common); err != nil {
				return err
			}
		}
		list, common = list[n:], 0
	}
	return nil
}

// stream writes as write does, but plans a transaction while the kernel does the one before. It returns how many units were
// written; if that is not all of them, the kernel has refused something, the table was read again, and the rest is for write.
func (t *Target) stream(ctx context.Context, snap *model.Snapshot, list []*unit, common part) (written int, err error) {
	type answer struct {
		err             error
		units, elements int
	}
	pending, planned := make(chan answer, 1), 0
	busy := false
	settle := func() error {
		if !busy {
			return nil
		}
		busy = false
		a := <-pending
		if a.err != nil {
			t.stats.Refused++
			return a.err
		}
		if a.elements > 0 {
			t.count(a.elements)
		}
		t.release(list[written : written+a.units])
		written += a.units
		return nil
	}
	for planned < len(list) && err == nil && ctx.Err() == nil {
		x, n := t.state.begin(), 0
		x.setPlains(snap, common)
		x.dropStrays()
		for ; planned+n < len(list) && x.elements < maxElements; n++ {
			t.plan(x, snap, list[planned+n])
		}
		b := newBatch()
		x.encode(b)
		if err = settle(); err != nil {
			break
		}
		busy = true
		go func() {
			a := answer{units: n, elements: x.elements}
			if a.elements > 0 {
				a.err = t.conn.commit(b)
			}
			pending <- a
		}()
		merge(t.stale, x.flows)
		x.done()
		planned, common = planned+n, 0
	}
	if err == nil {
		err = settle()
	}
	var refused *errRejected
	switch {
	case err == nil:
		return written, ctx.Err()
	case !errors.As(err, &refused):
		return written, err
	}
	if _, err := t.read(snap); err != nil {
		return written, err
	}
	t.gen = 0 // what else is wrong with the table is for Verify to find
	if t.state == nil {
		return written, fmt.Errorf("table %s was changed by another program: %w", Table, refused)
	}
	return written, nil
}

// exclude takes out the Services of which it is known that they cannot be programmed.
func (t *Target) exclude(snap *model.Snapshot, list []*unit) []*unit {
	return slices.DeleteFunc(list, func(u *unit) bool {
		err := t.state.check(snap, u.service)
		if err != nil {
			t.quarantined[u.service] = &quarantine{u, err}
		}
		return err != nil
	})
}

// finish commits a transaction and keeps the books.
func (t *Target) finish(x *tx) error {
	if x.elements == 0 {
		x.done()
		return nil
	}
	b := newBatch()
	b.buf = append(t.scratch[:0], b.buf...)
	x.encode(b)
	err := t.commit(b, x.elements)
	if t.scratch = b.buf; cap(t.scratch) > 64<<10 {
		t.scratch = nil // most transactions are small
	}
	if err != nil {
		return err
	}
	merge(t.stale, x.flows)
	x.done()
	return nil
}

func (t *Target) release(list []*unit) {
	if len(t.quarantined) > 0 {
		for _, u := range list {
			delete(t.quarantined, u.service)
		}
	}
}

// isolate applies the units of a refused transaction in halves, until those that are at fault are alone.
func (t *Target) isolate(snap *model.Snapshot, list []*unit, common part) error {
	if common != 0 || len(t.state.strays) > 0 {
		x := t.state.begin()
		x.setPlains(snap, common)
		x.dropStrays()
		if err := t.finish(x); err != nil {
			return fmt.Errorf("apply nodes and pods: %w", err)
		}
	}
	if len(list) == 0 {
		return nil
	}
	x := t.state.begin()
	for _, u := range list {
		t.plan(x, snap, u)
	}
	err := t.finish(x)
	var refused *errRejected
	switch {
	case err == nil:
		t.release(list)
		return nil
	case !errors.As(err, &refused):
		return err
	case len(list) > 1:
		half := len(list) / 2
		if err := t.isolate(snap, list[:half], 0); err != nil {
			return err
		}
		return t.isolate(snap, list[half:], 0)
	case list[0].service == model.Name{}:
		return err
	}
	t.quarantined[list[0].service] = &quarantine{list[0], refused.cause}
	return nil
}

// collect removes ways that nothing leads to, if there are many.
func (t *Target) collect() error {
	used := make(map[wayOf]struct{})
	for n, g := range t.state.groups {
		for w := range t.state.ways {
			if w.f == n.f && int(w.n) == len(g.dests) && (w.affinity > 0) == (g.seats != nil) {
				used[w] = struct{}{}
			}
		}
	}
	x := t.state.begin()
	for w := range t.state.ways {
		if _, ok := used[w]; !ok {
			x.dropWay(w)
		}
	}
	if len(x.ways) <= idleWays {
		return nil
	}
	return t.finish(x)
}
