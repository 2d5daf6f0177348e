// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/fairlead/fairlead/pki"
)

// web is a plain HTTP client, with a certificate or without.
func web(t testing.TB, ca []byte, pair *pki.Pair) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	config := &tls.Config{RootCAs: roots}
	if pair != nil {
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		must(t, err)
		config.Certificates = []tls.Certificate{cert}
	}
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestPaths checks what is answered to whom, besides resources.
func TestPaths(t *testing.T) {
	i, err := shared()
	must(t, err)
	stranger, err := pki.Ensure(t.TempDir(), pki.Options{})
	must(t, err)
	pair := func(p *pki.PKI, cn string, orgs ...string) *http.Client {
		got, err := p.Client(cn, orgs...)
		must(t, err)
		return web(t, i.pki.CA, &got)
	}
	who := map[string]*http.Client{
		"nobody":   web(t, i.pki.CA, nil),
		"anybody":  pair(i.pki, "somebody"),
		"node":     pair(i.pki, "system:node:n1", "system:nodes"),
		"admin":    pair(i.pki, "admin", "system:masters"),
		"stranger": pair(stranger, "admin", "system:masters"),
	}
	for _, row := range []struct {
		path  string
		codes map[string]int
	}{
		{"/livez", map[string]int{"nobody": 200, "anybody": 200, "node": 200, "admin": 200}},
		{"/readyz", map[string]int{"nobody": 200, "anybody": 200, "node": 200, "admin": 200}},
		{"/healthz", map[string]int{"nobody": 200, "anybody": 200, "node": 200, "admin": 200}},
		{"/version", map[string]int{"nobody": 401, "anybody": 200, "node": 200, "admin": 200, "stranger": 401}},
		{"/api", map[string]int{"nobody": 401, "anybody": 200, "node": 200, "admin": 200}},
		{"/apis/apps/v1", map[string]int{"nobody": 401, "anybody": 200, "node": 200, "admin": 200}},
		{"/openapi/v3", map[string]int{"nobody": 401, "anybody": 200, "node": 200, "admin": 200}},
		{"/metrics", map[string]int{"nobody": 401, "anybody": 403, "node": 403, "admin": 200}},
		{"/debug/pprof/", map[string]int{"nobody": 401, "anybody": 403, "node": 403, "admin": 200}},
		{"/apifoo", map[string]int{"nobody": 401, "anybody": 403, "admin": 404}},
		{"/api/v1/services", map[string]int{"nobody": 401, "anybody": 403, "node": 200, "admin": 200, "stranger": 401}},
		{"/api/v1/secrets", map[string]int{"nobody": 401, "anybody": 403, "node": 403, "admin": 404}},
	} {
		for name, want := range row.codes {
			resp, err := who[name].Get(i.url + row.path)
			if err != nil {
				t.Errorf("%s %s: %v", name, row.path, err)
				continue
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s %s: %d, want %d: %.200s", name, row.path, resp.StatusCode, want, body)
			}
		}
	}
	if resp, err := http.Get(strings.Replace(i.url, "https", "http", 1) + "/livez"); err == nil {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			t.Error("served without TLS")
		}
	}
}

