// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
)

// seeded is a source of randomness whose seed is printed when the test fails.
func seeded(t testing.TB) *rand.Rand {
	a, b := rand.Uint64(), rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d %d", a, b)
		}
	})
	return rand.New(rand.NewPCG(a, b))
}

// sameAsFresh fails the test if the kernel holds anything else than what a fresh start makes of the snapshot.
func sameAsFresh(t *testing.T, ns *linux.NetNS, snap *model.Snapshot, when string) {
	t.Helper()
	if got, want := dump(t, ns), fresh(t, snap); got != want {
		t.Fatalf("%s:\n%s", when, differenceOf(got, want))
	}
}

func differenceOf(got, want string) string {
	var b strings.Builder
	in := func(text string) map[string]bool {
		lines, under := make(map[string]bool), ""
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, " ") {
				under = strings.TrimSpace(line)
			}
			lines[under+" / "+strings.TrimSpace(line)] = true
		}
		return lines
	}
	g, w := in(got), in(want)
	for line := range g {
		if !w[line] {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	for line := range w {
		if !g[line] {
			fmt.Fprintf(&b, "+ %s\n", line)
		}
	}
	return b.String()
}

// Whatever happens between, the end is the same as if it had been so from the start: the table does not depend on history.
func TestRandomTransitionsEndAsAFreshStart(t *testing.T) {
	r := seeded(t)
	for round := range 6 {
		ns, w := newNS(t), newWorld(r)
		target := newTarget(t, ns)
		for step := range 25 {
			for range 1 + r.IntN(4) {
				w.change()
			}
			snap := w.Build()
			switch r.IntN(6) {
			case 0: // the process dies, the next one adopts
				target.Close()
				target = newTarget(t, ns)
			case 1: // it dies half-way
				target.Close()
				half(t, ns, snap, r)
				target = newTarget(t, ns)
			}
			apply(t, target, snap)
			if got, want := dump(t, ns), stateOf(snap); got != want {
				t.Fatalf("round %d step %d: %s", round, step, differenceOf(got, want))
			}
		}
		sameAsFresh(t, ns, w.Build(), fmt.Sprint("round ", round))
	}
}

// stateOf is the dump that a snapshot ought to give, worked out without a kernel.
func stateOf(snap *model.Snapshot) string {
	s := newState()
	x := s.begin()
	x.setPlains(snap, ofAll)
	us := make(units)
	for svc := range snap.Owners {
		us.service(snap, svc)
	}
	for _, u := range us.sorted() {
		x.plan(snap, u)
	}
	x.done()
	return s.String()
}

// half applies a snapshot and gives up after some of its Services, as a process that is killed between two transactions.
func half(t *testing.T, ns *linux.NetNS, snap *model.Snapshot, r *rand.Rand) {
	t.Helper()
	target := newTarget(t, ns)
	defer target.Close()
	if err := target.connect(); err != nil {
		t.Fatal(err)
	}
	if _, err := target.read(snap, nil); err != nil {
		t.Fatal(err)
	}
	if target.state == nil {
		return // nothing there yet
	}
	list := target.everything(snap)
	x := target.state.begin()
	x.dropStrays() // the first transaction does
	for _, i := range r.Perm(len(list))[:r.IntN(len(list))] {
		target.plan(x, snap, list[i])
	}
	if err := target.finish(x); err != nil {
		t.Fatal(err)
	}
}

// A start that finds the table as it should be writes nothing, and keeps the rules' handles.
func TestAdoptionWritesNothing(t *testing.T) {
	r := seeded(t)
	ns, w := newNS(t), newWorld(r)
	first := newTarget(t, ns)
	for range 40 {
		w.change()
		apply(t, first, w.Build())
	}
	first.Close()
	before := tool(t, ns, "-a", "list", "table", "inet", Table)
	second := newTarget(t, ns)
	apply(t, second, w.Build())
	if s := second.Stats(); s.Transactions != 0 || s.Elements != 0 {
		t.Errorf("adoption wrote: %+v", s)
	}
	if err := second.Verify(context.Background()); err != nil {
		t.Error(err)
	}
	if after := tool(t, ns, "-a", "list", "table", "inet", Table); after != before {
		t.Errorf("the ruleset changed: %s", differenceOf(after, before))
	}
	if s := second.Stats(); s.Transactions != 0 || s.Drift != 0 {
		t.Errorf("verification wrote: %+v", s)
	}
}

// One endpoint more or less touches a bounded number of elements, however many endpoints the Service has.
func TestOneEndpointWritesFewElements(t *testing.T) {
	ns := newNS(t)
	w, target := model.NewBuilder(model.Config{Self: "n1"}), newTarget(t, ns)
	spec := clusterIP(1, http)
	var eps [][2]netip.Addr
	for i := range 200 {
		eps = append(eps, podAddrs(1+i/100, 1+i%100))
	}
	w.SetService(spec)
	set := func(eps ...[2]netip.Addr) uint64 {
		setEndpoints(w, spec, 8080, eps...)
		before := target.Stats()
		apply(t, target, w.Build())
		after := target.Stats()
		if n := after.Transactions - before.Transactions; n != 1 {
			t.Errorf("%d transactions, want 1", n)
		}
		return after.Elements - before.Elements
	}
	apply(t, target, w.Build())
	set(eps[:100]...)
	for _, c := range []struct {
		what string
		eps  [][2]netip.Addr
		most uint64 // both families
	}{
		{"one more", eps[:101], 2 * 5},                // count: delete, add, its chain twice; endpoint
		{"one less, at the start", eps[1:101], 2 * 5}, // count: 2; hole: 2; last: 1
		{"one replaced", append(eps[2:101:101], eps[150]), 2 * 2},
	} {
		if n := set(c.eps...); n > c.most {
			t.Errorf("%s: %d elements written, want at most %d", c.what, n, c.most)
		}
		sameAsFresh(t, ns, w.Build(), c.what)
	}
}

// Without a change by anybody, Verify costs one question; a change of another table makes it look, and write nothing.
func TestVerifyOfAnUntouchedTableIsCheap(t *testing.T) {
	ns, w := newNS(t), newWorld(seeded(t))
	target := newTarget(t, ns)
	sent := 0
	verify := func() int {
		t.Helper()
		sent = 0
		if err := target.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
		return sent
	}
	apply(t, target, w.Build())
	target.conn.hook = func(sending []byte) error {
		if sending != nil {
			sent++
		}
		return nil
	}
	for range 20 {
		w.change()
		apply(t, target, w.Build())
		if n := verify(); n != 1 {
			t.Fatalf("%d questions, want 1", n)
		}
	}
	tool(t, ns, "add table inet other")
	if n := verify(); n < 10 {
		t.Errorf("after a change by another program: %d questions", n)
	}
	if n := verify(); n != 1 {
		t.Errorf("once more: %d questions, want 1", n)
	}
	if n := target.Stats().Drift; n != 0 {
		t.Errorf("drift counted %d times", n)
	}
}

func TestForeignChangesAreMended(t *testing.T) {
	w := newWorld(seeded(t))
	w.SetPod(model.Pod{Name: model.Name{Namespace: "a", Name: "b"}, Addrs: []netip.Addr{podAddrs(1, 1)[0]}})
	spec := clusterIP(1, http, sip)
	w.SetService(spec)
	setEndpoints(w.Builder, spec, 8080, podAddrs(1, 1), podAddrs(1, 2), podAddrs(2, 3))
	out := clusterIP(2, model.Port{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080})
	out.Affinity = time.Hour
	out.Exposure = &model.Exposure{LocalOnly: true, Balancers: []netip.Addr{addr("203.0.113.1"), addr("2001:db8::1")},
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}}
	w.SetService(out)
	setEndpoints(w.Builder, out, 8080, podAddrs(1, 1), podAddrs(1, 2), podAddrs(2, 3))
	snap := w.Build()
	want := fresh(t, snap)
	for _, script := range []string{
		"delete element inet fairlead services4 { 10.96.1.1 . tcp . 80 }",
		"delete element inet fairlead endpoints4 { 0:4000 . 0x1 }",
		"delete element inet fairlead endpoints6 { 0:8000 . 0x2 }",
		"add element inet fairlead endpoints4 { 0:4000 . 0x7 : 10.244.1.9 . 1 }",
		"add element inet fairlead endpoints4 { 77:4000 . 0x0 : 10.244.1.9 . 1 }",
		"add element inet fairlead services4 { 10.96.9.9 . tcp . 80 : 0:4010 }",
		"add element inet fairlead services4 { 10.96.9.9 . tcp . 80 : 0:1 }",
		"delete element inet fairlead services4 { 10.96.1.1 . tcp . 80 }; add element inet fairlead services4 { 10.96.1.1 . tcp . 80 : 0:4011 }",
		"add element inet fairlead nodeports4 { tcp . 80 : 0:4010 }",
		"add element inet fairlead vips4 { 10.96.9.9 }; add element inet fairlead vips6 { fd00:99::101 }",
		"delete element inet fairlead ways4 { 0:10 }",
		"delete element inet fairlead ways4 { 0:2 }",
		"delete element inet fairlead ends4 { 0:10 }",
		"flush chain inet fairlead pick4-3",
		"delete element inet fairlead ways4 { 0:10 }; delete element inet fairlead ends4 { 0:10 }; flush chain inet fairlead pick4-3; delete chain inet fairlead pick4-3",
		"add rule inet fairlead service4 accept",
		"flush chain inet fairlead refuse",
		"insert rule inet fairlead prerouting accept",
		"add table inet fairlead { flags dormant; }",
		"add chain inet fairlead filter-prerouting { policy drop; }",
		"add chain inet fairlead mine { type filter hook forward priority 0; policy drop; }",
		"delete element inet fairlead cluster4 { 10.244.2.0/24 }",
		"add element inet fairlead cluster4 { 10.9.0.0-10.9.0.5 }",
		"add element inet fairlead pods6 { fd00:9::/64 }",
		"add element inet fairlead ranges4 { 10.9.0.0/16 }",
		"flush set inet fairlead nodeports-not-at4",
		"flush set inet fairlead hairpin4",
		"add element inet fairlead dns4 { 10.96.0.11 . udp }",
		"flush map inet fairlead endpoints4",
		"flush map inet fairlead services6",
		// An exposed Service with affinity.
		"flush map inet fairlead inside4; flush map inet fairlead outside4",
		"add element inet fairlead inside4 { 9:4002 : 0:4010 }",
		"add element inet fairlead outside6 { 9:4002 : 0:4010 }",
		"flush set inet fairlead sources4",
		"add element inet fairlead sources4 { 9:4003 . 10.0.0.0/8, 9:4003 . 11.0.0.1-11.0.0.7 }",
		"flush map inet fairlead seats4",
		"flush map inet fairlead seated6",
		"add element inet fairlead seated4 { 9:4001 : 10.244.1.9 . 1 }; add element inet fairlead seats4 { 9:4000 . 0x0 : 9:4001 }",
		"delete table inet fairlead",
		"delete table inet fairlead; add table inet fairlead; add chain inet fairlead mine",
	} {
		t.Run(script, func(t *testing.T) {
			ns := newNS(t)
			target := newTarget(t, ns)
			apply(t, target, snap)
			tool(t, ns, script)
			if dump(t, ns) == want {
				t.Fatal("the dump does not show the damage")
			}
			if err := target.Verify(context.Background()); err != nil {
				t.Fatal(err)
			}
			if got := dump(t, ns); got != want {
				t.Errorf("not mended: %s", differenceOf(got, want))
			}
			if n := target.Stats().Drift; n != 1 {
				t.Errorf("drift counted %d times, want once", n)
			}
		})
	}
}

