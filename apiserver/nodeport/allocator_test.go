// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodeport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/apiserver/validation"
)

const (
	clusterIP    = corev1.ServiceTypeClusterIP
	nodePort     = corev1.ServiceTypeNodePort
	loadBalancer = corev1.ServiceTypeLoadBalancer
	externalName = corev1.ServiceTypeExternalName
)

func TestNew(t *testing.T) {
	for _, row := range []struct {
		ports utilnet.PortRange
		split int // 0: refused
	}{
		{DefaultRange, 30086},
		{utilnet.PortRange{Base: 30000, Size: 1}, 30000},
		{utilnet.PortRange{Base: 30000, Size: 16}, 30000},
		{utilnet.PortRange{Base: 30000, Size: 17}, 30016},
		{utilnet.PortRange{Base: 30000, Size: 640}, 30020},
		{utilnet.PortRange{Base: 1, Size: 65535}, 129},
		{utilnet.PortRange{}, 0},
		{utilnet.PortRange{Base: 0, Size: 10}, 0},
		{utilnet.PortRange{Base: 65530, Size: 10}, 0},
	} {
		a, err := New(newMemory(), row.ports)
		switch {
		case (err != nil) != (row.split == 0):
			t.Errorf("%v: %v", row.ports, err)
		case err == nil && a.split != row.split:
			t.Errorf("%v: drawn from %d on, want %d", row.ports, a.split, row.split)
		}
	}
}

func TestAllocate(t *testing.T) {
	ctx := t.Context()
	local := func(s *corev1.Service, health int32) *corev1.Service {
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, health
		return s
	}
	with := func(s *corev1.Service, edit func(*corev1.ServiceSpec)) *corev1.Service { edit(&s.Spec); return s }
	rows := []struct {
		name    string
		service *corev1.Service
		locked  int    // how many numbers
		err     string // the end of the error
	}{
		{"cluster address", service("s", clusterIP, 0), 0, ""},
		{"external name", service("s", externalName, 30100), 0, ""},
		{"node port", service("s", nodePort, 0), 1, ""},
		{"two", service("s", nodePort, 0, 0), 2, ""},
		{"chosen", service("s", nodePort, 30100, 0), 2, ""},
		{"at the ends of the range", service("s", nodePort, 30000, 32767), 2, ""},
		{"load balancer", service("s", loadBalancer, 0), 1, ""},
		{"load balancer without", with(service("s", loadBalancer, 0), func(s *corev1.ServiceSpec) { s.AllocateLoadBalancerNodePorts = ptr.To(false) }), 0, ""},
		{"load balancer with chosen only", with(service("s", loadBalancer, 0, 30100), func(s *corev1.ServiceSpec) { s.AllocateLoadBalancerNodePorts = ptr.To(false) }), 1, ""},
		{"health check", local(service("s", loadBalancer, 0), 0), 2, ""},
		{"health check chosen", local(service("s", loadBalancer, 30100), 30101), 2, ""},
		{"local node port has no health check", local(service("s", nodePort, 0), 0), 1, ""},
		{"number twice", service("s", nodePort, 30100, 30100), 1, ""}, // validation refuses it
		{"taken", service("s", nodePort, 0, 31000), 0, "spec.ports[1].nodePort: Invalid value: 31000: provided port is already allocated"},
		{"below the range", service("s", nodePort, 29999), 0, "spec.ports[0].nodePort: Invalid value: 29999: provided port is not in the valid range. The range of valid ports is 30000-32767"},
		{"above the range", service("s", nodePort, 32768), 0, "spec.ports[0].nodePort: Invalid value: 32768: provided port is not in the valid range. The range of valid ports is 30000-32767"},
		{"health check taken", local(service("s", loadBalancer, 0), 31000), 0, "spec.healthCheckNodePort: Invalid value: 31000: failed to allocate requested HealthCheck NodePort 31000: provided port is already allocated"},
		{"health check out of range", local(service("s", loadBalancer, 0), 80), 0, "spec.healthCheckNodePort: Invalid value: 80: failed to allocate requested HealthCheck NodePort 80: provided port is not in the valid range. The range of valid ports is 30000-32767"},
		{"health check on a port of its own Service", local(service("s", loadBalancer, 30100), 30100), 0, "spec.ports[0].nodePort: Invalid value: 30100: provided port is already allocated"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			for _, dry := range []bool{true, false} {
				m := newMemory()
				a := newAllocator(t, m, DefaultRange)
				must(t, m.Create(ctx, 31000, ownerOf(service("other", nodePort))))
				s := row.service.DeepCopy()
				release, err := a.Allocate(ctx, s, dry)
				if row.err != "" {
					if err == nil || !strings.HasSuffix(err.Error(), row.err) || !apierrors.IsInvalid(err) {
						t.Errorf("dry run %t: got  %v\nwant %s", dry, err, row.err)
					}
					if n := len(m.locks); n != 1 {
						t.Errorf("dry run %t: %d locks left", dry, n-1)
					}
					continue
				}
				must(t, err)
				if got := len(m.locks) - 1; got != row.locked && !dry || dry && got != 0 {
					t.Errorf("dry run %t: %d locks, want %d", dry, got, row.locked)
				}
				if got := len(held(s)); got != row.locked {
					t.Errorf("dry run %t: %v held, want %d", dry, held(s), row.locked)
				}
				for i, port := range row.service.Spec.Ports {
					if port.NodePort != 0 && s.Spec.Ports[i].NodePort != port.NodePort {
						t.Errorf("dry run %t: chose %d, got %d", dry, port.NodePort, s.Spec.Ports[i].NodePort)
					}
				}
				must(t, release())
				if got := len(m.locks) - 1; got != 0 {
					t.Errorf("dry run %t: %d locks after release", dry, got)
				}
			}
		})
	}
}

