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
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

const isInvalid = `Service "orders" is invalid: `

func TestNew(t *testing.T) {
	rows := []struct {
		ranges []netip.Prefix
		want   string
	}{
		{only4, ""},
		{only6, ""},
		{both46, ""},
		{both64, ""},
		{prefixes("10.0.0.0/30"), ""},
		{prefixes("fd00::/48"), ""},
		{nil, "need one or two service ranges, got 0"},
		{prefixes("10.0.0.0/16", "fd00::/112", "10.1.0.0/16"), "need one or two service ranges, got 3"},
		{prefixes("10.0.0.0/16", "10.1.0.0/16"), "service ranges 10.0.0.0/16 and 10.1.0.0/16 are of one family"},
		{prefixes("10.0.0.1/16"), "service range 10.0.0.1/16 is not a network in canonical form"},
		{prefixes("10.0.0.0/31"), "service range 10.0.0.0/31 has no room for services"},
		{prefixes("fd00::/128"), "service range fd00::/128 has no room for services"},
		{prefixes("::ffff:10.0.0.0/112"), "service range ::ffff:10.0.0.0/112 is not a network in canonical form"},
		{[]netip.Prefix{{}}, "service range invalid Prefix is not a network in canonical form"},
	}
	for _, row := range rows {
		_, err := New(newMemory(), row.ranges...)
		if got := fmt.Sprint(err); err != nil && got != row.want || err == nil && row.want != "" {
			t.Errorf("%v: got %q, want %q", row.ranges, got, row.want)
		}
	}
}

func TestSpan(t *testing.T) {
	rows := []struct{ prefix, kubernetes, firstDrawn, last, unusable string }{
		{"10.96.0.0/16", "10.96.0.1", "10.96.1.1", "10.96.255.254", "10.96.255.255"},
		{"10.0.0.0/8", "10.0.0.1", "10.0.1.1", "10.255.255.254", "10.255.255.255"},
		{"10.96.0.0/24", "10.96.0.1", "10.96.0.17", "10.96.0.254", "10.96.0.255"},
		{"10.96.0.64/27", "10.96.0.65", "10.96.0.81", "10.96.0.94", "10.96.0.95"},
		{"10.96.0.0/28", "10.96.0.1", "10.96.0.2", "10.96.0.14", "10.96.0.15"},
		{"10.96.0.0/30", "10.96.0.1", "10.96.0.2", "10.96.0.2", "10.96.0.3"},
		{"fd00:96::/112", "fd00:96::1", "fd00:96::101", "fd00:96::ffff", "fd00:96::"},
		{"fd00:96::/64", "fd00:96::1", "fd00:96::101", "fd00:96::3fff:ffff:ffff:ffff", "fd00:96::"},
		{"fd00:96::/48", "fd00:96::1", "fd00:96::101", "fd00:96::3fff:ffff:ffff:ffff", "fd00:96::"},
		{"fd00:96::/126", "fd00:96::1", "fd00:96::2", "fd00:96::3", "fd00:96::"},
	}
	for _, row := range rows {
		s, err := newSpan(netip.MustParsePrefix(row.prefix))
		if err != nil {
			t.Errorf("%s: %v", row.prefix, err)
			continue
		}
		if got := s.kubernetes().String(); got != row.kubernetes {
			t.Errorf("%s: kubernetes is %s, want %s", row.prefix, got, row.kubernetes)
		}
		if got := s.draw(func(uint64) uint64 { return 0 }).String(); got != row.firstDrawn {
			t.Errorf("%s: first drawn is %s, want %s", row.prefix, got, row.firstDrawn)
		}
		if got := s.draw(func(n uint64) uint64 { return n - 1 }).String(); got != row.last {
			t.Errorf("%s: last is %s, want %s", row.prefix, got, row.last)
		}
		for _, addr := range []string{row.kubernetes, row.firstDrawn, row.last} {
			if !s.holds(netip.MustParseAddr(addr)) {
				t.Errorf("%s does not hold %s", row.prefix, addr)
			}
		}
		for _, addr := range []string{row.unusable, s.prefix.Addr().String(), s.prefix.Addr().Prev().String()} {
			if s.holds(netip.MustParseAddr(addr)) {
				t.Errorf("%s holds %s", row.prefix, addr)
			}
		}
	}
}