// A change that meets a table that somebody has touched gets through all the same.
func TestChangeMendsWhatStandsInItsWay(t *testing.T) {
	ns, w := newNS(t), newWorld(seeded(t))
	target, spec := newTarget(t, ns), clusterIP(1, http)
	w.SetService(spec)
	setEndpoints(w.Builder, spec, 8080, podAddrs(1, 1), podAddrs(1, 2))
	apply(t, target, w.Build())
	tool(t, ns, "flush map inet fairlead endpoints4; flush map inet fairlead services4; flush set inet fairlead vips4")
	setEndpoints(w.Builder, spec, 8080, podAddrs(1, 2))
	apply(t, target, w.Build())
	if e, _, err := Read(Options{NetNS: ns}, frontend{Addr: vipAddrs(1)[0], Protocol: model.TCP, Port: 80}); err != nil || len(e.Inside.Backends) != 1 {
		t.Errorf("after the change: %+v %v", e, err)
	}
	if err := target.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
	sameAsFresh(t, ns, w.Build(), "after verification")
}

// A table of another layout is replaced in one transaction.
func TestOldLayoutIsReplacedAtOnce(t *testing.T) {
	ns, w := newNS(t), newWorld(seeded(t))
	for range 50 {
		w.change()
	}
	tool(t, ns, `add table inet fairlead { comment "layout 000000000000"; }; add chain inet fairlead old { type nat hook prerouting priority 0; }`)
	target := newTarget(t, ns)
	apply(t, target, w.Build())
	if n := target.Stats().Transactions; n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
	sameAsFresh(t, ns, w.Build(), "after replacing")
}