// TestProtocols: ports that differ in the protocol only are at one number.
func TestProtocols(t *testing.T) {
	a := newAllocator(t, newMemory(), DefaultRange)
	dns := service("dns", nodePort, 0, 0, 0)
	dns.Spec.Ports[0].Port, dns.Spec.Ports[1].Port, dns.Spec.Ports[1].Protocol = 53, 53, corev1.ProtocolUDP
	_, err := a.Allocate(t.Context(), dns, false)
	must(t, err)
	if n := numbers(dns); n[0] != n[1] || n[1] == n[2] || n[0] == 0 || n[2] == 0 {
		t.Errorf("got %v", n)
	}
	// Also the other way round, and where only the second was chosen.
	dns = service("dns2", nodePort, 0, 30010)
	dns.Spec.Ports[0].Port, dns.Spec.Ports[1].Port, dns.Spec.Ports[1].Protocol = 53, 53, corev1.ProtocolUDP
	_, err = a.Allocate(t.Context(), dns, false)
	must(t, err)
	if n := numbers(dns); n[0] != 30010 {
		t.Errorf("got %v", n)
	}
	// Never for a protocol that has the number already.
	dns = service("dns3", nodePort, 30011, 30011, 0)
	dns.Spec.Ports[1].Protocol, dns.Spec.Ports[2].Port = corev1.ProtocolUDP, 81
	_, err = a.Allocate(t.Context(), dns, false)
	must(t, err)
	if n := numbers(dns); n[2] == 30011 || n[2] == 0 {
		t.Errorf("got %v", n)
	}
}