func TestAllocate(t *testing.T) {
	const ports = `"ports":[{"port":80}],"selector":{"a":"b"}`
	rows := []struct {
		name   string
		ranges []netip.Prefix
		spec   string
		want   string // addresses, or the error
	}{
		{"one family", only4, `{` + ports + `}`, "10.96.1.1 IPv4 SingleStack"},
		{"one family of the other kind", only6, `{` + ports + `}`, "fd00:96::101 IPv6 SingleStack"},
		{"first family of two", both46, `{` + ports + `}`, "10.96.1.1 IPv4 SingleStack"},
		{"first family of two, the other way", both64, `{` + ports + `}`, "fd00:96::101 IPv6 SingleStack"},
		{"second family asked for", both46, `{"ipFamilies":["IPv6"],` + ports + `}`, "fd00:96::101 IPv6 SingleStack"},
		{"prefer both, have one", only4, `{"ipFamilyPolicy":"PreferDualStack",` + ports + `}`, "10.96.1.1 IPv4 PreferDualStack"},
		{"prefer both", both46, `{"ipFamilyPolicy":"PreferDualStack",` + ports + `}`, "10.96.1.1,fd00:96::101 IPv4,IPv6 PreferDualStack"},
		{"require both", both46, `{"ipFamilyPolicy":"RequireDualStack",` + ports + `}`, "10.96.1.1,fd00:96::101 IPv4,IPv6 RequireDualStack"},
		{"require both in an order", both46, `{"ipFamilyPolicy":"RequireDualStack","ipFamilies":["IPv6","IPv4"],` + ports + `}`, "fd00:96::101,10.96.1.1 IPv6,IPv4 RequireDualStack"},
		{"require both from the second", both46, `{"ipFamilyPolicy":"RequireDualStack","ipFamilies":["IPv6"],` + ports + `}`, "fd00:96::101,10.96.1.1 IPv6,IPv4 RequireDualStack"},
		{"chosen", only4, `{"clusterIP":"10.96.0.10",` + ports + `}`, "10.96.0.10 IPv4 SingleStack"},
		{"chosen, both fields", only4, `{"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10"],` + ports + `}`, "10.96.0.10 IPv4 SingleStack"},
		{"chosen of the second family", both46, `{"clusterIP":"fd00:96::a",` + ports + `}`, "fd00:96::a IPv6 SingleStack"},
		{"one chosen, one drawn", both46, `{"clusterIP":"fd00:96::a","ipFamilyPolicy":"PreferDualStack",` + ports + `}`, "fd00:96::a,10.96.1.1 IPv6,IPv4 PreferDualStack"},
		{"both chosen", both46, `{"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10","fd00:96::a"],"ipFamilyPolicy":"RequireDualStack",` + ports + `}`, "10.96.0.10,fd00:96::a IPv4,IPv6 RequireDualStack"},
		{"first of the range is not for everybody", only4, `{"clusterIP":"10.96.0.1",` + ports + `}`, isInvalid + `spec.clusterIPs: Invalid value: ["10.96.0.1"]: failed to allocate IP 10.96.0.1: provided IP is already allocated`},
		{"headless", only4, `{"clusterIP":"None",` + ports + `}`, "None IPv4 SingleStack"},
		{"headless, prefer both", both46, `{"clusterIP":"None","ipFamilyPolicy":"PreferDualStack",` + ports + `}`, "None IPv4,IPv6 PreferDualStack"},
		{"headless, require both, have one", only4, `{"clusterIP":"None","ipFamilyPolicy":"RequireDualStack",` + ports + `}`, isInvalid + `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		{"headless without selector", only4, `{"clusterIP":"None"}`, "None IPv4,IPv6 RequireDualStack"},
		{"headless without selector, six first", both64, `{"clusterIP":"None"}`, "None IPv6,IPv4 RequireDualStack"},
		{"headless without selector, single", only4, `{"clusterIP":"None","ipFamilyPolicy":"SingleStack"}`, "None IPv4 SingleStack"},
		{"headless without selector, foreign family", only4, `{"clusterIP":"None","ipFamilyPolicy":"SingleStack","ipFamilies":["IPv6"]}`, "None IPv6 SingleStack"},
		{"external name", both46, `{"type":"ExternalName","externalName":"a.example"}`, ""},
		{"external name with a policy", both46, `{"type":"ExternalName","externalName":"a.example","ipFamilyPolicy":"SingleStack"}`, "SingleStack"},

		{"require both, have one", only4, `{"ipFamilyPolicy":"RequireDualStack",` + ports + `}`, isInvalid + `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		{"family that is not there", only4, `{"ipFamilies":["IPv6"],` + ports + `}`, isInvalid + `spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster`},
		{"address of a family that is not there", only4, `{"clusterIP":"fd00:96::a",` + ports + `}`, isInvalid + `spec.clusterIPs[0]: Invalid value: ["fd00:96::a"]: IPv6 is not configured on this cluster`},
		{"two addresses for a single", both46, `{"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10","fd00:96::a"],` + ports + `}`, isInvalid + `spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified`},
		{"two families for a single", both46, `{"ipFamilies":["IPv4","IPv6"],` + ports + `}`, isInvalid + `spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified`},
		{"outside the range", only4, `{"clusterIP":"10.97.0.1",` + ports + `}`, isInvalid + `spec.clusterIPs: Invalid value: ["10.97.0.1"]: failed to allocate IP 10.97.0.1: the provided network does not match the current range. The range of valid IPs is 10.96.0.0/16`},
		{"the network", only4, `{"clusterIP":"10.96.0.0",` + ports + `}`, isInvalid + `spec.clusterIPs: Invalid value: ["10.96.0.0"]: failed to allocate IP 10.96.0.0: the provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16`},
		{"the broadcast address", only4, `{"clusterIP":"10.96.255.255",` + ports + `}`, isInvalid + `spec.clusterIPs: Invalid value: ["10.96.255.255"]: failed to allocate IP 10.96.255.255: the provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16`},
		{"the last of six is no broadcast address", only6, `{"clusterIP":"fd00:96::ffff",` + ports + `}`, "fd00:96::ffff IPv6 SingleStack"},
		{"taken", only4, `{"clusterIP":"10.96.0.9",` + ports + `}`, isInvalid + `spec.clusterIPs: Invalid value: ["10.96.0.9"]: failed to allocate IP 10.96.0.9: provided IP is already allocated`},
		{"no address", only4, `{"clusterIP":"10.96",` + ports + `}`, isInvalid + `spec.clusterIPs[0]: Invalid value: "10.96": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`},
		{"not canonical", only6, `{"clusterIP":"fd00:96:0::a",` + ports + `}`, isInvalid + `spec.clusterIPs[0]: Invalid value: "fd00:96:0::a": must be in canonical form ("fd00:96::a")`},
		{"address and family differ", both46, `{"clusterIP":"10.96.0.10","ipFamilies":["IPv6"],` + ports + `}`, isInvalid + "spec.clusterIPs[0]: Invalid value: \"10.96.0.10\": expected an IPv6 value as indicated by `ipFamilies[0]`"},
		{"only clusterIPs", only4, `{"clusterIPs":["10.96.0.10"],` + ports + `}`, isInvalid + "spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: must be empty when `clusterIP` is not specified"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			m := newMemory()
			a := newAllocator(t, m, row.ranges...)
			ctx := context.Background()
			if err := m.Create(ctx, lock(netip.MustParseAddr("10.96.0.9"), service(t, "shop/other", `{}`))); err != nil {
				t.Fatal(err)
			}
			before := m.String()

			// The dry run says the same and leaves nothing behind.
			dry := service(t, "shop/orders", row.spec)
			_, err := a.Allocate(ctx, dry, true)
			if got := outcome(dry, err); got != row.want {
				t.Errorf("dry run: got  %s\nwant %s", got, row.want)
			}
			if m.String() != before {
				t.Errorf("dry run left %s", m)
			}

			s := service(t, "shop/orders", row.spec)
			release, err := a.Allocate(ctx, s, false)
			if got := outcome(s, err); got != row.want {
				t.Fatalf("got  %s\nwant %s", got, row.want)
			}
			if err == nil {
				for _, addr := range held(s) {
					if !strings.Contains(m.String(), addr.String()+"=shop/orders") {
						t.Errorf("%s is not locked: %s", addr, m)
					}
				}
			}
			if err := release(); err != nil {
				t.Errorf("release: %v", err)
			}
			if m.String() != before {
				t.Errorf("after release: %s", m)
			}
			if m.lists > 0 {
				t.Errorf("the list was read %d times", m.lists)
			}
		})
	}
}