// Of a table that is replaced, too, a Service that is left out is named.
func TestReplacingNamesWhatItLeavesOut(t *testing.T) {
	ns, b := newNS(t), model.NewBuilder(model.Config{Self: "n1"})
	crowded, other := clusterIP(1, http), clusterIP(2, http)
	crowded.Affinity = time.Minute
	var eps [][2]netip.Addr
	for i := range maxSeats + 1 {
		eps = append(eps, [2]netip.Addr{addr("10.%d.%d.%d", 200+i>>14, i>>7&127, i&127+1), addr("fd00:244::%x", i+1)})
	}
	b.SetService(crowded)
	setEndpoints(b, crowded, 8080, eps...)
	b.SetService(other)
	setEndpoints(b, other, 8080, podAddrs(1, 1))
	tool(t, ns, `add table inet fairlead { comment "layout 000000000000"; }`)
	target := newTarget(t, ns)
	var q *QuarantineError
	if err := target.Apply(context.Background(), b.Build()); !errors.As(err, &q) || len(q.Services) != 1 || q.Services[0].Service != crowded.Name {
		t.Fatalf("%v, want one that names %s", err, crowded.Name)
	}
	if n := target.Stats().Transactions; n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
	if got := dump(t, ns); strings.Count(got, "service 10.96.") != 1 {
		t.Errorf("want the other Service alone, have:\n%s", got)
	}
	b.SetService(clusterIP(1, http))
	apply(t, target, b.Build())
	sameAsFresh(t, ns, b.Build(), "without affinity")
}