func TestReconcile(t *testing.T) {
	type edit func(*corev1.Service)
	kind := func(k corev1.ServiceType) edit { return func(s *corev1.Service) { s.Spec.Type = k } }
	nodePorts := func(n ...int32) edit {
		return func(s *corev1.Service) { s.Spec.Ports = service("", "", n...).Spec.Ports }
	}
	policy := func(p corev1.ServiceExternalTrafficPolicy) edit {
		return func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = p }
	}
	health := func(n int32) edit { return func(s *corev1.Service) { s.Spec.HealthCheckNodePort = n } }
	allocate := func(yes bool) edit {
		return func(s *corev1.Service) { s.Spec.AllocateLoadBalancerNodePorts = &yes }
	}
	rename := func(i int, name string) edit { return func(s *corev1.Service) { s.Spec.Ports[i].Name = name } }
	const localPolicy, clusterPolicy = corev1.ServiceExternalTrafficPolicyLocal, corev1.ServiceExternalTrafficPolicyCluster
	rows := []struct {
		name     string
		old, new []edit
		want     string // the numbers and the health check's; ? for any new one
	}{
		{"nothing", []edit{kind(nodePort), nodePorts(30001)}, nil, "30001 0"},
		{"left out", []edit{kind(nodePort), nodePorts(30001, 30002)}, []edit{nodePorts(0, 0)}, "30001,30002 0"},
		{"one left out", []edit{kind(nodePort), nodePorts(30001, 30002)}, []edit{nodePorts(0, 30002)}, "30001,30002 0"},
		{"one exchanged", []edit{kind(nodePort), nodePorts(30001, 30002)}, []edit{nodePorts(30003, 30002)}, "30003,30002 0"},
		{"swapped", []edit{kind(nodePort), nodePorts(30001, 30002)}, []edit{nodePorts(30002, 30001)}, "30002,30001 0"},
		{"given to the other, the first left out", []edit{kind(nodePort), nodePorts(30001, 30002)}, []edit{nodePorts(0, 30001)}, "?,30001 0"},
		{"renamed", []edit{kind(nodePort), nodePorts(30001)}, []edit{nodePorts(0), rename(0, "x")}, "? 0"},
		{"port added", []edit{kind(nodePort), nodePorts(30001)}, []edit{nodePorts(0, 0)}, "30001,? 0"},
		{"port taken away", []edit{kind(nodePort), nodePorts(30001, 30002)}, []edit{nodePorts(30001)}, "30001 0"},
		{"to node port", []edit{nodePorts(0)}, []edit{kind(nodePort)}, "? 0"},
		{"to load balancer", []edit{kind(nodePort), nodePorts(30001)}, []edit{kind(loadBalancer)}, "30001 0"},
		{"to cluster address", []edit{kind(nodePort), nodePorts(30001)}, []edit{kind(clusterIP), nodePorts(0)}, "0 0"},
		{"to cluster address, numbers left there", []edit{kind(nodePort), nodePorts(30001)}, []edit{kind(clusterIP)}, "- 0"},
		{"to external name", []edit{kind(loadBalancer), nodePorts(30001)}, []edit{kind(externalName), nodePorts()}, " 0"},
		{"from external name", []edit{kind(externalName), nodePorts()}, []edit{kind(nodePort), nodePorts(30005)}, "30005 0"},
		{"to local", []edit{kind(loadBalancer), nodePorts(30001)}, []edit{policy(localPolicy)}, "30001 ?"},
		{"to local with a chosen one", []edit{kind(loadBalancer), nodePorts(30001)}, []edit{policy(localPolicy), health(30007)}, "30001 30007"},
		{"health check left out", []edit{kind(loadBalancer), nodePorts(30001), policy(localPolicy), health(30007)}, []edit{health(0)}, "30001 30007"},
		{"to policy Cluster", []edit{kind(loadBalancer), nodePorts(30001), policy(localPolicy), health(30007)}, []edit{policy(clusterPolicy), health(0)}, "30001 0"},
		{"local to node port", []edit{kind(loadBalancer), nodePorts(30001), policy(localPolicy), health(30007)}, []edit{kind(nodePort), health(0)}, "30001 0"},
		{"no more node ports", []edit{kind(loadBalancer), nodePorts(30001)}, []edit{allocate(false), nodePorts(0)}, "0 0"},
		{"no more node ports but these", []edit{kind(loadBalancer), nodePorts(30001)}, []edit{allocate(false)}, "30001 0"},
		{"node ports again", []edit{kind(loadBalancer), allocate(false), nodePorts(0)}, []edit{allocate(true)}, "? 0"},
		{"the health check's number for a port", []edit{kind(loadBalancer), nodePorts(30001), policy(localPolicy), health(30007)}, []edit{policy(clusterPolicy), health(0), nodePorts(30007)}, "30007 0"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			for _, outcome := range []string{"commit", "release", "dry"} {
				m := newMemory()
				a := newAllocator(t, m, DefaultRange)
				old := service("s", clusterIP, 0)
				for _, e := range row.old {
					e(old)
				}
				for _, port := range held(old) {
					must(t, m.Create(t.Context(), port, ownerOf(old)))
				}
				before := m.owners()
				s := old.DeepCopy()
				for _, e := range row.new {
					e(s)
				}
				commit, release, err := a.Reconcile(t.Context(), old, s, outcome == "dry")
				must(t, err)
				var parts []string
				for _, number := range numbers(s) {
					parts = append(parts, fmt.Sprint(number))
				}
				got := strings.Join(parts, ",") + " " + fmt.Sprint(s.Spec.HealthCheckNodePort)
				if !matches(row.want, got) {
					t.Errorf("%s: got %q, want %q", outcome, got, row.want)
				}
				want := before
				switch outcome {
				case "commit":
					must(t, commit())
					want = map[int]string{}
					for _, port := range held(s) {
						want[port] = "s"
					}
				case "release":
					must(t, release())
				case "dry":
					must(t, errors.Join(commit(), release()))
				}
				if got := m.owners(); !maps.Equal(got, want) {
					t.Errorf("%s: locks %v, want %v", outcome, got, want)
				}
			}
		})
	}
}