// outcome is the addresses, or the error.
func outcome(s *corev1.Service, err error) string {
	if err != nil {
		if !apierrors.IsInvalid(err) && !apierrors.IsInternalError(err) {
			return "not an error of the API: " + err.Error()
		}
		return err.Error()
	}
	return addresses(s)
}

func TestKubernetesGetsTheFirst(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, both46...)
	if got := fmt.Sprint(a.KubernetesAddresses()); got != "[10.96.0.1 fd00:96::1]" {
		t.Errorf("got %s", got)
	}
	s := service(t, "default/kubernetes", `{"clusterIP":"10.96.0.1","ports":[{"port":443}]}`)
	if _, err := a.Allocate(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	if got, want := m.String(), "10.96.0.1=default/kubernetes"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestLockIsAsKubernetesMakesIt: tools that read IPAddresses find what they
// know.
func TestLockIsAsKubernetesMakesIt(t *testing.T) {
	l := lock(netip.MustParseAddr("fd00:96::a"), service(t, "shop/orders", `{}`))
	want := &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name:        "fd00:96::a",
			Labels:      map[string]string{"ipaddress.kubernetes.io/ip-family": "IPv6", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"},
			Annotations: map[string]string{ServiceUID: "uid of shop/orders"},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "shop", Name: "orders"}},
	}
	if l.String() != want.String() {
		t.Errorf("got %v\nwant %v", l, want)
	}
}

