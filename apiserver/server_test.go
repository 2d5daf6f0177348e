// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fairlead/fairlead/pki"
)

// TestRestart checks that what was stored is there after a restart, with the
// same versions, and that a watch can go on where it stopped.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	first, err := start(dir)
	must(t, err)
	made, err := first.admin(t).CoreV1().ConfigMaps("default").Create(t.Context(), configMap("kept", map[string]string{"a": "b"}), metav1.CreateOptions{})
	must(t, err)
	svc, err := first.admin(t).CoreV1().Services("default").Create(t.Context(), service("s"), metav1.CreateOptions{})
	must(t, err)
	must(t, first.stop())

	second := started(t, dir)
	c := second.admin(t)
	got, err := c.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{})
	must(t, err)
	if got.Data["a"] != "b" || got.UID != made.UID || got.ResourceVersion != made.ResourceVersion {
		t.Errorf("after restart: %v, before: %v", got, made)
	}
	again, err := c.CoreV1().Services("default").Get(t.Context(), "s", metav1.GetOptions{})
	must(t, err)
	if again.Spec.ClusterIP != svc.Spec.ClusterIP || locked(t, c, svc.Spec.ClusterIP) != "default/s" {
		t.Errorf("after restart %s, before %s", again.Spec.ClusterIP, svc.Spec.ClusterIP)
	}
	list, err := c.CoreV1().ConfigMaps("").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	w, err := c.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	must(t, err)
	defer w.Stop()
	_, err = c.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("new", nil), metav1.CreateOptions{})
	must(t, err)
	if event := next(t, w); event.Object.(*corev1.ConfigMap).Name != "new" {
		t.Errorf("got %v", event)
	}
}

// TestInUse checks that a state directory has one server, and can have another
// when that has ended.
func TestInUse(t *testing.T) {
	// A long path too: the name of a unix socket may have 107 bytes.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	first, err := start(dir)
	must(t, err)
	if _, err := start(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("a second server: %v", err)
	}
	// The first is as well as it was.
	_, err = first.admin(t).CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	must(t, err)
	must(t, first.stop())
	started(t, dir)
}

// TestEarlyEnd checks that a server can be told to end at any moment of its
// start.
func TestEarlyEnd(t *testing.T) {
	authority, err := pki.Ensure(t.TempDir(), pki.Options{})
	must(t, err)
	for _, after := range []time.Duration{0, 10, 30, 60, 100, 150} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		server, err := New(t.Context(), Config{StateDir: t.TempDir(), Listeners: []net.Listener{listener}, ServiceCIDRs: testCIDRs, PKI: authority})
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		if err := server.Run(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended after %d ms: %v", after, err)
		}
		cancel()
	}
}

// TestRangesChange checks that the default ServiceCIDR tells the ranges that
// the server was started with last.
func TestRangesChange(t *testing.T) {
	dir := t.TempDir()
	first, err := start(dir)
	must(t, err)
	must(t, first.stop())
	second := started(t, dir, netip.MustParsePrefix("10.97.0.0/16"))
	cidr, err := second.admin(t).NetworkingV1().ServiceCIDRs().Get(t.Context(), defaultServiceCIDR, metav1.GetOptions{})
	must(t, err)
	if len(cidr.Spec.CIDRs) != 1 || cidr.Spec.CIDRs[0] != "10.97.0.0/16" || len(cidr.Status.Conditions) != 1 {
		t.Errorf("got %v %v", cidr.Spec, cidr.Status)
	}
}

func TestConfigErrors(t *testing.T) {
	authority, err := pki.Ensure(t.TempDir(), pki.Options{})
	must(t, err)
	four, six := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")
	for _, row := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no pki", func(c *Config) { c.PKI = nil }, "there is no PKI"},
		{"no listener", func(c *Config) { c.Listeners = nil }, "there is no listener"},
		{"no range", func(c *Config) { c.ServiceCIDRs = nil }, "one service CIDR or two, not 0"},
		{"three ranges", func(c *Config) { c.ServiceCIDRs = []netip.Prefix{four, six, four} }, "one service CIDR or two, not 3"},
		{"two of a family", func(c *Config) { c.ServiceCIDRs = []netip.Prefix{four, four} }, "different families"},
		{"nowhere to store", func(c *Config) { c.StateDir = "" }, "neither a state directory nor an external etcd"},
		{"a file in the way", func(c *Config) {
			c.StateDir = filepath.Join(t.TempDir(), "file")
			must(t, os.WriteFile(c.StateDir, nil, 0o600))
		}, "create etcd directory"},
		{"a tiny range", func(c *Config) { c.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/32")} }, "10.96.0.0/32"},
	} {
		t.Run(row.name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			config := Config{StateDir: t.TempDir(), Listeners: []net.Listener{listener}, ServiceCIDRs: []netip.Prefix{four}, PKI: authority}
			row.change(&config)
			server, err := New(t.Context(), config)
			if err == nil {
				server.Close()
			}
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %s", err, row.want)
			}
		})
	}
}

