// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodeport

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

func TestRepair(t *testing.T) {
	at := func(s *corev1.Service, day int) *corev1.Service {
		s.CreationTimestamp = metav1.NewTime(time.Date(2025, 1, day, 0, 0, 0, 0, time.UTC))
		return s
	}
	local := func(s *corev1.Service) *corev1.Service {
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30009
		return s
	}
	another := service("s", nodePort, 30001)
	another.UID = "another"
	rows := []struct {
		name     string
		services []*corev1.Service
		locks    map[int]*corev1.Service // by whom
		young    bool                    // the locks
		found    string
		want     string // the locks after
	}{
		{"nothing", nil, nil, false, "", ""},
		{"all right", []*corev1.Service{service("s", nodePort, 30001)}, map[int]*corev1.Service{30001: service("s", nodePort)}, false, "", "30001:s"},
		{"missing", []*corev1.Service{service("s", nodePort, 30001)}, nil, false, "missing 30001 shop/s", "30001:s"},
		{"missing health check", []*corev1.Service{local(service("s", loadBalancer))}, nil, false, "missing 30009 shop/s", "30009:s"},
		{"orphaned", nil, map[int]*corev1.Service{30001: service("s", nodePort)}, false, "orphaned 30001", ""},
		{"of one that changed its type", []*corev1.Service{service("s", clusterIP, 0)}, map[int]*corev1.Service{30001: service("s", nodePort)}, false, "orphaned 30001", ""},
		{"of one that is being stored", nil, map[int]*corev1.Service{30001: service("s", nodePort)}, true, "", "30001:s"},
		{"misowned", []*corev1.Service{service("s", nodePort, 30001)}, map[int]*corev1.Service{30001: service("gone", nodePort)}, false, "misowned 30001 shop/s", "30001:s"},
		{"of an earlier one of that name", []*corev1.Service{another}, map[int]*corev1.Service{30001: service("s", nodePort)}, false, "misowned 30001 shop/s", "30001:s"},
		{"conflict", []*corev1.Service{at(service("b", nodePort, 30001), 2), at(service("a", nodePort, 30001), 3), at(service("c", nodePort, 30001), 1)},
			map[int]*corev1.Service{30001: service("b", nodePort)}, false, "conflict 30001 shop/c shop/b shop/a", "30001:b"},
		{"conflict without a lock", []*corev1.Service{at(service("b", nodePort, 30001), 2), at(service("a", nodePort, 30001), 1)}, nil, false,
			"conflict 30001 shop/a shop/b, missing 30001 shop/a shop/b", "30001:a"},
		{"out of range", []*corev1.Service{service("s", nodePort, 20000)}, map[int]*corev1.Service{20000: service("s", nodePort)}, false, "out of range 20000 shop/s", "20000:s"},
		{"several", []*corev1.Service{service("s", nodePort, 30002)}, map[int]*corev1.Service{30001: service("x", nodePort)}, false, "orphaned 30001, missing 30002 shop/s", "30002:s"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			for _, knows := range []bool{false, true} {
				m := newMemory()
				a := newAllocator(t, m, DefaultRange)
				stored := map[string]*corev1.Service{}
				var services []corev1.Service
				for _, s := range row.services {
					stored[s.Name] = s
					services = append(services, *s.DeepCopy())
				}
				if knows {
					a.Lookup = lookupIn(stored)
				}
				for port, s := range row.locks {
					must(t, m.Create(t.Context(), port, ownerOf(s)))
					if !row.young {
						m.age(port)
					}
				}
				findings, err := a.Repair(t.Context(), services)
				must(t, err)
				var found []string
				for _, f := range findings {
					found = append(found, f.String())
					if f.Mended() == (f.Problem == Conflict || f.Problem == OutOfRange) {
						t.Errorf("%s: mended %t", f, f.Mended())
					}
				}
				if got := strings.Join(found, ", "); got != row.found {
					t.Errorf("found %q, want %q", got, row.found)
				}
				var locks []string
				for port, name := range m.owners() {
					locks = append(locks, fmt.Sprintf("%d:%s", port, name))
				}
				if got := strings.Join(locks, " "); got != row.want {
					t.Errorf("locks %q, want %q", got, row.want)
				}
			}
		})
	}
}

// TestRepairLate: Services that came and went since they were read are looked
// up again.
func TestRepairLate(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, DefaultRange)
	a.Lookup = lookupIn(map[string]*corev1.Service{"late": service("late", nodePort, 30001)})
	must(t, m.Create(t.Context(), 30001, ownerOf(service("late", nodePort))))
	m.age(30001)
	findings, err := a.Repair(t.Context(), []corev1.Service{*service("gone", nodePort, 30002)})
	if err != nil || len(findings) > 0 || !maps.Equal(m.owners(), map[int]string{30001: "late"}) {
		t.Errorf("%v, %v, locks %v", findings, err, m.owners())
	}
}

// TestRepairFailure: one number that cannot be mended does not keep the others
// from it.
func TestRepairFailure(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, DefaultRange)
	fails := errors.New("storage is away")
	m.fail = func(verb string, port int) error {
		if port == 30001 {
			return fails
		}
		return nil
	}
	findings, err := a.Repair(t.Context(), []corev1.Service{*service("a", nodePort, 30001), *service("b", nodePort, 30002)})
	if !errors.Is(err, fails) || len(findings) != 1 || findings[0].String() != "missing 30002 shop/b" {
		t.Errorf("%v, %v", findings, err)
	}
}

// TestRepairAnything spoils locks at random; one pass makes them what the
// Services say, and a second finds nothing to mend.
func TestRepairAnything(t *testing.T) {
	random := newRand(t)
	ports := utilnet.PortRange{Base: 30000, Size: 40}
	for range 200 {
		m := newMemory()
		a := newAllocator(t, m, ports)
		stored := map[string]*corev1.Service{}
		a.Lookup = lookupIn(stored)
		for i := range 6 {
			s := randomService(random, fmt.Sprint("s", i), ports)
			if _, err := a.Allocate(t.Context(), s, false); err == nil {
				stored[s.Name] = s
			}
		}
		want := m.owners()
		for range random.IntN(10) {
			port := ports.Base + random.IntN(ports.Size)
			delete(m.locks, port)
			if random.IntN(2) == 0 {
				must(t, m.Create(t.Context(), port, ownerOf(service(fmt.Sprint("s", random.IntN(9)), nodePort))))
			}
		}
		for port := range m.locks {
			m.age(port)
		}
		var services []corev1.Service
		for _, s := range stored {
			services = append(services, *s)
		}
		_, err := a.Repair(t.Context(), services)
		must(t, err)
		if got := m.owners(); !maps.Equal(got, want) {
			t.Fatalf("locks %v, want %v", got, want)
		}
		if findings, err := a.Repair(t.Context(), services); err != nil || len(findings) > 0 {
			t.Fatalf("second pass: %v, %v", findings, err)
		}
	}
}