func TestReconcile(t *testing.T) {
	const base = `"type":"ClusterIP","sessionAffinity":"None","ports":[{"port":80}],"selector":{"a":"b"}`
	const one = `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack",` + base + `}`
	const two = `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20","fd00:96::20"],"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack",` + base + `}`
	const prefersOne = `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"PreferDualStack",` + base + `}`
	const none = `{"clusterIP":"None","clusterIPs":["None"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack",` + base + `}`
	const name = `{"type":"ExternalName","externalName":"a.example"}`
	rows := []struct {
		name     string
		old, new string
		want     string // addresses, or the error
		locks    string // after the commit
	}{
		{"nothing", one, one, "10.96.0.20 IPv4 SingleStack", "10.96.0.20"},
		{"everything left out", one, `{` + base + `}`, "10.96.0.20 IPv4 SingleStack", "10.96.0.20"},
		{"only clusterIP given", one, `{"clusterIP":"10.96.0.20",` + base + `}`, "10.96.0.20 IPv4 SingleStack", "10.96.0.20"},
		{"everything left out of two", two, `{` + base + `}`, "10.96.0.20,fd00:96::20 IPv4,IPv6 PreferDualStack", "10.96.0.20 fd00:96::20"},
		{"upgrade: require", one, `{"ipFamilyPolicy":"RequireDualStack",` + base + `}`, "10.96.0.20,fd00:96::101 IPv4,IPv6 RequireDualStack", "10.96.0.20 fd00:96::101"},
		{"upgrade: prefer", one, `{"ipFamilyPolicy":"PreferDualStack",` + base + `}`, "10.96.0.20,fd00:96::101 IPv4,IPv6 PreferDualStack", "10.96.0.20 fd00:96::101"},
		{"upgrade: chosen", one, `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20","fd00:96::30"],"ipFamilyPolicy":"PreferDualStack",` + base + `}`, "10.96.0.20,fd00:96::30 IPv4,IPv6 PreferDualStack", "10.96.0.20 fd00:96::30"},
		{"upgrade: chosen, taken", one, `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20","fd00:96::9"],"ipFamilyPolicy":"PreferDualStack",` + base + `}`, isInvalid + `spec.clusterIPs: Invalid value: ["10.96.0.20","fd00:96::9"]: failed to allocate IP fd00:96::9: provided IP is already allocated`, "10.96.0.20"},
		{"upgrade: address without policy", one, `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20","fd00:96::30"],` + base + `}`, isInvalid + `spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified`, "10.96.0.20"},
		{"prefers both but has one, unchanged", prefersOne, prefersOne, "10.96.0.20 IPv4 PreferDualStack", "10.96.0.20"},
		{"prefers both but has one, left out", prefersOne, `{` + base + `}`, "10.96.0.20 IPv4 PreferDualStack", "10.96.0.20"},
		{"prefers both but has one, wants both", prefersOne, `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20"],"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack",` + base + `}`, "10.96.0.20,fd00:96::101 IPv4,IPv6 PreferDualStack", "10.96.0.20 fd00:96::101"},
		{"downgrade", two, `{"ipFamilyPolicy":"SingleStack",` + base + `}`, "10.96.0.20 IPv4 SingleStack", "10.96.0.20"},
		{"downgrade said in full", two, `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack",` + base + `}`, "10.96.0.20 IPv4 SingleStack", "10.96.0.20"},
		{"downgrade without policy", two, `{"clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20"],"ipFamilies":["IPv4"],` + base + `}`, isInvalid + `[spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be 'SingleStack' to release the secondary cluster IP, spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be 'SingleStack' to release the secondary IP family]`, "10.96.0.20 fd00:96::20"},
		{"to a name, fields left", one, `{"type":"ExternalName","externalName":"a.example","clusterIP":"10.96.0.20","clusterIPs":["10.96.0.20"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack"}`, "", ""},
		{"to a name, clusterIP cleared", one, `{"type":"ExternalName","externalName":"a.example","clusterIP":"","clusterIPs":["10.96.0.20"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack"}`, "", ""},
		{"to a name, all left out", two, name, "", ""},
		{"from a name", name, `{"externalName":"a.example",` + base + `}`, "10.96.1.1 IPv4 SingleStack", "10.96.1.1"},
		{"from a name, chosen", name, `{"clusterIP":"10.96.0.30",` + base + `}`, "10.96.0.30 IPv4 SingleStack", "10.96.0.30"},
		{"from a name, headless", name, `{"clusterIP":"None",` + base + `}`, "None IPv4 SingleStack", ""},
		{"from a name, both", name, `{"ipFamilyPolicy":"RequireDualStack",` + base + `}`, "10.96.1.1,fd00:96::101 IPv4,IPv6 RequireDualStack", "10.96.1.1 fd00:96::101"},
		{"headless stays", none, `{` + base + `}`, "None IPv4 SingleStack", ""},
		{"headless gains a family", none, `{"ipFamilyPolicy":"PreferDualStack",` + base + `}`, "None IPv4,IPv6 PreferDualStack", ""},
		// What follows is refused by validation, with what it finds here.
		{"another address", one, `{"clusterIP":"10.96.0.30",` + base + `}`, "10.96.0.30 IPv4 SingleStack", ""},
		{"to headless", one, `{"clusterIP":"None",` + base + `}`, "None IPv4 SingleStack", ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			m := newMemory()
			a := newAllocator(t, m, both46...)
			ctx := context.Background()
			foreign := service(t, "shop/other", `{}`)
			for _, ip := range []string{"10.96.0.9", "fd00:96::9"} {
				if err := m.Create(ctx, lock(netip.MustParseAddr(ip), foreign)); err != nil {
					t.Fatal(err)
				}
			}
			old := service(t, "shop/orders", row.old)
			for _, addr := range held(old) {
				if err := m.Create(ctx, lock(addr, old)); err != nil {
					t.Fatal(err)
				}
			}
			before := m.String()
			storage := old.DeepCopy()

			dry := service(t, "shop/orders", row.new)
			dry.UID = ""
			commit, release, err := a.Reconcile(ctx, old, dry, true)
			if got := outcome(dry, err); got != row.want {
				t.Errorf("dry run: got  %s\nwant %s", got, row.want)
			}
			if err := errors.Join(commit(), release()); err != nil || m.String() != before {
				t.Errorf("dry run left %s (%v)", m, err)
			}

			undone := service(t, "shop/orders", row.new)
			_, release, err = a.Reconcile(ctx, old, undone, false)
			if got := outcome(undone, err); got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
			if err := release(); err != nil || m.String() != before {
				t.Errorf("release left %s (%v), want %s", m, err, before)
			}

			s := service(t, "shop/orders", row.new)
			commit, _, err = a.Reconcile(ctx, old, s, false)
			if got := outcome(s, err); got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
			if err := commit(); err != nil {
				t.Errorf("commit: %v", err)
			}
			if got := locksOf(m, "shop/orders"); got != row.locks {
				t.Errorf("locks %q, want %q", got, row.locks)
			}
			if !strings.Contains(m.String(), "10.96.0.9=shop/other") {
				t.Errorf("another's lock is gone: %s", m)
			}
			if storage.String() != old.String() {
				t.Errorf("the old object was changed:\n%s\n%s", storage, old)
			}
		})
	}
}

