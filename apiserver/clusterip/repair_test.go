// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// with is a Service that has addresses, made at that second.
func with(t testing.TB, name string, second int64, ips ...string) corev1.Service {
	s := service(t, name, `{"selector":{"a":"b"}}`)
	s.CreationTimestamp = metav1.Unix(second, 0)
	s.Spec.ClusterIPs = ips
	if len(ips) > 0 {
		s.Spec.ClusterIP = ips[0]
	}
	return *s
}

// found is what Repair said, one finding a line.
func found(findings []Finding) string {
	var lines []string
	for _, f := range findings {
		lines = append(lines, f.String())
	}
	return strings.Join(lines, "\n")
}

func TestRepair(t *testing.T) {
	type locks map[string]string // address → Service it is for
	rows := []struct {
		name     string
		services []corev1.Service
		locks    locks
		young    bool // the locks are younger than the grace
		want     string
		after    string
	}{
		{"nothing", nil, nil, false, "", ""},
		{"all is well", []corev1.Service{with(t, "a/x", 1, "10.96.0.5", "fd00:96::5"), with(t, "a/h", 1, "None")}, locks{"10.96.0.5": "a/x", "fd00:96::5": "a/x"}, false,
			"", "10.96.0.5=a/x fd00:96::5=a/x"},
		{"missing", []corev1.Service{with(t, "a/x", 1, "10.96.0.5", "fd00:96::5")}, locks{"10.96.0.5": "a/x"}, false,
			"missing fd00:96::5 a/x", "10.96.0.5=a/x fd00:96::5=a/x"},
		{"orphaned", nil, locks{"10.96.0.5": "a/x"}, false, "orphaned 10.96.0.5", ""},
		{"orphaned, but young", nil, locks{"10.96.0.5": "a/x"}, true, "", "10.96.0.5=a/x"},
		{"orphaned by a new address", []corev1.Service{with(t, "a/x", 1, "10.96.0.6")}, locks{"10.96.0.5": "a/x", "10.96.0.6": "a/x"}, false,
			"orphaned 10.96.0.5", "10.96.0.6=a/x"},
		{"orphaned by a change of type", []corev1.Service{external1(t, "a/x")}, locks{"10.96.0.5": "a/x"}, false, "orphaned 10.96.0.5", ""},
		{"misowned", []corev1.Service{with(t, "a/x", 1, "10.96.0.5")}, locks{"10.96.0.5": "a/gone"}, false,
			"misowned 10.96.0.5 a/x", "10.96.0.5=a/x"},
		{"misowned, but young", []corev1.Service{with(t, "a/x", 1, "10.96.0.5")}, locks{"10.96.0.5": "a/gone"}, true, "", "10.96.0.5=a/gone"},
		{"conflict, one owns it", []corev1.Service{with(t, "a/old", 1, "10.96.0.5"), with(t, "a/new", 2, "10.96.0.5")}, locks{"10.96.0.5": "a/new"}, false,
			"conflict 10.96.0.5 a/old a/new", "10.96.0.5=a/new"},
		{"conflict, nobody owns it", []corev1.Service{with(t, "a/new", 2, "10.96.0.5"), with(t, "a/old", 1, "10.96.0.5")}, nil, false,
			"conflict 10.96.0.5 a/old a/new\nmissing 10.96.0.5 a/old a/new", "10.96.0.5=a/old"},
		{"out of range", []corev1.Service{with(t, "a/x", 1, "10.97.0.5")}, locks{"10.97.0.5": "a/x"}, false,
			"out of range 10.97.0.5 a/x", "10.97.0.5=a/x"},
		{"out of range and missing", []corev1.Service{with(t, "a/x", 1, "10.97.0.5")}, nil, false,
			"out of range 10.97.0.5 a/x\nmissing 10.97.0.5 a/x", "10.97.0.5=a/x"},
		{"an address that cannot be read", []corev1.Service{with(t, "a/x", 1, "bogus")}, nil, false, "", ""},
		{"in order", nil, locks{"10.96.0.10": "a/x", "10.96.0.9": "a/y", "fd00:96::1": "a/x"}, false,
			"orphaned 10.96.0.9\norphaned 10.96.0.10\norphaned fd00:96::1", ""},
	}
	for _, row := range rows {
		for _, lookup := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/lookup=%t", row.name, lookup), func(t *testing.T) {
				ctx := context.Background()
				m := newMemory()
				a := newAllocator(t, m, both46...)
				if lookup {
					a.Lookup = lookupIn(func() []corev1.Service { return row.services })
				}
				for ip, owner := range row.locks {
					if err := m.Create(ctx, lock(netip.MustParseAddr(ip), service(t, owner, `{}`))); err != nil {
						t.Fatal(err)
					}
				}
				if !row.young {
					m.age(2 * DefaultGrace)
				}
				findings, err := a.Repair(ctx, row.services)
				if err != nil {
					t.Fatal(err)
				}
				if got := found(findings); got != row.want {
					t.Errorf("found:\n%s\nwant:\n%s", got, row.want)
				}
				if got := m.String(); got != row.after {
					t.Errorf("after: %s, want %s", got, row.after)
				}
				// What is mended is not found again.
				again, err := a.Repair(ctx, row.services)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range again {
					if f.Mended() {
						t.Errorf("found again: %s", f)
					}
				}
			})
		}
	}
}