func TestOneBadServiceHarmsOnlyItself(t *testing.T) {
	ns, b := newNS(t), model.NewBuilder(model.Config{Self: "n1"})
	const many = 600
	for i := range many {
		spec := clusterIP(i, http)
		b.SetService(spec)
		setEndpoints(b, spec, 8080, podAddrs(1, 1+i%200))
	}
	target := newTarget(t, ns)
	bad := map[model.Name]bool{clusterIP(17).Name: true, clusterIP(333).Name: true}
	target.poison = func(n model.Name) bool { return bad[n] }
	for round, whole := range []string{"at the start", "again"} {
		err := target.Apply(context.Background(), b.Build())
		var q *QuarantineError
		if !errors.As(err, &q) || len(q.Services) != 2 || !bad[q.Services[0].Service] || !bad[q.Services[1].Service] {
			t.Fatalf("%s: %v", whole, err)
		}
		if !strings.Contains(err.Error(), "default/s00017, default/s00333") {
			t.Errorf("the error does not name them: %v", err)
		}
		if got := strings.Count(dump(t, ns), "service 10.96."); got != many-2 {
			t.Errorf("%s: %d services in the kernel, want %d", whole, got, many-2)
		}
		if refused := target.Stats().Refused; round == 1 && refused > 40 {
			t.Errorf("%d refused transactions", refused)
		}
	}
	// Others go on changing, and it costs no more refusals.
	refused := target.Stats().Refused
	setEndpoints(b, clusterIP(5, http), 8080, podAddrs(2, 9))
	if err := target.Apply(context.Background(), b.Build()); err == nil || len(target.Quarantined()) != 2 {
		t.Errorf("quarantine forgotten: %v", err)
	}
	if got := target.Stats().Refused; got != refused {
		t.Errorf("a change of another Service was refused %d times", got-refused)
	}
	// One is mended by a change of it, the other because the kernel takes it now.
	delete(bad, clusterIP(17).Name)
	setEndpoints(b, clusterIP(17, http), 8080, podAddrs(2, 10))
	if err := target.Apply(context.Background(), b.Build()); err == nil || len(target.Quarantined()) != 1 {
		t.Errorf("after the change: %v", err)
	}
	clear(bad)
	apply(t, target, b.Build())
	if q := target.Quarantined(); len(q) != 0 {
		t.Errorf("still quarantined: %v", q)
	}
	sameAsFresh(t, ns, b.Build(), "at the end")
}

