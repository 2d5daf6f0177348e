// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/apiserver"
	"github.com/fairlead/fairlead/pki"
	"github.com/fairlead/fairlead/testnet"
)

const (
	// patience bounds what a test waits for; nothing that works takes so long.
	patience = 60 * time.Second
	// token is the service account's.
	token = "the-token-of-kube-system-fairlead"

	nodeName = "n1"
	domain   = "cluster.local"
	// healthPort is the health check node port of a Service, which is taken on the node, so that the agent has to make an Event.
	healthPort = 31999
)

var (
	nodeAddr  = netip.MustParseAddr("10.0.0.1")
	otherAddr = netip.MustParseAddr("10.0.0.2")
	dnsAddr   = netip.MustParseAddr("10.96.0.10")
	// eventsAddr is the ClusterIP of a Service by UDP.
	eventsAddr = netip.MustParseAddr("10.96.0.20")
	farPod     = netip.MustParseAddrPort("10.244.2.7:8080")
	apiAddr    = netip.MustParseAddrPort("10.0.0.1:6443")
)

// cluster is an API server, with a node's network namespace in which it can be reached.
type cluster struct {
	t      *testing.T
	world  *testnet.World
	node   *testnet.Host
	dir    string
	pki    *pki.PKI
	admin  kubernetes.Interface
	policy *policy
	log    *lines // of the agents
}

// startCluster starts the API server and makes the objects that an agent needs to do everything it can.
func startCluster(t *testing.T, roles ...rbacv1.ClusterRole) *cluster {
	t.Helper()
	w := testnet.New(t)
	node, peer := w.Host(nodeName), w.Host("peer")
	w.Cable(node, "eth0", peer, "eth0")
	node.Addr("eth0", nodeAddr.String()+"/24")
	peer.Addr("eth0", otherAddr.String()+"/24", farPod.Addr().String()+"/32") // the other node, and a pod on it
	peer.Route("10.244.1.0/24", nodeAddr.String(), "eth0")
	peer.Echo("tcp", farPod.String())
	peer.Echo("udp", farPod.String())
	c := &cluster{t: t, world: w, node: node, dir: t.TempDir(), policy: newPolicy(roles), log: newLines()}
	var err error
	c.pki, err = pki.Ensure(filepath.Join(c.dir, "pki"), pki.Options{Addresses: []netip.Addr{apiAddr.Addr()}})
	c.ok(err)
	behind, err := net.Listen("tcp", "127.0.0.1:0")
	c.ok(err)
	host := "https://" + behind.Addr().String()
	server, err := apiserver.New(t.Context(), apiserver.Config{
		StateDir: c.dir, Listeners: []net.Listener{behind}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		PKI: c.pki, Logger: slog.New(slog.DiscardHandler),
	})
	c.ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("API server: %v", err)
		}
	})
	select {
	case <-server.Ready():
	case <-time.After(patience):
		t.Fatal("the API server does not get ready")
	}
	pair, err := c.pki.Client("admin", user.SystemPrivilegedGroup)
	c.ok(err)
	config := &rest.Config{Host: host, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: c.pki.CA, CertData: pair.Cert, KeyData: pair.Key}}
	c.admin, err = kubernetes.NewForConfig(config)
	c.ok(err)
	c.serveFront(config)
	c.populate()
	return c
}

func (c *cluster) ok(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// serveFront serves the API in the node's network namespace to the service account. It is the part of an API server that says who may do what, made of the
// filters that kube-apiserver is made of; everything allowed is done by the API server behind.
func (c *cluster) serveFront(config *rest.Config) {
	transport, err := rest.TransportFor(config)
	c.ok(err)
	target, err := url.Parse(config.Host)
	c.ok(err)
	quiet := log.New(io.Discard, "", 0)
	var handler http.Handler = &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1, ErrorLog: quiet,
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Header.Del("Authorization") },
	}
	handler = c.policy.withoutStreaming(handler)
	handler = filters.WithAuthorization(handler, c.policy, scheme.Codecs)
	handler = filters.WithAuthentication(handler, bearertoken.New(authenticator.TokenFunc(account)), filters.Unauthorized(scheme.Codecs), nil, nil)
	handler = filters.WithRequestInfo(handler, &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")})
	l, err := c.node.NS.Listen("tcp", apiAddr.String())
	c.ok(err)
	cert, err := tls.X509KeyPair(c.pki.Server.Cert, c.pki.Server.Key)
	c.ok(err)
	srv := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ErrorLog: quiet, ReadHeaderTimeout: patience}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	c.t.Cleanup(func() { _ = srv.Close() })
}