// TestSeveralListeners checks that a server serves on all its listeners, and
// to its own process.
func TestSeveralListeners(t *testing.T) {
	authority, err := pki.Ensure(t.TempDir(), pki.Options{})
	must(t, err)
	var listeners []net.Listener
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		listeners = append(listeners, l)
	}
	server, err := New(t.Context(), Config{
		StateDir: t.TempDir(), Listeners: listeners, ServiceCIDRs: testCIDRs, PKI: authority,
		AdvertiseAddr: netip.MustParseAddrPort("192.0.2.1:6443"), Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	<-server.Ready()
	for _, l := range listeners {
		i := &instance{pki: authority, url: "https://" + l.Addr().String()}
		_, err := i.admin(t).CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
		must(t, err)
	}
	local, err := kubernetes.NewForConfig(server.LoopbackConfig())
	must(t, err)
	_, err = local.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("m", nil), metav1.CreateOptions{})
	must(t, err)
	raw, err := local.Discovery().RESTClient().Get().AbsPath("/api").Do(t.Context()).Raw()
	must(t, err)
	if !strings.Contains(string(raw), "192.0.2.1:6443") {
		t.Errorf("discovery does not name the advertised address: %s", raw)
	}
	cancel()
	must(t, <-done)
	for _, l := range listeners {
		if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
			conn.Close()
			t.Errorf("%v still accepts", l.Addr())
		}
	}
}

// TestDiscovery checks names, short names and categories, plain and
// aggregated.
func TestDiscovery(t *testing.T) {
	i, err := shared()
	must(t, err)
	c := i.admin(t).Discovery()
	_, lists, err := c.ServerGroupsAndResources()
	must(t, err)
	got := map[string]metav1.APIResource{}
	for _, list := range lists {
		for _, r := range list.APIResources {
			got[list.GroupVersion+" "+r.Name] = r
		}
	}
	for _, row := range []struct{ key, kind, short, singular, categories, verbs string }{
		{"v1 services", "Service", "svc", "service", "all", "create delete deletecollection get list patch update watch"},
		{"v1 pods", "Pod", "po", "pod", "all", "create delete deletecollection get list patch update watch"},
		{"v1 pods/binding", "Binding", "", "", "", "create"},
		{"v1 pods/eviction", "Eviction", "", "", "", "create"},
		{"v1 pods/status", "Pod", "", "", "", "get patch update"},
		{"v1 nodes", "Node", "no", "node", "", "create delete deletecollection get list patch update watch"},
		{"v1 namespaces", "Namespace", "ns", "namespace", "", "create delete get list patch update watch"},
		{"v1 namespaces/finalize", "Namespace", "", "", "", "update"},
		{"v1 configmaps", "ConfigMap", "cm", "configmap", "", "create delete deletecollection get list patch update watch"},
		{"v1 events", "Event", "ev", "event", "", "create delete deletecollection get list patch update watch"},
		{"apps/v1 deployments", "Deployment", "deploy", "deployment", "all", "create delete deletecollection get list patch update watch"},
		{"apps/v1 deployments/scale", "Scale", "", "", "", "get patch update"},
		{"apps/v1 replicasets", "ReplicaSet", "rs", "replicaset", "all", "create delete deletecollection get list patch update watch"},
		{"discovery.k8s.io/v1 endpointslices", "EndpointSlice", "", "endpointslice", "", "create delete deletecollection get list patch update watch"},
		{"networking.k8s.io/v1 ipaddresses", "IPAddress", "ip", "ipaddress", "", "create delete deletecollection get list patch update watch"},
		{"networking.k8s.io/v1 servicecidrs", "ServiceCIDR", "", "servicecidr", "", "create delete deletecollection get list patch update watch"},
		{"networking.k8s.io/v1 servicecidrs/status", "ServiceCIDR", "", "", "", "get patch update"},
		{"coordination.k8s.io/v1 leases", "Lease", "", "lease", "", "create delete deletecollection get list patch update watch"},
	} {
		r, ok := got[row.key]
		if !ok {
			t.Errorf("%s is not served", row.key)
			continue
		}
		if r.Kind != row.kind || strings.Join(r.ShortNames, " ") != row.short || row.singular != "" && r.SingularName != row.singular ||
			strings.Join(r.Categories, " ") != row.categories || strings.Join(r.Verbs, " ") != row.verbs {
			t.Errorf("%s: %s %q %q %q %q", row.key, r.Kind, r.ShortNames, r.SingularName, r.Categories, r.Verbs)
		}
	}
	info, err := c.ServerVersion()
	must(t, err)
	if info.Major != "1" || !strings.HasPrefix(info.GitVersion, "v1."+info.Minor) {
		t.Errorf("version %+v", info)
	}
}

