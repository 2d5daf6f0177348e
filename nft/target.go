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
	// idlePicks is how many unused pick chains may stay: a Service that scales to and fro would otherwise make and remove
	// them all the time.
	idlePicks = 32
)

// Options say where the table is and who is told.
type Options struct {
	// Logger gets a line when the table is made, adopted or found changed by somebody else; nil: nobody is told.
	Logger *slog.Logger
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
	// Services and Endpoints in the kernel now: frontends (address, protocol, port) that lead somewhere, and where they lead.
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
		s.Services = len(t.state.ports)
		for _, e := range t.state.ports {
			s.Endpoints += len(e.dests)
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
		err = errors.Join(t.cleanFlows(), t.answerHere(snap))
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
func (us units) service(svc *model.Service) {
	if svc == nil || svc.Type != model.ClusterIP {
		return
	}
	u := us.of(svc.Name)
	u.vips = append(u.vips, svc.ClusterIPs...)
	for _, a := range svc.ClusterIPs {
		for _, p := range svc.Ports {
			u.fronts = append(u.fronts, frontend{netip.AddrPortFrom(a, p.Port), p.Protocol})
		}
	}
}

// sorted puts them in an order of their own, so that two runs write the same.
func (us units) sorted() []*unit {
	return slices.SortedFunc(maps.Values(us), func(a, b *unit) int { return a.service.Compare(b.service) })
}

// changes are the Services that two snapshots differ in. An address that goes from one Service to another concerns both.
func changes(from, to *model.Snapshot) units {
	us := make(units)
	if from.Services != to.Services {
		for _, c := range model.Diff(from.Services, to.Services) {
			us.service(c.Old)
			us.service(c.New)
		}
	}
	if from.VIPs == to.VIPs {
		return us
	}
	for _, c := range model.Diff(from.VIPs, to.VIPs) {
		for _, side := range []struct {
			snap *model.Snapshot
			name model.Name
		}{{from, c.Old}, {to, c.New}} {
			if svc, ok := side.snap.Services.Get(side.name); ok {
				us.service(svc)
			}
		}
	}
	return us
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
			u.fronts = append(u.fronts, q.unit.fronts...)
			u.vips = append(u.vips, q.unit.vips...)
		}
	}
	var common part
	if differ(t.last.Nodes, snap.Nodes) || t.last.Self != snap.Self {
		common |= ofNodes
	}
	if differ(t.last.Pods, snap.Pods) {
		common |= ofPods
	}
	if len(us) > 0 || !slices.Equal(t.last.DNS, snap.DNS) {
		common |= ofDNS
	}
	return t.write(ctx, snap, us.sorted(), common)
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
	known := make(map[frontend]struct{}, len(t.state.ports))
	for _, svc := range snap.Services.All() {
		us.service(svc)
		if u := us[svc.Name]; u != nil {
			for _, k := range u.fronts {
				known[k] = struct{}{}
			}
		}
	}
	strangers := &unit{}
	for k := range t.state.ports {
		if _, ok := known[k]; !ok {
			strangers.fronts = append(strangers.fronts, k)
		}
	}
	for a := range t.state.vips {
		if _, ok := snap.VIPs.Get(a); !ok {
			strangers.vips = append(strangers.vips, a)
		}
	}
	slices.SortFunc(strangers.fronts, compareFrontends)
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
	shape, err := t.read()
	if err != nil {
		return err
	}
	t.everyStale = true
	if t.state == nil {
		t.state = newState()
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
		t.options.Logger.Info("adopting the table", "table", Table, "services", len(t.state.ports))
	}
	if err := t.write(ctx, snap, t.everything(snap), ofAll); err != nil {
		return err
	}
	return t.collect()
}

// read learns the state; it stays nil if the table is not sound.
func (t *Target) read() (sh *shape, err error) {
	t.state = nil
	t.gen, err = t.conn.settled(func() error {
		if sh, err = t.conn.readShape(); err != nil || !sh.sound() {
			return err
		}
		t.state, err = t.conn.readState(sh)
		return err
	})
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
	for _, s := range old.vips {
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

// commit sends a transaction and counts it.
func (t *Target) commit(b *batch, elements int) error {
	err := t.conn.commit(b)
	if err != nil {
		t.stats.Refused++
		return err
	}
	t.stats.Transactions++
	t.stats.Elements += uint64(elements)
	if t.gen != 0 {
		t.gen = max(t.gen+1, 1)
	}
	return nil
}

// plan puts a Service into a transaction.
func (t *Target) plan(x *tx, snap *model.Snapshot, u *unit) {
	for _, a := range u.vips {
		x.setVIP(snap, a)
	}
	for _, k := range u.fronts {
		x.setPort(snap, k)
	}
	if t.poison != nil && t.poison(u.service) {
		x.put(sets[vips][0], nil, nil)
	}
}

// write brings the units to the snapshot, in transactions of bounded size. When the kernel refuses one, the table is read again,
// in case somebody else has changed it; when that does not help, the Service at fault is found by halving.
func (t *Target) write(ctx context.Context, snap *model.Snapshot, list []*unit, common part) error {
	reread := false
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
			if _, err := t.read(); err != nil {
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

// finish commits a transaction and keeps the books.
func (t *Target) finish(x *tx) error {
	if x.empty() {
		return nil
	}
	b := newBatch()
	b.buf = append(t.scratch[:0], b.buf...)
	x.encode(b)
	err := t.commit(b, x.elements)
	if t.scratch = b.buf; cap(t.scratch) > sendBuffer {
		t.scratch = nil
	}
	if err != nil {
		return err
	}
	for k := range x.ports {
		if k.proto == model.UDP {
			t.stale[k] = struct{}{}
		}
	}
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
	if common != 0 {
		x := t.state.begin()
		x.setPlains(snap, common)
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

// collect removes pick chains that nothing leads to, if there are many.
func (t *Target) collect() error {
	used := make(map[pick]struct{})
	for k, e := range t.state.ports {
		used[pick{k.family(), int(e.n)}] = struct{}{}
	}
	x := t.state.begin()
	for p := range t.state.picks {
		if _, ok := used[p]; !ok {
			x.dropPick(p)
		}
	}
	if len(x.picks) <= idlePicks {
		return nil
	}
	return t.finish(x)
}