// While thousands are written, one plans ahead of the kernel's answer; a refusal must not confuse that.
func TestBadServicesAmongThousands(t *testing.T) {
	ns, b := newNS(t), manyServices(9000, 1)
	bad := map[model.Name]bool{clusterIP(3).Name: true, clusterIP(4444).Name: true, clusterIP(8999).Name: true}
	target := newTarget(t, ns)
	target.poison = func(n model.Name) bool { return bad[n] }
	var q *QuarantineError
	if err := target.Apply(context.Background(), b.Build()); !errors.As(err, &q) || len(q.Services) != len(bad) {
		t.Fatalf("%v", err)
	}
	if got := strings.Count(dump(t, ns), "service 10.96."); got != 9000-len(bad) {
		t.Errorf("%d services in the kernel, want %d", got, 9000-len(bad))
	}
	clear(bad)
	apply(t, target, b.Build())
	if got := dump(t, ns); got != stateOf(b.Build()) {
		t.Error("after mending, the dump is not what it should be")
	}
	change := func(shift int) {
		for i := range 9000 {
			setMany(b, i, 1, shift)
		}
	}
	// One that is good again leaves quarantine, also among thousands that change.
	bad[clusterIP(17).Name] = true
	setMany(b, 17, 1, 1)
	if err := target.Apply(context.Background(), b.Build()); !errors.As(err, &q) || len(q.Services) != 1 {
		t.Fatalf("%v", err)
	}
	clear(bad)
	change(2)
	apply(t, target, b.Build())
	// A refusal that does not come again, as when another program was in the way, is nobody's fault: what was planned meanwhile is still to be written.
	bad[clusterIP(1).Name] = true
	target.poison = func(n model.Name) bool { was := bad[n]; delete(bad, n); return was }
	change(3)
	apply(t, target, b.Build())
	if got := dump(t, ns); got != stateOf(b.Build()) {
		t.Error("after a refusal that did not come again, the dump is not what it should be")
	}
	// One that ends in the middle leaves a table from which the next goes on.
	ctx, cancel := context.WithCancel(context.Background())
	other, sent := newTarget(t, newNS(t)), 0
	if err := other.connect(); err != nil {
		t.Fatal(err)
	}
	other.conn.hook = func(sending []byte) error {
		if len(sending) > 100_000 { // a transaction of elements
			if sent++; sent == 2 {
				cancel()
			}
		}
		return nil
	}
	if err := other.Apply(ctx, b.Build()); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	other.conn.hook = nil
	apply(t, other, b.Build())
	if got, err := Dump(Options{NetNS: other.options.NetNS}); err != nil || got != stateOf(b.Build()) {
		t.Errorf("after a cancelled start, the dump is not what it should be: %v", err)
	}
}