// locksOf are the addresses that a Service has locked.
func locksOf(m *memory, service string) string {
	var out []string
	for _, l := range strings.Fields(m.String()) {
		if addr, owner, _ := strings.Cut(l, "="); owner == service {
			out = append(out, addr)
		}
	}
	return strings.Join(out, " ")
}

func TestFull(t *testing.T) {
	const full = `Internal error occurred: failed to allocate a serviceIP for Service "more": range is full`
	for _, ranges := range [][]netip.Prefix{prefixes("10.96.0.0/29"), prefixes("fd00:96::/125"), prefixes("10.96.0.0/26")} {
		m := newMemory()
		a, err := New(m, ranges...)
		if err != nil {
			t.Fatal(err)
		}
		// All but the network, default/kubernetes and the broadcast address.
		room := 1<<(ranges[0].Addr().BitLen()-ranges[0].Bits()) - 2
		if ranges[0].Addr().Is4() {
			room--
		}
		for i := range room {
			if _, err := a.Allocate(context.Background(), service(t, fmt.Sprintf("shop/s%d", i), `{}`), false); err != nil {
				t.Fatalf("%s: service %d of %d: %v", ranges[0], i, room, err)
			}
		}
		_, err = a.Allocate(context.Background(), service(t, "shop/more", `{}`), false)
		if err == nil || err.Error() != full || !apierrors.IsInternalError(err) {
			t.Errorf("%s: got %v, want %s", ranges[0], err, full)
		}
		if strings.Contains(m.String(), a.KubernetesAddresses()[0].String()+"=") {
			t.Errorf("default/kubernetes' address was drawn: %s", m)
		}
	}
}