// TestNode checks what a node may do: its own work and no other's.
func TestNode(t *testing.T) {
	i, ns := sharedServer(t)
	admin := i.admin(t)
	me, other := "n1-"+ns, "n2-"+ns
	node := i.client(t, userNodePrefix+me, groupNodes)
	for name, on := range map[string]string{"mine": me, "others": other, "free": ""} {
		_, err := admin.CoreV1().Pods(ns).Create(t.Context(), pod(name, on, "c"), metav1.CreateOptions{})
		must(t, err)
	}
	t.Cleanup(func() { admin.CoreV1().Nodes().Delete(context.Background(), me, metav1.DeleteOptions{}) })
	makeNode := func(name string) error {
		_, err := node.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	makeLease := func(namespace, name string) error {
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}
		_, err := node.CoordinationV1().Leases(namespace).Create(t.Context(), lease, metav1.CreateOptions{})
		return err
	}
	setStatus := func(name string) error {
		patch := []byte(`{"status":{"message":"hello"}}`)
		_, err := node.CoreV1().Pods(ns).Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	}
	cordon := func(name string) error {
		patch := []byte(`{"metadata":{"labels":{"a":"b"}}}`)
		_, err := node.CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	remove := func(name string) error {
		zero := int64(0)
		return node.CoreV1().Pods(ns).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
	}
	list := func(read func(kubernetes.Interface) error) func() error { return func() error { return read(node) } }
	for _, row := range []struct {
		name string
		do   func() error
		want string // "" is allowed
	}{
		{"read services", list(func(c kubernetes.Interface) error {
			_, err := c.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
			return err
		}), ""},
		{"read slices", list(func(c kubernetes.Interface) error {
			_, err := c.DiscoveryV1().EndpointSlices("").List(t.Context(), metav1.ListOptions{})
			return err
		}), ""},
		{"read nodes", list(func(c kubernetes.Interface) error {
			_, err := c.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
			return err
		}), ""},
		{"write a service", func() error {
			_, err := node.CoreV1().Services(ns).Create(t.Context(), service("s"), metav1.CreateOptions{})
			return err
		}, `services is forbidden: User "system:node:` + me + `" cannot create resource "services" in API group "" in the namespace "` + ns + `": nodes have no such permission`},
		{"make a pod", func() error {
			_, err := node.CoreV1().Pods(ns).Create(t.Context(), pod("p", me, "c"), metav1.CreateOptions{})
			return err
		}, "nodes have no such permission"},
		{"bind a pod", func() error {
			b := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "free"}, Target: corev1.ObjectReference{Name: me}}
			return node.CoreV1().Pods(ns).Bind(t.Context(), b, metav1.CreateOptions{})
		}, "nodes have no such permission"},
		{"make its node", func() error { return makeNode(me) }, ""},
		{"make another node", func() error { return makeNode(other) }, "a node may write only the object of its own name"},
		{"change its node", func() error { return cordon(me) }, ""},
		{"change another node", func() error { return cordon(other) }, "a node may change only the object of its own name"},
		{"renew its lease", func() error { return makeLease(corev1.NamespaceNodeLease, me) }, ""},
		{"another's lease", func() error { return makeLease(corev1.NamespaceNodeLease, other) }, "a node may write only the object of its own name"},
		{"a lease elsewhere", func() error { return makeLease(ns, me) }, "in the namespace kube-node-lease only"},
		{"its pod's status", func() error { return setStatus("mine") }, ""},
		{"another's pod's status", func() error { return setStatus("others") }, `the pod is on node "` + other + `"`},
		{"a free pod's status", func() error { return setStatus("free") }, `the pod is on node ""`},
		{"delete its pod", func() error { return remove("mine") }, ""},
		{"delete another's pod", func() error { return remove("others") }, `the pod is on node "` + other + `"`},
		{"delete all pods", func() error {
			return node.CoreV1().Pods(ns).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
		}, "nodes have no such permission"},
		{"record an event", func() error {
			event := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, InvolvedObject: corev1.ObjectReference{Namespace: ns}}
			_, err := node.CoreV1().Events(ns).Create(t.Context(), event, metav1.CreateOptions{})
			return err
		}, ""},
		{"a member without a name", func() error {
			_, err := i.client(t, "somebody", groupNodes).CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
			return err
		}, "a member of system:nodes has to be named system:node:NAME"},
		{"somebody", func() error {
			_, err := i.client(t, "somebody", "people").CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
			return err
		}, "only system:masters and system:nodes have permissions in this cluster"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := row.do()
			if row.want == "" {
				must(t, err)
				return
			}
			if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
		})
	}
}

func TestSelfReview(t *testing.T) {
	i, ns := sharedServer(t)
	ask := func(c kubernetes.Interface, verb, resource string) bool {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: ns, Verb: verb, Resource: resource}}}
		got, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), review, metav1.CreateOptions{})
		must(t, err)
		return got.Status.Allowed
	}
	for _, row := range []struct {
		client         kubernetes.Interface
		verb, resource string
		want           bool
	}{
		{i.admin(t), "delete", "services", true},
		{i.client(t, "system:node:n1", groupNodes), "list", "services", true},
		{i.client(t, "system:node:n1", groupNodes), "delete", "services", false},
		{i.client(t, "somebody"), "list", "services", false},
	} {
		if got := ask(row.client, row.verb, row.resource); got != row.want {
			t.Errorf("%s %s: %v", row.verb, row.resource, got)
		}
	}
	_, err := i.admin(t).AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{}, metav1.CreateOptions{})
	if !apierrors.IsBadRequest(err) {
		t.Errorf("an empty review: %v", err)
	}
}