// matches compares numbers, where ? is a drawn one and - is any.
func matches(want, got string) bool {
	isSeparator := func(r rune) bool { return r == ',' || r == ' ' }
	w, g := strings.FieldsFunc(want, isSeparator), strings.FieldsFunc(got, isSeparator)
	return slices.EqualFunc(w, g, func(want, got string) bool {
		if want == "?" {
			return len(got) == 5 && got >= "30086"
		}
		return want == "-" || want == got
	})
}

// TestBands: nobody is given a number of the part for chosen ones before the
// other is full; then all are used, and one more is refused.
func TestBands(t *testing.T) {
	ports := utilnet.PortRange{Base: 30000, Size: 64}
	m := newMemory()
	a := newAllocator(t, m, ports)
	for i := range 48 {
		s := service(fmt.Sprint("s", i), nodePort, 0)
		_, err := a.Allocate(t.Context(), s, false)
		must(t, err)
		if n := numbers(s)[0]; n < 30016 {
			t.Errorf("the %dth got %d", i, n)
		}
	}
	for i := range 16 {
		_, err := a.Allocate(t.Context(), service(fmt.Sprint("t", i), nodePort, 0), false)
		must(t, err)
	}
	_, err := a.Allocate(t.Context(), service("late", nodePort, 0), false)
	if err == nil || !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "failed to allocate a nodePort: range is full") {
		t.Errorf("full: %v", err)
	}
	if len(m.locks) != 64 {
		t.Errorf("%d locks", len(m.locks))
	}
	// What a failed allocation had taken is free again.
	must(t, a.Release(t.Context(), service("s0", nodePort, only(m, "s0"))))
	if _, err := a.Allocate(t.Context(), service("two", nodePort, 0, 0), false); err == nil || len(m.locks) != 63 {
		t.Errorf("%v, %d locks", err, len(m.locks))
	}
}

// only is the number of a Service that has one.
func only(m *memory, name string) int32 {
	for port, owner := range m.owners() {
		if owner == name {
			return int32(port)
		}
	}
	return 0
}

// TestDrawnQuickly: in a range that is half full the list of all is hardly
// ever read.
func TestDrawnQuickly(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, DefaultRange)
	for i := range 1000 {
		_, err := a.Allocate(t.Context(), service(fmt.Sprint("s", i), nodePort, 0), false)
		must(t, err)
	}
	if m.lists > 20 {
		t.Errorf("read the list %d times", m.lists)
	}
}