// TestUpperPartFirst: what users choose is left to them while there is room.
func TestUpperPartFirst(t *testing.T) {
	m := newMemory()
	a, err := New(m, prefixes("10.96.0.0/24")...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 254 - 16 {
		s := service(t, fmt.Sprintf("shop/s%d", i), `{}`)
		if _, err := a.Allocate(context.Background(), s, false); err != nil {
			t.Fatal(err)
		}
		if addr := held(s)[0]; addr.Less(netip.MustParseAddr("10.96.0.17")) {
			t.Fatalf("service %d got %s of the lower part", i, addr)
		}
	}
	s := service(t, "shop/last", `{}`)
	if _, err := a.Allocate(context.Background(), s, false); err != nil || !held(s)[0].Less(netip.MustParseAddr("10.96.0.17")) {
		t.Errorf("got %v (%v), want one of the lower part", held(s), err)
	}
}

// TestHundredAtOnce: whatever they do at once, no two have the same address,
// and all that fits is given.
func TestHundredAtOnce(t *testing.T) {
	const workers = 100
	m := newMemory()
	a, err := New(m, prefixes("10.96.0.0/25")...) // 125 Services
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	holder := map[netip.Addr]string{}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(w)))
			for round := range 30 {
				name := fmt.Sprintf("shop/s%d-%d", w, round)
				s := service(t, name, `{}`)
				release, err := a.Allocate(context.Background(), s, false)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				addr := held(s)[0]
				mu.Lock()
				if other, ok := holder[addr]; ok {
					t.Errorf("%s was given to %s and to %s", addr, other, name)
				}
				holder[addr] = name
				mu.Unlock()
				if round == 29 {
					return // keep the last
				}
				mu.Lock()
				delete(holder, addr)
				mu.Unlock()
				if random.IntN(2) == 0 {
					err = release()
				} else {
					err = a.Release(context.Background(), s)
				}
				if err != nil {
					t.Errorf("%s: release: %v", name, err)
				}
			}
		})
	}
	group.Wait()
	if len(holder) != workers || len(strings.Fields(m.String())) != workers {
		t.Errorf("%d hold an address, %d locks, want %d", len(holder), len(strings.Fields(m.String())), workers)
	}
}

// TestLastAddresses: as many at once as there is room for all succeed, and
// everybody who is too many is told so.
func TestLastAddresses(t *testing.T) {
	m := newMemory()
	a, err := New(m, prefixes("10.96.0.0/26")...) // 61 Services
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	got := map[string]int{}
	var group sync.WaitGroup
	for w := range 100 {
		group.Go(func() {
			_, err := a.Allocate(context.Background(), service(t, fmt.Sprintf("shop/s%d", w), `{}`), false)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				got["given"]++
			case strings.HasSuffix(err.Error(), fmt.Sprintf("failed to allocate a serviceIP for Service \"s%d\": range is full", w)):
				got["full"]++
			default:
				got[err.Error()]++
			}
		})
	}
	group.Wait()
	if got["given"] != 61 || got["full"] != 39 {
		t.Errorf("got %v", got)
	}
}