// An old version of a Service that the kernel refuses stays as it was, and goes when the Service goes.
func TestQuarantinedServiceKeepsItsOldEndpoints(t *testing.T) {
	ns, b := newNS(t), model.NewBuilder(model.Config{Self: "n1"})
	spec := clusterIP(1, http)
	b.SetService(spec)
	setEndpoints(b, spec, 8080, podAddrs(1, 1))
	target := newTarget(t, ns)
	apply(t, target, b.Build())
	before := dump(t, ns)
	poisoned := true
	target.poison = func(n model.Name) bool { return poisoned }
	b.SetService(clusterIP(1, http, sip))
	setEndpoints(b, clusterIP(1, sip), 9090, podAddrs(1, 2))
	if err := target.Apply(context.Background(), b.Build()); err == nil {
		t.Fatal("not refused")
	}
	if got := dump(t, ns); got != before {
		t.Errorf("the refused change left something: %s", differenceOf(got, before))
	}
	poisoned = false
	b.DeleteService(spec.Name)
	apply(t, target, b.Build())
	sameAsFresh(t, ns, b.Build(), "after deletion")
}

// What a quarantined Service has is all kept, also where it is not to have that any more: a group that another policy leaves, a port.
func TestQuarantinedServiceKeepsWhatItLeaves(t *testing.T) {
	local := clusterIP(1, model.Port{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080}, sip)
	local.Exposure = &model.Exposure{LocalOnly: true}
	everywhere := clusterIP(1, model.Port{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080})
	everywhere.Exposure = &model.Exposure{}
	here := func(e *model.Endpoint) {
		e.Node = "n2"
		if e.Addr == podAddrs(1, 1)[0] || e.Addr == podAddrs(1, 1)[1] {
			e.Node = "n1"
		}
	}
	ns, b := newNS(t), model.NewBuilder(model.Config{Self: "n1"})
	b.SetService(local)
	setEndpointsAs(b, local, 8080, here, podAddrs(1, 1), podAddrs(2, 1))
	target := newTarget(t, ns)
	apply(t, target, b.Build())
	before := dump(t, ns)
	target.poison = func(n model.Name) bool { return true }
	for i := range 20 {
		everywhere.Affinity = time.Duration(i%2) * time.Hour
		b.SetService(everywhere)
		if err := target.Apply(context.Background(), b.Build()); err == nil {
			t.Fatal("not refused")
		}
		if got := dump(t, ns); got != before {
			t.Fatalf("the refused change left something: %s", differenceOf(got, before))
		}
	}
	if u := target.quarantined[local.Name].unit; len(u.fronts) > 6 || len(u.vips) > 2 {
		t.Errorf("what is to be looked at grows with each change: %d frontends, %d addresses", len(u.fronts), len(u.vips))
	}
	target.poison = nil
	apply(t, target, b.Build())
	sameAsFresh(t, ns, b.Build(), "when it is not refused any more")
}