func external1(t testing.TB, name string) corev1.Service {
	s := service(t, name, `{"type":"ExternalName","externalName":"a.example"}`)
	return *s
}

// lookupIn reads Services of a list.
func lookupIn(list func() []corev1.Service) func(context.Context, string, string) (*corev1.Service, error) {
	return func(_ context.Context, namespace, name string) (*corev1.Service, error) {
		for _, s := range list() {
			if s.Namespace == namespace && s.Name == name {
				return s.DeepCopy(), nil
			}
		}
		return nil, apierrors.NewNotFound(corev1.Resource("services"), name)
	}
}

// TestRepairOfStaleList: what changed after the Services were read is seen by
// looking them up.
func TestRepairOfStaleList(t *testing.T) {
	ctx := context.Background()
	t.Run("created since", func(t *testing.T) {
		m := newMemory()
		a := newAllocator(t, m, only4...)
		s := with(t, "a/x", 1, "10.96.0.5")
		a.Lookup = lookupIn(func() []corev1.Service { return []corev1.Service{s} })
		if err := m.Create(ctx, lock(netip.MustParseAddr("10.96.0.5"), &s)); err != nil {
			t.Fatal(err)
		}
		m.age(2 * DefaultGrace)
		if findings, err := a.Repair(ctx, nil); err != nil || len(findings) > 0 || m.String() != "10.96.0.5=a/x" {
			t.Errorf("found %v (%v), left %s", findings, err, m)
		}
	})
	t.Run("deleted since", func(t *testing.T) {
		m := newMemory()
		a := newAllocator(t, m, only4...)
		a.Lookup = lookupIn(func() []corev1.Service { return nil })
		if findings, err := a.Repair(ctx, []corev1.Service{with(t, "a/x", 1, "10.96.0.5")}); err != nil || len(findings) > 0 || m.String() != "" {
			t.Errorf("found %v (%v), left %s", findings, err, m)
		}
	})
	t.Run("deleted since, lock of another", func(t *testing.T) {
		m := newMemory()
		a := newAllocator(t, m, only4...)
		a.Lookup = lookupIn(func() []corev1.Service { return nil })
		if err := m.Create(ctx, lock(netip.MustParseAddr("10.96.0.5"), service(t, "a/gone", `{}`))); err != nil {
			t.Fatal(err)
		}
		m.age(2 * DefaultGrace)
		if findings, err := a.Repair(ctx, []corev1.Service{with(t, "a/x", 1, "10.96.0.5")}); err != nil || !strings.HasPrefix(found(findings), "orphaned 10.96.0.5") || m.String() != "" {
			t.Errorf("found %v (%v), left %s", findings, err, m)
		}
	})
}

// TestRepairLeavesOthersAlone: an IPAddress without our label is not ours,
// even where we would want it.
func TestRepairLeavesOthersAlone(t *testing.T) {
	ctx := context.Background()
	m := newMemory()
	a := newAllocator(t, m, only4...)
	for _, ip := range []string{"10.96.0.5", "10.96.0.6"} {
		l := lock(netip.MustParseAddr(ip), service(t, "a/x", `{}`))
		l.Labels = nil
		if err := m.Create(ctx, l); err != nil {
			t.Fatal(err)
		}
	}
	m.age(2 * DefaultGrace)
	findings, err := a.Repair(ctx, []corev1.Service{with(t, "a/x", 1, "10.96.0.5")})
	want := "repair address 10.96.0.5: service a/x has it, but somebody else made an IPAddress of that name"
	if err == nil || err.Error() != want || len(findings) > 0 {
		t.Errorf("found %v, error %v", findings, err)
	}
	if got, want := m.String(), "10.96.0.5=a/x 10.96.0.6=a/x"; got != want {
		t.Errorf("left %s, want %s", got, want)
	}
}

// TestRepairGoesOn: one address that cannot be mended does not keep the
// others from it.
func TestRepairGoesOn(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, only4...)
	boom := errors.New("boom")
	m.fail = func(verb, name string) error {
		if name == "10.96.0.5" {
			return boom
		}
		return nil
	}
	services := []corev1.Service{with(t, "a/x", 1, "10.96.0.5"), with(t, "a/y", 1, "10.96.0.6")}
	findings, err := a.Repair(context.Background(), services)
	if !errors.Is(err, boom) || err.Error() != "repair address 10.96.0.5: boom" {
		t.Errorf("got %v", err)
	}
	if got := found(findings); got != "missing 10.96.0.6 a/y" || m.String() != "10.96.0.6=a/y" {
		t.Errorf("found %s, left %s", got, m)
	}
	m.fail = func(string, string) error { return boom }
	if _, err := a.Repair(context.Background(), nil); err == nil || err.Error() != "list addresses: boom" {
		t.Errorf("got %v", err)
	}
}

// world is an API server that may die between any two writes.
type world struct {
	t        *testing.T
	random   *rand.Rand
	m        *memory
	a        *Allocator
	services map[string]*corev1.Service // what is stored
	made     int
}