// account knows one token, as the API server knows those that it has given to pods.
func account(_ context.Context, got string) (*authenticator.Response, bool, error) {
	if got != token {
		return nil, false, nil
	}
	return &authenticator.Response{User: &user.DefaultInfo{
		Name:   "system:serviceaccount:kube-system:fairlead",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", user.AllAuthenticated},
	}}, true, nil
}

// populate makes two nodes, a Service with an endpoint on the other one, and one whose health check node port is taken.
func (c *cluster) populate() {
	ctx := c.t.Context()
	for i, addr := range []netip.Addr{nodeAddr, otherAddr} {
		name, cidr := fmt.Sprintf("n%d", i+1), fmt.Sprintf("10.244.%d.0/24", i+1)
		n, err := c.admin.CoreV1().Nodes().Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		}, metav1.CreateOptions{})
		c.ok(err)
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr.String()}}
		_, err = c.admin.CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
		c.ok(err)
	}
	for _, name := range []string{metav1.NamespaceSystem, metav1.NamespaceDefault} {
		_, err := c.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			c.ok(err)
		}
	}
	c.service(metav1.NamespaceSystem, "kube-dns", func(s *corev1.ServiceSpec) {
		s.ClusterIP = dnsAddr.String()
		s.Ports = []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53}}
	})
	c.service(metav1.NamespaceDefault, "orders", func(*corev1.ServiceSpec) {})
	c.service(metav1.NamespaceDefault, "events", func(s *corev1.ServiceSpec) {
		s.ClusterIP, s.Ports[0].Protocol = eventsAddr.String(), corev1.ProtocolUDP
	})
	l, err := c.node.NS.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", healthPort))
	c.ok(err)
	c.t.Cleanup(func() { l.Close() })
	c.service(metav1.NamespaceDefault, "front", func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalTrafficPolicy, s.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, healthPort
	})
}

func (c *cluster) service(namespace, name string, edit func(*corev1.ServiceSpec)) {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}
	edit(&s.Spec)
	_, err := c.admin.CoreV1().Services(namespace).Create(c.t.Context(), s, metav1.CreateOptions{})
	c.ok(err)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{farPod.Addr().String()}, NodeName: ptr.To("n2")}},
	}
	for _, p := range s.Spec.Ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Protocol: ptr.To(cmp.Or(p.Protocol, corev1.ProtocolTCP)), Port: ptr.To(cmp.Or(p.TargetPort.IntVal, p.Port))})
	}
	_, err = c.admin.DiscoveryV1().EndpointSlices(namespace).Create(c.t.Context(), slice, metav1.CreateOptions{})
	c.ok(err)
}

// forgetReady takes back what an agent has said of its node, so that the next one has to say it again.
func (c *cluster) forgetReady() {
	c.t.Helper()
	n, err := c.admin.CoreV1().Nodes().Get(c.t.Context(), nodeName, metav1.GetOptions{})
	c.ok(err)
	n.Spec.Taints = []corev1.Taint{{Key: "fairlead.io/agent-not-ready", Effect: corev1.TaintEffectNoSchedule}}
	n, err = c.admin.CoreV1().Nodes().Update(c.t.Context(), n, metav1.UpdateOptions{})
	c.ok(err)
	n.Status.Conditions = nil
	_, err = c.admin.CoreV1().Nodes().UpdateStatus(c.t.Context(), n, metav1.UpdateOptions{})
	c.ok(err)
}

