// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/apiserver"
	"github.com/fairlead/fairlead/control"
	"github.com/fairlead/fairlead/pki"
)

// patience bounds what a test waits for; nothing that works takes so long.
const patience = 60 * time.Second

// cluster is the real API server, the controllers, and a runner that does for pods what a node does, but without
// processes: a bound pod gets an address and becomes ready, a pod that is deleted ends.
type cluster struct {
	server *apiserver.Server
	client kubernetes.Interface
	log    *log
	runner *runner
	dns    []netip.Addr // of kube-dns, if not the usual ones

	stopServer  context.CancelFunc
	served      chan error
	stopControl context.CancelFunc
	controlled  chan error
}

// log keeps what was logged, for failures.
type log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

var (
	shared     *cluster
	sharedOnce sync.Once
	sharedErr  error
)

func TestMain(m *testing.M) {
	klog.SetLogger(klog.New(nil)) // the library's own log is not about what is tested here
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	sharedDir = dir
	code := m.Run()
	if shared != nil {
		shared.stop()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

var sharedDir string

// sharedCluster is one cluster for all tests that keep to a namespace of their own. They mostly wait, so they run
// side by side.
func sharedCluster(t *testing.T) *cluster {
	t.Helper()
	t.Parallel()
	sharedOnce.Do(func() {
		if shared, sharedErr = startCluster(sharedDir, prefixes("10.96.0.0/16"), prefixes("10.244.0.0/16")); sharedErr == nil {
			sharedErr = shared.addNodes("n1", "n2", "n3")
		}
	})
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

// newCluster is a cluster of a test's own.
func newCluster(t *testing.T, services, pods []netip.Prefix, nodes ...string) *cluster {
	t.Helper()
	t.Parallel()
	c, err := startCluster(t.TempDir(), services, pods)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	if err := c.addNodes(nodes...); err != nil {
		t.Fatal(err)
	}
	return c
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func startCluster(dir string, services, pods []netip.Prefix) (*cluster, error) {
	authority, err := pki.Ensure(filepath.Join(dir, "pki"), pki.Options{})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &cluster{log: &log{}, stopServer: cancel, served: make(chan error, 1)}
	c.server, err = apiserver.New(ctx, apiserver.Config{
		StateDir: dir, Listeners: []net.Listener{listener}, ServiceCIDRs: services, PKI: authority,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		cancel()
		return nil, err
	}
	go func() { c.served <- c.server.Run(ctx) }()
	select {
	case <-c.server.Ready():
	case err := <-c.served:
		cancel()
		return nil, fmt.Errorf("server ended before it was ready: %w", err)
	case <-time.After(patience):
		cancel()
		return nil, errors.New("server is not ready")
	}
	if c.client, err = kubernetes.NewForConfig(c.server.LoopbackConfig()); err != nil {
		cancel()
		return nil, err
	}
	c.runner = startRunner(ctx, c.client)
	c.startControl(services, pods)
	return c, nil
}

func newLogger(to io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(to, nil)) }

// refuse is a network on which nobody answers; it tells of each try.
func refuse(tried chan<- struct{}) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		select {
		case tried <- struct{}{}:
		default:
		}
		return nil, errors.New("nobody is there")
	}
}

// startControl runs the controllers until stopControl.
func (c *cluster) startControl(services, pods []netip.Prefix) {
	ctx, cancel := context.WithCancel(context.Background())
	c.stopControl, c.controlled = cancel, make(chan error, 1)
	go func() {
		c.controlled <- control.Run(ctx, control.Options{
			Config: c.server.LoopbackConfig(), ServiceCIDRs: services, PodCIDRs: pods,
			APIAddr:   netip.MustParseAddrPort("172.30.0.1:6443"),
			DNSAddrs:  c.dns,
			NodeGrace: time.Hour, // no node renews a Lease here
			Logger:    newLogger(c.log),
		})
	}()
}

func (c *cluster) haltControl() error {
	c.stopControl()
	return <-c.controlled
}

func (c *cluster) stop() {
	c.stopControl()
	<-c.controlled
	c.stopServer()
	<-c.served
}

// addNodes registers nodes that are ready.
func (c *cluster) addNodes(names ...string) error {
	for i, name := range names {
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelTopologyZone: "zone-" + name}},
			Status: corev1.NodeStatus{
				Addresses:   []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("172.30.0.%d", 11+i)}},
				Allocatable: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("5000")},
				Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
			},
		}
		if _, err := c.client.CoreV1().Nodes().Create(context.Background(), node, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// runner is the nodes.
type runner struct {
	client  kubernetes.Interface
	factory informers.SharedInformerFactory
	pods    cache.SharedIndexInformer

	mu      sync.Mutex
	next    uint32
	held    map[string]bool // namespaces whose pods do not become ready
	changed chan struct{}   // closed at the next change of anything
}

func startRunner(ctx context.Context, client kubernetes.Interface) *runner {
	r := &runner{client: client, factory: informers.NewSharedInformerFactory(client, 0), held: map[string]bool{}, changed: make(chan struct{})}
	r.pods = r.factory.Core().V1().Pods().Informer()
	work := make(chan *corev1.Pod, 10000)
	pod := func(obj any) {
		if p, ok := obj.(*corev1.Pod); ok && p.Spec.NodeName != "" {
			work <- p
		}
	}
	r.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: pod, UpdateFunc: func(_, cur any) { pod(cur) }})
	for range 8 {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case p := <-work:
					r.handle(ctx, p)
				}
			}
		}()
	}
	any := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { r.wake() }, UpdateFunc: func(_, _ any) { r.wake() }, DeleteFunc: func(any) { r.wake() },
	}
	f := r.factory
	for _, i := range []cache.SharedIndexInformer{
		r.pods, f.Core().V1().Services().Informer(), f.Core().V1().Nodes().Informer(), f.Core().V1().Namespaces().Informer(),
		f.Core().V1().ConfigMaps().Informer(), f.Core().V1().Events().Informer(), f.Discovery().V1().EndpointSlices().Informer(),
		f.Apps().V1().Deployments().Informer(), f.Apps().V1().ReplicaSets().Informer(), f.Networking().V1().ServiceCIDRs().Informer(),
	} {
		i.AddEventHandler(any)
	}
	r.factory.Start(ctx.Done())
	return r
}