// TestUnsure: a number is not given back while the storage may have it.
func TestUnsure(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, DefaultRange)
	var stored *corev1.Service
	fails := errors.New("storage is away")
	a.Lookup = func(context.Context, string, string) (*corev1.Service, error) {
		if stored == nil {
			return nil, fails
		}
		return stored, nil
	}
	s := service("s", nodePort, 30001)
	release, err := a.Allocate(t.Context(), s, false)
	must(t, err)
	if err := release(); !errors.Is(err, fails) || len(m.locks) != 1 {
		t.Errorf("%v, %d locks", err, len(m.locks))
	}
	stored = s
	if err := release(); err != nil || len(m.locks) != 1 {
		t.Errorf("%v, %d locks", err, len(m.locks))
	}
	stored = service("s", nodePort, 30001)
	stored.UID = "another"
	if err := release(); err != nil || len(m.locks) != 0 {
		t.Errorf("%v, %d locks", err, len(m.locks))
	}
}

// TestReleaseOnlyOnesOwn: a number that another Service has by now stays its.
func TestReleaseOnlyOnesOwn(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, DefaultRange)
	must(t, m.Create(t.Context(), 30001, ownerOf(service("other", nodePort))))
	again := service("s", nodePort)
	again.UID = "another"
	must(t, m.Create(t.Context(), 30002, ownerOf(again)))
	must(t, a.Release(t.Context(), service("s", nodePort, 30001, 30002, 30003)))
	if want := map[int]string{30001: "other", 30002: "s"}; !maps.Equal(m.owners(), want) {
		t.Errorf("locks %v, want %v", m.owners(), want)
	}
}

// TestDryRunIsPlausible: a dry run locks nothing, and yet gives no number twice
// and none that is taken, to the last one.
func TestDryRunIsPlausible(t *testing.T) {
	ports := utilnet.PortRange{Base: 30000, Size: 20}
	m := newMemory()
	a := newAllocator(t, m, ports)
	for port := 30000; port < 30010; port++ {
		must(t, m.Create(t.Context(), port, ownerOf(service("other", nodePort))))
	}
	for range 20 {
		s := service("s", nodePort, make([]int32, 10)...)
		_, err := a.Allocate(t.Context(), s, true)
		must(t, err)
		if got := held(s); len(got) != 10 || slices.Min(got) < 30010 || len(m.locks) != 10 {
			t.Fatalf("got %v, %d locks", numbers(s), len(m.locks))
		}
		if _, err := a.Allocate(t.Context(), service("s", nodePort, make([]int32, 11)...), true); err == nil {
			t.Fatal("got more than there are")
		}
	}
}

// TestFailures makes each lock fail in turn: what was locked before is given
// back, and the error is the storage's.
func TestFailures(t *testing.T) {
	fails := errors.New("storage is away")
	for n := range 12 {
		m := newMemory()
		a := newAllocator(t, m, DefaultRange)
		must(t, m.Create(t.Context(), 31000, ownerOf(service("other", nodePort))))
		count := 0
		m.fail = func(verb string, _ int) error {
			if verb != "create" {
				return nil
			}
			if count++; count == n+1 {
				return fails
			}
			return nil
		}
		s := service("s", loadBalancer, 30001, 0, 0)
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		_, err := a.Allocate(t.Context(), s, false)
		if failed := count > n; failed != errors.Is(err, fails) {
			t.Errorf("failure %d: %v", n, err)
		} else if failed && len(m.locks) != 1 {
			t.Errorf("failure %d: %d locks left", n, len(m.locks)-1)
		}
		if n > 5 && err != nil {
			t.Errorf("failure %d was reached: %v", n, err)
		}
	}
}