// An operator's tool must be able to show the table, and to save and restore it.
func TestToolPrintsAndReadsTheTable(t *testing.T) {
	ns, w := newNS(t), newWorld(seeded(t))
	for range 60 {
		w.change()
	}
	tool(t, ns, "list", "ruleset")
	w.SetService(clusterIP(1, http, sip))
	setEndpoints(w.Builder, clusterIP(1, http, sip), 8080, podAddrs(1, 1), podAddrs(1, 2))
	w.SetPod(hostPod(1, netip.Addr{}, 8080))
	w.SetPod(hostPod(2, addr("172.30.0.11"), 8080))
	w.SetPod(hostPod(3, addr("fd00:30::11"), 8080))
	apply(t, newTarget(t, ns), w.Build())
	before, text := dump(t, ns), tool(t, ns, "list", "ruleset")
	tool(t, ns, "flush ruleset")
	tool(t, ns, text)
	if after := dump(t, ns); after != before {
		t.Errorf("restored: %s", differenceOf(after, before))
	}
	target := newTarget(t, ns)
	apply(t, target, w.Build())
	if n := target.Stats().Transactions; n != 0 {
		t.Errorf("%d transactions after restoring", n)
	}
}

func TestCleanup(t *testing.T) {
	ns, w := newNS(t), newWorld(seeded(t))
	other := "table inet other {\n}\n"
	tool(t, ns, "add table inet other")
	if err := Cleanup(Options{NetNS: ns}); err != nil {
		t.Errorf("with nothing there: %v", err)
	}
	if got := dump(t, ns); got != "no table\n" {
		t.Errorf("dump says %q", got)
	}
	apply(t, newTarget(t, ns), w.Build())
	if err := Cleanup(Options{NetNS: ns}); err != nil {
		t.Error(err)
	}
	if left := tool(t, ns, "list", "ruleset"); left != other {
		t.Errorf("left behind:\n%s", left)
	}
}

func TestReadAsksForOneEntry(t *testing.T) {
	ns, b := newNS(t), model.NewBuilder(model.Config{Self: "n1"})
	spec := clusterIP(1, http, sip)
	b.SetService(spec)
	setEndpoints(b, spec, 8080, podAddrs(2, 3), podAddrs(1, 2))
	vip := netip.AddrPortFrom(vipAddrs(1)[0], 80)
	read := func(vip netip.AddrPort, p model.Protocol) string {
		t.Helper()
		e, ok, err := Read(Options{NetNS: ns}, frontend{Addr: vip.Addr(), Protocol: p, Port: vip.Port()})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(e.Inside.Backends, ok)
	}
	if got := read(vip, model.TCP); got != "[] false" {
		t.Errorf("without a table: %s", got)
	}
	apply(t, newTarget(t, ns), b.Build())
	for _, c := range []struct {
		vip   netip.AddrPort
		proto model.Protocol
		want  string
	}{
		{vip, model.TCP, "[10.244.1.2:8080 10.244.2.3:8080] true"},
		{vip, model.UDP, "[] false"},
		{netip.AddrPortFrom(vip.Addr(), 5060), model.UDP, "[10.244.1.2:8081 10.244.2.3:8081] true"},
		{netip.AddrPortFrom(vipAddrs(1)[1], 80), model.TCP, "[[fd00:244:0:1::2]:8080 [fd00:244:0:2::3]:8080] true"},
		{netip.AddrPortFrom(vipAddrs(2)[0], 80), model.TCP, "[] false"},
	} {
		if got := read(c.vip, c.proto); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.proto, c.vip, got, c.want)
		}
	}
}

// Ten thousand endpoints are one Service, and so one transaction.
func TestHugeServiceIsOneTransaction(t *testing.T) {
	ns, b := newNS(t), model.NewBuilder(model.Config{Self: "n1"})
	target := newTarget(t, ns)
	apply(t, target, b.Build())
	spec := clusterIP(1, http)
	b.SetService(spec)
	var eps [][2]netip.Addr
	for i := range 10000 {
		eps = append(eps, [2]netip.Addr{addr("10.%d.%d.%d", 200+i>>14, i>>7&127, i&127+1), addr("fd00:244::%x", i+1)})
	}
	setEndpoints(b, spec, 8080, eps...)
	before := target.Stats().Transactions
	apply(t, target, b.Build())
	if n := target.Stats().Transactions - before; n != 1 {
		t.Errorf("%d transactions, want 1", n)
	}
	if s := target.Stats(); s.Endpoints != 20000 {
		t.Errorf("%d endpoints in the kernel, want 20000", s.Endpoints)
	}
	if got := dump(t, ns); got != stateOf(b.Build()) {
		t.Error("the dump is not what it should be")
	}
}