func (r *runner) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *runner) hold(namespace string, hold bool) {
	r.mu.Lock()
	r.held[namespace] = hold
	r.mu.Unlock()
}

func (r *runner) handle(ctx context.Context, pod *corev1.Pod) {
	r.mu.Lock()
	held := r.held[pod.Namespace]
	r.next++
	ip := netip.AddrFrom4([4]byte{10, 244, byte(r.next >> 8), byte(r.next)}).String()
	r.mu.Unlock()
	pods := r.client.CoreV1().Pods(pod.Namespace)
	switch {
	case pod.DeletionTimestamp != nil:
		pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	case len(pod.Status.PodIPs) == 0 && pod.Status.Phase == corev1.PodPending && !held:
		pod = pod.DeepCopy()
		pod.Status.Phase = corev1.PodRunning
		pod.Status.PodIP, pod.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()})
		pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	}
}

// await waits until ok says "", looking again after every change of anything; what it said last is the failure.
func (c *cluster) await(t *testing.T, what string, ok func() string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		c.runner.mu.Lock()
		changed := c.runner.changed
		c.runner.mu.Unlock()
		why := ok()
		if why == "" {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s: %s\n\nlog of the controllers:\n%s", what, why, tail(c.log.String(), 60))
		}
	}
}

func tail(text string, lines int) string {
	all := strings.Split(text, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// namespace makes a namespace that goes with the test.
func (c *cluster) namespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}
	made, err := c.client.CoreV1().Namespaces().Create(context.Background(), ns, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.client.CoreV1().Namespaces().Delete(context.Background(), made.Name, metav1.DeleteOptions{}) })
	return made.Name
}

func podSpec(port int32) corev1.PodSpec {
	return corev1.PodSpec{
		Containers: []corev1.Container{{
			Name: "web", Image: "host", Command: []string{"/bin/true"},
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port, Protocol: corev1.ProtocolTCP}},
		}},
	}
}

func deployment(name string, replicas, port int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
				Spec:       podSpec(port),
			},
		},
	}
}

func service(name string, selector map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: selector,
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("http")}},
		},
	}
}

// create makes an object of any of the kinds that tests make.
func create[T any](t *testing.T, make func(context.Context, T, metav1.CreateOptions) (T, error), obj T) T {
	t.Helper()
	made, err := make(context.Background(), obj, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// change updates a Deployment until nobody wrote in between.
func (c *cluster) change(t *testing.T, namespace, name string, edit func(*appsv1.Deployment)) {
	t.Helper()
	for {
		d, err := c.client.AppsV1().Deployments(namespace).Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		edit(d)
		_, err = c.client.AppsV1().Deployments(namespace).Update(context.Background(), d, metav1.UpdateOptions{})
		if err == nil {
			return
		}
		if !strings.Contains(err.Error(), "the object has been modified") {
			t.Fatal(err)
		}
	}
}

// podsOf lists the living pods of an app.
func (c *cluster) podsOf(t *testing.T, namespace, app string) []corev1.Pod {
	t.Helper()
	list, err := c.client.CoreV1().Pods(namespace).List(context.Background(), metav1.ListOptions{
		LabelSelector: labels.Set{"app": app}.String(),
	})
	if err != nil {
		t.Fatal(err)
	}
	var living []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			living = append(living, p)
		}
	}
	return living
}

// rolledOut waits until what kubectl rollout status waits for.
func (c *cluster) rolledOut(t *testing.T, namespace, name string) *appsv1.Deployment {
	t.Helper()
	var d *appsv1.Deployment
	c.await(t, "rollout of "+name, func() string {
		var err error
		if d, err = c.client.AppsV1().Deployments(namespace).Get(context.Background(), name, metav1.GetOptions{}); err != nil {
			return err.Error()
		}
		s, want := d.Status, *d.Spec.Replicas
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.Replicas != want || s.AvailableReplicas != want {
			return fmt.Sprintf("generation %d, status %+v", d.Generation, s)
		}
		return ""
	})
	return d
}

func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