// TestRacersForOne: of many who choose the same address, one gets it.
func TestRacersForOne(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, only4...)
	var mu sync.Mutex
	won := 0
	var group sync.WaitGroup
	for w := range 50 {
		group.Go(func() {
			_, err := a.Allocate(context.Background(), service(t, fmt.Sprintf("shop/s%d", w), `{"clusterIP":"10.96.0.10"}`), false)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !strings.HasSuffix(err.Error(), "provided IP is already allocated") {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if won != 1 {
		t.Errorf("%d got it", won)
	}
}

func TestFailuresOfTheStorage(t *testing.T) {
	ctx := context.Background()
	boom := errors.New("boom")
	t.Run("second lock", func(t *testing.T) {
		m := newMemory()
		a := newAllocator(t, m, both46...)
		m.fail = func(verb, name string) error {
			if verb == "create" && strings.Contains(name, ":") {
				return boom
			}
			return nil
		}
		_, err := a.Allocate(ctx, service(t, "shop/orders", `{"ipFamilyPolicy":"RequireDualStack"}`), false)
		if !errors.Is(err, boom) || err.Error() != "lock address fd00:96::101: boom" {
			t.Errorf("got %v", err)
		}
		if m.String() != "" {
			t.Errorf("left %s", m)
		}
	})
	t.Run("chosen", func(t *testing.T) {
		m := newMemory()
		a := newAllocator(t, m, only4...)
		m.fail = func(verb, name string) error { return boom }
		_, err := a.Allocate(ctx, service(t, "shop/orders", `{"clusterIP":"10.96.0.10"}`), false)
		if !errors.Is(err, boom) || err.Error() != "lock address 10.96.0.10: boom" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("list", func(t *testing.T) {
		m := newMemory()
		a := newAllocator(t, m, only4...) // draws always the same
		if _, err := a.Allocate(ctx, service(t, "shop/a", `{}`), false); err != nil {
			t.Fatal(err)
		}
		m.fail = func(verb, name string) error {
			if verb == "list" {
				return boom
			}
			return nil
		}
		_, err := a.Allocate(ctx, service(t, "shop/b", `{}`), false)
		if !errors.Is(err, boom) || err.Error() != "list addresses: boom" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("release", func(t *testing.T) {
		m := newMemory()
		a := newAllocator(t, m, only4...)
		s := service(t, "shop/orders", `{}`)
		release, err := a.Allocate(ctx, s, false)
		if err != nil {
			t.Fatal(err)
		}
		m.fail = func(verb, name string) error { return boom }
		if err := release(); !errors.Is(err, boom) {
			t.Errorf("got %v", err)
		}
	})
}

// TestReleaseAfterTheRequest: a request that is cancelled still cleans up.
func TestReleaseAfterTheRequest(t *testing.T) {
	m := newMemory()
	a := newAllocator(t, m, only4...)
	ctx, cancel := context.WithCancel(context.Background())
	release, err := a.Allocate(ctx, service(t, "shop/orders", `{}`), false)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := release(); err != nil || m.String() != "" {
		t.Errorf("left %s (%v)", m, err)
	}
}

// TestUnsureWrite: a Service whose write failed for the writer but was stored
// keeps its addresses.
func TestUnsureWrite(t *testing.T) {
	services := corev1.Resource("services")
	boom := errors.New("boom")
	rows := []struct {
		name   string
		lookup func(s *corev1.Service) (*corev1.Service, error)
		keeps  bool
		err    error
	}{
		{"not stored", func(*corev1.Service) (*corev1.Service, error) { return nil, apierrors.NewNotFound(services, "orders") }, false, nil},
		{"stored", func(s *corev1.Service) (*corev1.Service, error) { return s, nil }, true, nil},
		{"another of that name", func(s *corev1.Service) (*corev1.Service, error) {
			s = s.DeepCopy()
			s.UID = "another"
			return s, nil
		}, false, nil},
		{"stored with another address", func(s *corev1.Service) (*corev1.Service, error) {
			s = s.DeepCopy()
			s.Spec.ClusterIPs = []string{"10.96.0.77"}
			return s, nil
		}, false, nil},
		{"cannot be known", func(*corev1.Service) (*corev1.Service, error) { return nil, boom }, true, boom},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			m := newMemory()
			a := newAllocator(t, m, only4...)
			s := service(t, "shop/orders", `{}`)
			a.Lookup = func(_ context.Context, namespace, name string) (*corev1.Service, error) {
				if namespace != "shop" || name != "orders" {
					t.Errorf("asked for %s/%s", namespace, name)
				}
				return row.lookup(s)
			}
			release, err := a.Allocate(context.Background(), s, false)
			if err != nil {
				t.Fatal(err)
			}
			if err := release(); !errors.Is(err, row.err) {
				t.Errorf("got %v, want %v", err, row.err)
			}
			if keeps := m.String() != ""; keeps != row.keeps {
				t.Errorf("keeps %t, want %t", keeps, row.keeps)
			}
		})
	}
}

// TestReleaseOnlyOnesOwn: a late release does not take the address from a
// Service that has it since, not even from one of the same name.
func TestReleaseOnlyOnesOwn(t *testing.T) {
	ctx := context.Background()
	m := newMemory()
	a := newAllocator(t, m, only4...)
	first := service(t, "shop/orders", `{"clusterIP":"10.96.0.10"}`)
	if _, err := a.Allocate(ctx, first, false); err != nil {
		t.Fatal(err)
	}
	if err := a.Release(ctx, first); err != nil || m.String() != "" {
		t.Fatalf("left %s (%v)", m, err)
	}
	second := service(t, "shop/orders", `{"clusterIP":"10.96.0.10"}`)
	second.UID = "second"
	if _, err := a.Allocate(ctx, second, false); err != nil {
		t.Fatal(err)
	}
	if err := a.Release(ctx, first); err != nil || m.String() != "10.96.0.10=shop/orders" {
		t.Errorf("left %q (%v)", m, err)
	}
	if err := a.Release(ctx, service(t, "shop/other", `{"clusterIP":"10.96.0.10","clusterIPs":["10.96.0.10"]}`)); err != nil || m.String() == "" {
		t.Errorf("left %q (%v)", m, err)
	}
	if err := a.Release(ctx, second); err != nil || m.String() != "" {
		t.Errorf("left %q (%v)", m, err)
	}
}

// TestUsualCaseDoesNotList: while at most half of the range is taken, nearly
// all Services get an address without the list being read.
func TestUsualCaseDoesNotList(t *testing.T) {
	m := newMemory()
	a, err := New(m, prefixes("10.96.0.0/20")...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		if _, err := a.Allocate(context.Background(), service(t, fmt.Sprintf("shop/s%d", i), `{}`), false); err != nil {
			t.Fatal(err)
		}
	}
	// About one is expected; a scan would be two thousand.
	if m.lists > 20 {
		t.Errorf("the list was read %d times for 2000 services", m.lists)
	}
}

func TestFromClient(t *testing.T) {
	ctx := context.Background()
	a, err := New(FromClient(fake.NewSimpleClientset().NetworkingV1().IPAddresses()), only4...)
	if err != nil {
		t.Fatal(err)
	}
	s := service(t, "shop/orders", `{"clusterIP":"10.96.0.10"}`)
	if _, err := a.Allocate(ctx, s, false); err != nil {
		t.Fatal(err)
	}
	_, err = a.Allocate(ctx, service(t, "shop/other", `{"clusterIP":"10.96.0.10"}`), false)
	if !apierrors.IsInvalid(err) {
		t.Errorf("got %v", err)
	}
	list, err := a.addresses.List(ctx)
	if err != nil || len(list) != 1 || list[0].Name != "10.96.0.10" {
		t.Errorf("got %v (%v)", list, err)
	}
	if err := a.Release(ctx, s); err != nil {
		t.Error(err)
	}
	if list, _ := a.addresses.List(ctx); len(list) != 0 {
		t.Errorf("left %v", list)
	}
}

// TestNormalizeTwice: it is done by the strategy and by the allocator.
func TestNormalizeTwice(t *testing.T) {
	specs := []string{
		`{}`, `{"clusterIP":"10.96.0.1"}`, `{"clusterIP":"None"}`, `{"type":"ExternalName","externalName":"a"}`,
		`{"clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1","fd00::1"],"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack"}`,
		`{"clusterIP":"10.96.0.2","clusterIPs":["10.96.0.1"]}`, `{"clusterIPs":["10.96.0.1"]}`,
	}
	for _, o := range append([]string{""}, specs...) {
		for _, n := range specs {
			var old *corev1.Service
			if o != "" {
				old = service(t, "shop/a", o)
				Normalize(old, nil)
			}
			s := service(t, "shop/a", n)
			Normalize(s, old)
			once := s.DeepCopy()
			Normalize(s, old)
			if !slices.Equal(once.Spec.ClusterIPs, s.Spec.ClusterIPs) || once.String() != s.String() {
				t.Errorf("%s after %s: %s, then %s", n, o, addresses(once), addresses(s))
			}
		}
	}
}
