// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/ptr"
)

// The addresses of every world. Each has namespaces of its own, so they can be the same.
const (
	serviceCIDR = "10.96.0.0/16"
	dnsIP       = "10.96.0.10"
	podCIDR     = "10.128.0.0/10" // of all nodes
	remoteCIDR  = "10.160.0.0/11" // of the node that has the endpoints
	fabricIP    = "192.168.77.1"
	apiAddr     = fabricIP + ":6443"
	remoteIP    = "192.168.78.2"
	servicePort = 80
	targetPort  = 8080
)

// seeders is how many objects are made at a time.
const seeders = 16

// world is an API server on a network of its own, the fabric, and the Services in it.
type world struct {
	programs   programs
	dir        string
	fabric     *host
	api        *process
	apiCommand []string
	manager    *process // kube-controller-manager, where there is one
	config     *rest.Config
	client     kubernetes.Interface
	kubeconfig string
	services   []virtual
	endpoints  atomic.Uint32 // addresses given out
	stopLeases context.CancelFunc
}

// virtual is a Service: its address, and the slice that holds its endpoints as the API last gave it.
type virtual struct {
	name  string
	vip   netip.AddrPort
	slice *discoveryv1.EndpointSlice
}

// newWorld starts an API server with further flags, and waits for it.
func newWorld(ctx context.Context, programs programs, dir string, flags ...string) (_ *world, err error) {
	w := &world{programs: programs, dir: dir, stopLeases: func() {}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of a world: %w", err)
	}
	if w.fabric, err = newHost(); err != nil {
		return nil, err
	}
	if err := w.fabric.bridge("fabric", fabricIP+"/24"); err != nil {
		return nil, err
	}
	state := filepath.Join(dir, "api")
	w.apiCommand = append([]string{programs.fairleadServer, "apiserver", "--state", state,
		"--listen", apiAddr, "--service-cidr", serviceCIDR, "--pod-cidr", podCIDR}, flags...)
	w.kubeconfig = filepath.Join(state, "kubeconfig")
	return w, w.serveAPI(ctx)
}

// serveAPI starts the API server, and waits for it.
func (w *world) serveAPI(ctx context.Context) (err error) {
	if w.api, err = start(w.fabric, anyCPU, w.dir, "apiserver", w.apiCommand...); err != nil {
		return err
	}
	if err := w.api.until(ctx, time.Minute, 50*time.Millisecond, func() error { return w.connect(ctx) }); err != nil {
		return fmt.Errorf("wait for the API server: %w", err)
	}
	return nil
}

// connect makes the client, and asks whether the server is ready.
func (w *world) connect(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", w.kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	config.Dial = w.fabric.Dial
	config.QPS = -1
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	w.config, w.client = config, client
	if _, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
		return fmt.Errorf("ask whether the server is ready: %w", err)
	}
	return nil
}

func (w *world) close() {
	if w == nil {
		return
	}
	w.stopLeases()
	w.manager.stop()
	w.api.stop()
	w.fabric.close()
}

// newEndpoint is an endpoint address that was never used before, so that the kernel's word of it cannot be mistaken.
func (w *world) newEndpoint() netip.Addr { return endpoint(w.endpoints.Add(1)) }

// nextEndpoint is what newEndpoint will give.
func (w *world) nextEndpoint() netip.Addr { return endpoint(w.endpoints.Load() + 1) }

// endpoint is the n-th endpoint address. The first 256 of the range are left to what has a name.
func endpoint(n uint32) netip.Addr {
	a := netip.MustParsePrefix(remoteCIDR).Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+256+n)
	return netip.AddrFrom4(a)
}

// grow makes Services, with two endpoints each on the remote node, until there are n.
func (w *world) grow(ctx context.Context, n int) error {
	first := len(w.services)
	w.services = append(w.services, make([]virtual, n-first)...)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(seeders)
	for i := first; i < n; i++ {
		group.Go(func() (err error) {
			w.services[i], err = w.addService(ctx, fmt.Sprintf("service-%05d", i), 2)
			return err
		})
	}
	return group.Wait()
}

// addService makes a Service without selector and one slice with its endpoints.
func (w *world) addService(ctx context.Context, name string, endpoints int) (virtual, error) {
	service, err := w.client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: servicePort}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return virtual{}, fmt.Errorf("create service %s: %w", name, err)
	}
	vip, err := netip.ParseAddr(service.Spec.ClusterIP)
	if err != nil {
		return virtual{}, fmt.Errorf("read address of service %s: %w", name, err)
	}
	slice, err := w.addSlice(ctx, name, name+"-1", endpoints)
	return virtual{name, netip.AddrPortFrom(vip, servicePort), slice}, err
}

func (w *world) addSlice(ctx context.Context, service, name string, endpoints int) (*discoveryv1.EndpointSlice, error) {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{
			Name: ptr.To(""), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](targetPort),
		}},
	}
	for range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{w.newEndpoint().String()},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
			NodeName:   ptr.To(remoteNode),
		})
	}
	made, err := w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, slice, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create slice %s: %w", name, err)
	}
	return made, nil
}

