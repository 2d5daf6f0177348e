// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodeport

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

var resource = schema.GroupResource{Resource: "nodeports"}

// memory is a storage of locks that can fail.
type memory struct {
	mu    sync.Mutex
	locks map[int]Lock
	next  int
	lists int
	fail  func(verb string, port int) error
}

var _ Locks = (*memory)(nil)

func newMemory() *memory { return &memory{locks: map[int]Lock{}} }

func (m *memory) failure(verb string, port int) error {
	if m.fail == nil {
		return nil
	}
	return m.fail(verb, port)
}

func (m *memory) Create(_ context.Context, port int, owner Owner) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failure("create", port); err != nil {
		return err
	}
	if _, ok := m.locks[port]; ok {
		return apierrors.NewAlreadyExists(resource, strconv.Itoa(port))
	}
	m.next++
	m.locks[port] = Lock{port, owner, types.UID(fmt.Sprint("lock-", m.next)), time.Now()}
	return nil
}

func (m *memory) Get(_ context.Context, port int) (*Lock, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failure("get", port); err != nil {
		return nil, err
	}
	l, ok := m.locks[port]
	if !ok {
		return nil, apierrors.NewNotFound(resource, strconv.Itoa(port))
	}
	return &l, nil
}

func (m *memory) Delete(_ context.Context, port int, uid types.UID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failure("delete", port); err != nil {
		return err
	}
	switch l, ok := m.locks[port]; {
	case !ok:
		return apierrors.NewNotFound(resource, strconv.Itoa(port))
	case l.UID != uid:
		return apierrors.NewConflict(resource, strconv.Itoa(port), nil)
	}
	delete(m.locks, port)
	return nil
}

func (m *memory) List(context.Context) ([]Lock, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lists++
	if err := m.failure("list", 0); err != nil {
		return nil, err
	}
	var list []Lock
	for _, l := range m.locks {
		list = append(list, l)
	}
	return list, nil
}

// age makes a lock look older than any grace.
func (m *memory) age(port int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.locks[port]
	l.Created = time.Now().Add(-time.Hour)
	m.locks[port] = l
}

// owners are the names of the Services that have locks.
func (m *memory) owners() map[int]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[int]string{}
	for port, l := range m.locks {
		out[port] = l.Owner.Name
	}
	return out
}

func newAllocator(t testing.TB, locks Locks, ports utilnet.PortRange) *Allocator {
	t.Helper()
	a, err := New(locks, ports)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// service has a port 80 and, for each further number, another one.
func service(name string, kind corev1.ServiceType, numbers ...int32) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.ServiceSpec{Type: kind, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster},
	}
	for i, number := range numbers {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
			Name: fmt.Sprint("p", i), Port: int32(80 + i), Protocol: corev1.ProtocolTCP, NodePort: number,
		})
	}
	return s
}

func numbers(s *corev1.Service) (out []int32) {
	for _, port := range s.Spec.Ports {
		out = append(out, port.NodePort)
	}
	return out
}

// newRand prints its seed.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