// TestHistory is a random history of Services compared with a naive model: the
// numbers of all Services are the locks, and no two Services share one.
func TestHistory(t *testing.T) {
	random := newRand(t)
	for range 20 {
		m := newMemory()
		ports := utilnet.PortRange{Base: 30000, Size: 8 + random.IntN(40)}
		a := newAllocator(t, m, ports)
		stored := map[string]*corev1.Service{}
		a.Lookup = lookupIn(stored)
		for step := range 300 {
			name := fmt.Sprint("s", random.IntN(12))
			old := stored[name]
			switch {
			case old != nil && random.IntN(4) == 0:
				delete(stored, name)
				must(t, a.Release(t.Context(), old))
			case old == nil:
				s := randomService(random, name, ports)
				s.UID = types.UID(fmt.Sprint("uid-", step))
				release, err := a.Allocate(t.Context(), s, false)
				settle(t, random, err, release, func() error { stored[name] = s; return nil })
			default:
				s := randomService(random, name, ports)
				s.UID = old.UID
				commit, release, err := a.Reconcile(t.Context(), old, s, false)
				settle(t, random, err, release, func() error { stored[name] = s; return commit() })
			}
			want := map[int]string{}
			for name, s := range stored {
				for _, port := range held(s) {
					if other, ok := want[port]; ok {
						t.Fatalf("step %d: %d is %s's and %s's", step, port, other, name)
					}
					want[port] = name
				}
				if automatic(s) && slices.Contains(numbers(s), 0) || validation.HealthChecked(&s.Spec) && s.Spec.HealthCheckNodePort == 0 {
					t.Fatalf("step %d: %s lacks a number: %v", step, name, numbers(s))
				}
			}
			if got := m.owners(); !maps.Equal(got, want) {
				t.Fatalf("step %d: locks %v, want %v", step, got, want)
			}
		}
	}
}

// settle stores a Service or does not.
func settle(t *testing.T, random *rand.Rand, err error, release, store func() error) {
	t.Helper()
	switch {
	case err != nil && !apierrors.IsInvalid(err) && !apierrors.IsInternalError(err):
		t.Fatal(err)
	case err != nil:
	case random.IntN(4) == 0:
		must(t, release())
	default:
		must(t, store())
	}
}

func lookupIn(stored map[string]*corev1.Service) func(context.Context, string, string) (*corev1.Service, error) {
	return func(_ context.Context, _, name string) (*corev1.Service, error) {
		if s := stored[name]; s != nil {
			return s, nil
		}
		return nil, apierrors.NewNotFound(corev1.Resource("services"), name)
	}
}

func randomService(random *rand.Rand, name string, ports utilnet.PortRange) *corev1.Service {
	kinds := []corev1.ServiceType{clusterIP, nodePort, nodePort, loadBalancer, loadBalancer, externalName}
	number := func() int32 {
		if random.IntN(2) == 0 {
			return 0
		}
		return int32(ports.Base + random.IntN(ports.Size))
	}
	s := service(name, kinds[random.IntN(len(kinds))])
	for i := range random.IntN(4) {
		port := corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(80 + random.IntN(2)), Protocol: corev1.ProtocolTCP, NodePort: number()}
		if random.IntN(2) == 0 {
			port.Protocol = corev1.ProtocolUDP
		}
		s.Spec.Ports = append(s.Spec.Ports, port)
	}
	if random.IntN(2) == 0 {
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, number()
	}
	s.Spec.AllocateLoadBalancerNodePorts = ptr.To(random.IntN(3) > 0)
	return s
}

// TestRace: several allocators on one storage, as several servers have, give
// no number twice although they want more than there are.
func TestRace(t *testing.T) {
	m := newMemory()
	ports := utilnet.PortRange{Base: 30000, Size: 100}
	var mu sync.Mutex
	owner := map[int32]string{}
	var full int
	var wg sync.WaitGroup
	for server := range 4 {
		a := newAllocator(t, m, ports)
		for n := range 40 {
			wg.Go(func() {
				s := service(fmt.Sprint("s", server, "-", n), nodePort, 0)
				_, err := a.Allocate(context.Background(), s, false)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					full++
					return
				}
				if other, ok := owner[numbers(s)[0]]; ok {
					t.Errorf("%d is %s's and %s's", numbers(s)[0], other, s.Name)
				}
				owner[numbers(s)[0]] = s.Name
			})
		}
	}
	wg.Wait()
	if len(owner) != 100 || full != 60 {
		t.Errorf("%d have one, %d were refused", len(owner), full)
	}
}