// TestCrashes: whatever is done and wherever it is interrupted, no two stored
// Services ever have one address, and a Repair later the locks are exactly
// those of the stored Services.
func TestCrashes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for run := range uint64(20) {
		w := &world{t: t, random: rand.New(rand.NewPCG(seed, run)), m: newMemory(), services: map[string]*corev1.Service{}}
		a, err := New(w.m, prefixes("10.96.0.0/27", "fd00:96::/122")...)
		if err != nil {
			t.Fatal(err)
		}
		a.random = w.random.Uint64N
		a.Lookup = lookupIn(w.list)
		w.a = a
		for range 300 {
			switch w.random.IntN(8) {
			case 0, 1, 2:
				w.create()
			case 3, 4:
				w.update()
			case 5:
				w.remove()
			case 6:
				w.m.age(a.Grace / 3)
			case 7:
				w.repair()
			}
			w.check()
		}
		w.m.age(2 * a.Grace)
		w.repair()
		w.check()
		want := map[netip.Addr]bool{}
		for _, s := range w.services {
			for _, addr := range held(s) {
				want[addr] = true
			}
		}
		if len(w.m.objects) != len(want) {
			t.Fatalf("run %d: locks %s, want those of %v", run, w.m, want)
		}
	}
}

func (w *world) list() (list []corev1.Service) {
	for _, s := range w.services {
		list = append(list, *s)
	}
	slices.SortFunc(list, func(a, b corev1.Service) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// pick is a stored Service.
func (w *world) pick() *corev1.Service {
	list := w.list()
	if len(list) == 0 {
		return nil
	}
	return &list[w.random.IntN(len(list))]
}

func (w *world) spec() string {
	return []string{
		`{}`, `{"ipFamilyPolicy":"PreferDualStack"}`, `{"ipFamilies":["IPv6"]}`, `{"clusterIP":"None"}`,
		`{"type":"ExternalName","externalName":"a.example"}`,
		fmt.Sprintf(`{"clusterIP":"10.96.0.%d"}`, w.random.IntN(34)),
		fmt.Sprintf(`{"clusterIP":"fd00:96::%x","ipFamilyPolicy":"RequireDualStack"}`, w.random.IntN(70)),
	}[w.random.IntN(7)]
}

func (w *world) create() {
	name := fmt.Sprintf("s%d", w.random.IntN(30))
	s := service(w.t, "shop/"+name, w.spec())
	w.made++
	s.UID = types.UID(fmt.Sprint(w.made))
	release, err := w.a.Allocate(context.Background(), s, w.random.IntN(10) == 0)
	if err != nil {
		return
	}
	if !w.locked(s) {
		return // a dry run
	}
	if w.services[name] != nil || w.random.IntN(5) == 0 {
		w.maybe(release) // the write failed
		return
	}
	w.services[name] = s
	if w.random.IntN(10) == 0 {
		w.maybe(release) // it failed for its writer only
	}
}

func (w *world) update() {
	old := w.pick()
	if old == nil {
		return
	}
	s := service(w.t, "shop/"+old.Name, w.spec())
	if w.random.IntN(2) == 0 {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = old.Spec.ClusterIP, old.Spec.ClusterIPs
	}
	s.UID = old.UID
	commit, release, err := w.a.Reconcile(context.Background(), old, s, false)
	if err != nil {
		return
	}
	// What validation refuses: an address exchanged.
	refused := addressed(old) && addressed(s) && (len(s.Spec.ClusterIPs) == 0 || s.Spec.ClusterIPs[0] != old.Spec.ClusterIPs[0] ||
		len(s.Spec.ClusterIPs) == 2 && len(old.Spec.ClusterIPs) == 2 && s.Spec.ClusterIPs[1] != old.Spec.ClusterIPs[1])
	if refused || w.random.IntN(5) == 0 {
		w.maybe(release)
		return
	}
	w.services[old.Name] = s
	w.maybe(commit)
}

func (w *world) remove() {
	if s := w.pick(); s != nil {
		delete(w.services, s.Name)
		w.maybe(func() error { return w.a.Release(context.Background(), s) })
	}
}

// maybe does it, unless the process dies before.
func (w *world) maybe(f func() error) {
	if w.random.IntN(4) == 0 {
		return
	}
	if err := f(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) repair() {
	findings, err := w.a.Repair(context.Background(), w.list())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range findings {
		if f.Problem == Conflict || f.Problem == Missing || f.Problem == Misowned {
			w.t.Fatalf("found %s", f)
		}
	}
}

// locked says whether all of a Service's addresses are its own.
func (w *world) locked(s *corev1.Service) bool {
	for _, addr := range held(s) {
		if l := w.m.objects[addr.String()]; l == nil || !ownedBy(l, s) {
			return false
		}
	}
	return true
}

// check: every stored Service owns the locks of its addresses, so no two have
// the same.
func (w *world) check() {
	w.t.Helper()
	for _, s := range w.services {
		if !w.locked(s) {
			w.t.Fatalf("%s has %v, locks: %s", s.Name, held(s), w.m)
		}
	}
}