// replaceEndpoint gives an endpoint of the slice another address, the next, and returns when it was asked for and when the API had answered.
func (w *world) replaceEndpoint(ctx context.Context, s *virtual, i int) (asked, answered time.Time, err error) {
	changed := s.slice.DeepCopy()
	changed.Endpoints[i].Addresses = []string{w.newEndpoint().String()}
	asked = time.Now()
	stored, err := w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Update(ctx, changed, metav1.UpdateOptions{})
	answered = time.Now()
	if err != nil {
		return asked, answered, fmt.Errorf("update slice %s: %w", changed.Name, err)
	}
	s.slice = stored
	return asked, answered, nil
}

// spread are up to n Services at even distances, the first and the last among them.
func (w *world) spread(n int) []virtual {
	out := make([]virtual, min(n, len(w.services)))
	for i := range out {
		out[i] = w.services[i*(len(w.services)-1)/max(len(out)-1, 1)]
	}
	return out
}

// vips are the addresses of spread Services.
func (w *world) vips(n int) (out []netip.AddrPort) {
	for _, s := range w.spread(n) {
		out = append(out, s.vip)
	}
	return out
}

// endpointsOf are endpoints of the Services that vips gives.
func (w *world) endpointsOf(n int) (out []netip.AddrPort) {
	for _, s := range w.spread(n) {
		out = append(out, netip.AddrPortFrom(netip.MustParseAddr(s.slice.Endpoints[0].Addresses[0]), targetPort))
	}
	return out
}

// fabricPort is the name of a node's port of the fabric.
func fabricPort(number int) string { return "node" + strconv.Itoa(number) }

// join puts a node on the fabric.
func (w *world) join(node *host, number int) error {
	if err := cable(node, "fabric0", w.fabric, fabricPort(number)); err != nil {
		return err
	}
	return errors.Join(w.fabric.enslave(fabricPort(number), "fabric"), node.addr("fabric0", nodeAddr(number)+"/24"))
}

// addNode makes a node that is ready.
func (w *world) addNode(ctx context.Context, name, address string, cidrs ...string) error {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Spec:       corev1.NodeSpec{PodCIDR: cidrs[0], PodCIDRs: cidrs},
	}
	made, err := w.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create node %s: %w", name, err)
	}
	made.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}, {Type: corev1.NodeHostName, Address: name}}
	made.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastTransitionTime: metav1.Now(), LastHeartbeatTime: metav1.Now(),
	}}
	if _, err := w.client.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update status of node %s: %w", name, err)
	}
	return nil
}

// register makes the nodes of all contenders, and the remote one, known to the API.
func (w *world) register(ctx context.Context) error {
	var names []string
	for _, n := range []struct{ name, address, cidr string }{
		{fairlead.name, nodeAddr(fairlead.number), nodeCIDR(fairlead.number)},
		{proxy.name, nodeAddr(proxy.number), nodeCIDR(proxy.number)},
		{remoteNode, remoteIP, remoteCIDR},
	} {
		if err := w.addNode(ctx, n.name, n.address, n.cidr); err != nil {
			return err
		}
		names = append(names, n.name)
	}
	return w.keepNodes(ctx, names...)
}

// leaseEvery is how often a node says that it lives, as a kubelet does.
const leaseEvery = 10 * time.Second

// keepNodes renews the leases of nodes until the world is closed: without, their pods would be taken out of the slices after 40 s.
func (w *world) keepNodes(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := w.stopLeases
	w.stopLeases = func() { cancel(); stop() }
	leases := w.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	renew := func() (err error) {
		now := metav1.NowMicro()
		for _, name := range names {
			spec := coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: ptr.To[int32](40), RenewTime: &now}
			lease, getErr := leases.Get(ctx, name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(getErr):
				_, getErr = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
			case getErr == nil:
				lease.Spec = spec
				_, getErr = leases.Update(ctx, lease, metav1.UpdateOptions{})
			}
			err = errors.Join(err, getErr)
		}
		return err
	}
	if err := renew(); err != nil {
		cancel()
		return fmt.Errorf("make leases: %w", err)
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(leaseEvery):
			}
			if err := renew(); err != nil && ctx.Err() == nil {
				progress("cannot renew leases: %v", err)
			}
		}
	}()
	return nil
}

// listTime is how long it takes a bare client to list what a contender must list before it can begin.
func (w *world) listTime(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	services, err := w.client.CoreV1().Services("").List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return 0, fmt.Errorf("list services: %w", err)
	}
	slices, err := w.client.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return 0, fmt.Errorf("list slices: %w", err)
	}
	took := time.Since(begin)
	if len(services.Items) < len(w.services) || len(slices.Items) < len(w.services) {
		return 0, fmt.Errorf("list: %d services and %d slices, want at least %d", len(services.Items), len(slices.Items), len(w.services))
	}
	return took, nil
}