// permission is one verb on one resource; subresources have a slash.
type permission struct{ group, resource, verb string }

func (p permission) String() string {
	return strings.TrimSuffix(p.verb+" "+p.resource+"."+p.group, ".")
}

// policy is Kubernetes' RBAC authorizer over roles that can be changed. It notes what is asked.
type policy struct {
	*rbac.RBACAuthorizer
	mu       sync.Mutex
	roles    []rbacv1.ClusterRole
	asked    map[permission]bool // and whether it was allowed
	streams  bool                // lists may be streamed
	changed  chan struct{}       // closed at the next question
	bindings []*rbacv1.ClusterRoleBinding
}

// newPolicy has the roles that every cluster starts with, beside those given.
func newPolicy(roles []rbacv1.ClusterRole) *policy {
	p := &policy{roles: roles, asked: map[permission]bool{}, streams: true, changed: make(chan struct{})}
	for _, b := range bootstrappolicy.ClusterRoleBindings() {
		p.bindings = append(p.bindings, &b)
	}
	p.bindings = append(p.bindings, &rbacv1.ClusterRoleBinding{
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "fairlead"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: "fairlead"}},
	})
	p.RBACAuthorizer = rbac.New(p, p, p, p)
	return p
}

// GetRole, ListRoleBindings, GetClusterRole and ListClusterRoleBindings are what the authorizer reads.
func (p *policy) GetRole(_ context.Context, namespace, name string) (*rbacv1.Role, error) {
	return nil, apierrors.NewNotFound(rbacv1.Resource("roles"), name)
}

func (p *policy) ListRoleBindings(context.Context, string) ([]*rbacv1.RoleBinding, error) {
	return nil, nil
}

func (p *policy) GetClusterRole(_ context.Context, name string) (*rbacv1.ClusterRole, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := slices.Concat(p.roles, bootstrappolicy.ClusterRoles())
	if i := slices.IndexFunc(all, func(r rbacv1.ClusterRole) bool { return r.Name == name }); i >= 0 {
		return &all[i], nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource("clusterroles"), name)
}

func (p *policy) ListClusterRoleBindings(context.Context) ([]*rbacv1.ClusterRoleBinding, error) {
	return p.bindings, nil
}

// Authorize implements authorizer.Authorizer.
func (p *policy) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	decision, reason, err := p.RBACAuthorizer.Authorize(ctx, a)
	if a.IsResourceRequest() {
		resource := a.GetResource()
		if sub := a.GetSubresource(); sub != "" {
			resource += "/" + sub
		}
		p.mu.Lock()
		p.asked[permission{a.GetAPIGroup(), resource, a.GetVerb()}] = decision == authorizer.DecisionAllow
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
	return decision, reason, err
}

// set changes the roles, and whether lists may be streamed, and forgets what was asked.
func (p *policy) set(streams bool, roles ...rbacv1.ClusterRole) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roles, p.streams, p.asked = roles, streams, map[permission]bool{}
}

// wait returns once ok is satisfied with what was asked.
func (p *policy) wait(ctx context.Context, ok func(map[permission]bool) bool) bool {
	for {
		p.mu.Lock()
		good, changed := ok(p.asked), p.changed
		p.mu.Unlock()
		if good {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// withoutStreaming answers as API servers do that have the feature WatchList off: then a list is a list.
func (p *policy) withoutStreaming(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		streams := p.streams
		p.mu.Unlock()
		if !streams && r.URL.Query().Has("sendInitialEvents") {
			status := apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", nil).Status()
			status.Message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422,"message":%q}`, status.Message)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// lines are what a program prints, which can be waited for.
type lines struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

func newLines() *lines { return &lines{changed: make(chan struct{})} }

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait returns whether all texts are there before ctx ends.
func (l *lines) wait(ctx context.Context, texts ...string) bool {
	for {
		l.mu.Lock()
		have, changed := l.text.String(), l.changed
		l.mu.Unlock()
		if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(have, s) }) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}