// TestOpenAPI checks that the schema is the served kinds' and says nothing of
// internal versions.
func TestOpenAPI(t *testing.T) {
	i, err := shared()
	must(t, err)
	c := i.admin(t).Discovery()
	v2, err := c.RESTClient().Get().AbsPath("/openapi/v2").Do(t.Context()).Raw()
	must(t, err)
	v3, err := c.OpenAPIV3().Paths()
	must(t, err)
	for _, path := range []string{"api/v1", "apis/apps/v1", "apis/discovery.k8s.io/v1", "apis/networking.k8s.io/v1", "apis/coordination.k8s.io/v1"} {
		group, ok := v3[path]
		if !ok {
			t.Errorf("no OpenAPI v3 of %s", path)
			continue
		}
		schema, err := group.Schema("application/json")
		must(t, err)
		if strings.Contains(string(schema), "__internal") {
			t.Errorf("%s speaks of internal versions", path)
		}
	}
	var document struct {
		Info        struct{ Version string }
		Definitions map[string]struct {
			GVK []metav1.GroupVersionKind `json:"x-kubernetes-group-version-kind"`
		}
	}
	must(t, json.Unmarshal(v2, &document))
	svc := document.Definitions["io.k8s.api.core.v1.Service"]
	if len(svc.GVK) != 1 || svc.GVK[0].Kind != "Service" || svc.GVK[0].Version != "v1" {
		t.Errorf("kinds of Service: %v", svc.GVK)
	}
	if strings.Contains(string(v2), "__internal") {
		t.Error("OpenAPI v2 speaks of internal versions")
	}
}

// TestEventsExpire checks that events, and nothing else, have a lease in the
// database.
func TestEventsExpire(t *testing.T) {
	i, ns := sharedServer(t)
	c := i.admin(t)
	event := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, InvolvedObject: corev1.ObjectReference{Namespace: ns}}
	_, err := c.CoreV1().Events(ns).Create(t.Context(), event, metav1.CreateOptions{})
	must(t, err)
	_, err = c.CoreV1().ConfigMaps(ns).Create(t.Context(), configMap("m", nil), metav1.CreateOptions{})
	must(t, err)
	database, err := clientv3.New(clientv3.Config{Endpoints: []string{i.server.etcd.endpoint}})
	must(t, err)
	defer database.Close()
	for key, leased := range map[string]bool{"/registry/events/" + ns + "/e": true, "/registry/configmaps/" + ns + "/m": false} {
		got, err := database.Get(t.Context(), key)
		must(t, err)
		if len(got.Kvs) != 1 || (got.Kvs[0].Lease != 0) != leased {
			t.Errorf("%s: %v", key, got.Kvs)
			continue
		}
		if !strings.HasPrefix(string(got.Kvs[0].Value), "k8s\x00") {
			t.Errorf("%s is not stored as protobuf", key)
		}
		if !leased {
			continue
		}
		ttl, err := database.TimeToLive(t.Context(), clientv3.LeaseID(got.Kvs[0].Lease))
		must(t, err)
		if ttl.GrantedTTL < eventTTL || ttl.GrantedTTL > 2*eventTTL {
			t.Errorf("an event lives %d s", ttl.GrantedTTL)
		}
	}
}

// TestLargeObjects checks that an object as large as the API allows can be stored
// and one that is larger is refused with a reason.
func TestLargeObjects(t *testing.T) {
	i, ns := sharedServer(t)
	maps := i.admin(t).CoreV1().ConfigMaps(ns)
	_, err := maps.Create(t.Context(), configMap("large", map[string]string{"x": strings.Repeat("x", 1<<20-2)}), metav1.CreateOptions{})
	must(t, err)
	_, err = maps.Create(t.Context(), configMap("larger", map[string]string{"x": strings.Repeat("x", 1<<20+1)}), metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) && !apierrors.IsRequestEntityTooLargeError(err) {
		t.Errorf("larger than allowed: %v", err)
	}
}
