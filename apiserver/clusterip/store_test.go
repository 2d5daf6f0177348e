// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/apiserver/defaults"
)

// memory keeps IPAddresses as etcd does: one of a name, deleted by UID.
type memory struct {
	mu      sync.Mutex
	objects map[string]*networkingv1.IPAddress
	made    int
	lists   int
	fail    func(verb, name string) error
}

func newMemory() *memory { return &memory{objects: map[string]*networkingv1.IPAddress{}} }

// enter counts and may fail.
func (m *memory) enter(ctx context.Context, verb, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if verb == "list" {
		m.lists++
	}
	if m.fail != nil {
		return m.fail(verb, name)
	}
	return nil
}

func (m *memory) Create(ctx context.Context, l *networkingv1.IPAddress) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter(ctx, "create", l.Name); err != nil {
		return err
	}
	if m.objects[l.Name] != nil {
		return apierrors.NewAlreadyExists(ipAddresses, l.Name)
	}
	l = l.DeepCopy()
	m.made++
	l.UID = types.UID(fmt.Sprint("lock-", m.made))
	if l.CreationTimestamp.IsZero() {
		l.CreationTimestamp = metav1.Now()
	}
	m.objects[l.Name] = l
	return nil
}

func (m *memory) Get(ctx context.Context, name string) (*networkingv1.IPAddress, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter(ctx, "get", name); err != nil {
		return nil, err
	}
	if l := m.objects[name]; l != nil {
		return l.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(ipAddresses, name)
}

func (m *memory) Delete(ctx context.Context, name string, uid types.UID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter(ctx, "delete", name); err != nil {
		return err
	}
	switch l := m.objects[name]; {
	case l == nil:
		return apierrors.NewNotFound(ipAddresses, name)
	case l.UID != uid:
		return apierrors.NewConflict(ipAddresses, name, fmt.Errorf("the UID in the precondition is not the object's"))
	}
	delete(m.objects, name)
	return nil
}

func (m *memory) List(ctx context.Context) ([]networkingv1.IPAddress, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter(ctx, "list", ""); err != nil {
		return nil, err
	}
	list := make([]networkingv1.IPAddress, 0, len(m.objects))
	for _, l := range m.objects {
		list = append(list, *l.DeepCopy())
	}
	return list, nil
}

// age makes all locks that much older.
func (m *memory) age(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.objects {
		l.CreationTimestamp = metav1.NewTime(l.CreationTimestamp.Add(-d))
	}
}

// String is every lock and whose it is: "10.96.0.9=shop/orders".
func (m *memory) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for name, l := range m.objects {
		owner := "nobody"
		if ref := l.Spec.ParentRef; ref != nil {
			owner = ref.Namespace + "/" + ref.Name
		}
		lines = append(lines, name+"="+owner)
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		panic(err)
	}
	if err := defaults.Register(s); err != nil {
		panic(err)
	}
	return s
}()

// service decodes a spec as the API does: with defaults and system fields.
func service(t testing.TB, name, spec string) *corev1.Service {
	t.Helper()
	s := &corev1.Service{}
	if err := json.Unmarshal([]byte(`{"spec":`+spec+`}`), s); err != nil {
		t.Fatalf("decode %s: %v", spec, err)
	}
	s.Namespace, s.Name, _ = strings.Cut(name, "/")
	s.UID = types.UID("uid of " + name)
	scheme.Default(s)
	return s
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// The clusters of the tests.
var (
	only4  = prefixes("10.96.0.0/16")
	only6  = prefixes("fd00:96::/112")
	both46 = prefixes("10.96.0.0/16", "fd00:96::/112")
	both64 = prefixes("fd00:96::/112", "10.96.0.0/16")
)

// newAllocator draws the lowest address of the upper part that is free, so
// that results can be written down.
func newAllocator(t testing.TB, m *memory, ranges ...netip.Prefix) *Allocator {
	t.Helper()
	a, err := New(m, ranges...)
	if err != nil {
		t.Fatal(err)
	}
	a.random = func(uint64) uint64 { return 0 }
	return a
}

// addresses is what the allocator has filled in:
// "10.96.1.1,fd00:96::101 IPv4,IPv6 PreferDualStack".
func addresses(s *corev1.Service) string {
	families := make([]string, 0, 2)
	for _, f := range s.Spec.IPFamilies {
		families = append(families, string(f))
	}
	text := strings.Join(s.Spec.ClusterIPs, ",") + " " + strings.Join(families, ",") + " " + string(policy(s))
	if len(s.Spec.ClusterIPs) > 0 && s.Spec.ClusterIP != s.Spec.ClusterIPs[0] || len(s.Spec.ClusterIPs) == 0 && s.Spec.ClusterIP != "" {
		text += " but clusterIP " + s.Spec.ClusterIP
	}
	return strings.TrimSpace(text)
}