func TestLoadAndAdoptManyServices(t *testing.T) {
	ns, snap := newNS(t), manyServices(5000, 10).Build()
	first := newTarget(t, ns)
	apply(t, first, snap)
	if s := first.Stats(); s.Services != 5000 || s.Endpoints != 50000 || s.Refused != 0 {
		t.Errorf("loaded %+v", s)
	}
	first.Close()
	second := newTarget(t, ns)
	apply(t, second, snap)
	if s := second.Stats(); s.Transactions != 0 || s.Endpoints != 50000 {
		t.Errorf("adopted %+v", s)
	}
	if got := dump(t, ns); got != stateOf(snap) {
		t.Error("the dump is not what it should be")
	}
	// A table of another layout, as large as this, is still replaced at once.
	tool(t, ns, "add chain inet fairlead spoiled; flush chain inet fairlead refuse")
	third := newTarget(t, ns)
	apply(t, third, snap)
	if n := third.Stats().Transactions; n != 1 {
		t.Errorf("replaced in %d transactions, want 1", n)
	}
}

// manyServices are v4 Services with one TCP port each.
func manyServices(services, endpoints int) *model.Builder {
	b := model.NewBuilder(model.Config{Self: "n1", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	b.SetNode(node(1))
	for i := range services {
		setMany(b, i, endpoints, 0)
	}
	return b
}

// setMany makes Service i; shift moves its first endpoint.
func setMany(b *model.Builder, i, endpoints, shift int) {
	spec := clusterIP(i, http)
	spec.ClusterIPs = spec.ClusterIPs[:1]
	b.SetService(spec)
	sl := model.Slice{Name: spec.Name, Service: spec.Name.Name, Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}}}
	for j := range endpoints {
		n := i*endpoints + j
		if j == 0 {
			n += shift << 18
		}
		sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: addr("10.%d.%d.%d", 128+n>>16, n>>8&255, n&255), Ready: true, Serving: true})
	}
	b.SetSlice(sl)
}

// What nobody owns goes also when a Service is refused at the same time, and its number, which is free, harms nobody.
func TestStraysGoThoughAServiceIsRefused(t *testing.T) {
	ns := newNS(t)
	b := model.NewBuilder(model.Config{Self: "n1", DNS: dnsAddrs})
	set := func(i int) {
		spec := clusterIP(i, http, sip)
		spec.Affinity = time.Duration(i%2) * time.Hour
		b.SetService(spec)
		setEndpoints(b, spec, 8080, podAddrs(1, i), podAddrs(2, i))
	}
	for i := range 6 {
		set(i)
	}
	first := newTarget(t, ns)
	apply(t, first, b.Build())
	first.Close()
	for i := range 3 { // gone while nobody looked
		b.DeleteService(clusterIP(i).Name)
	}
	for i := 10; i < 16; i++ {
		set(i)
	}
	target := newTarget(t, ns)
	bad := clusterIP(12).Name
	target.poison = func(n model.Name) bool { return n == bad }
	var quarantine *QuarantineError
	if err := target.Apply(context.Background(), b.Build()); !errors.As(err, &quarantine) || len(quarantine.Services) != 1 || quarantine.Services[0].Service != bad {
		t.Fatalf("%v, want %s and nobody else in quarantine", err, bad)
	}
	if text := dump(t, ns); strings.Contains(text, "stray") {
		t.Errorf("left over:\n%s", text)
	}
	target.poison = nil
	apply(t, target, b.Build())
	sameAsFresh(t, ns, b.Build(), "at the end")
}
