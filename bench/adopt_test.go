// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/adopt"
	"github.com/fairlead/fairlead/status"
	"github.com/fairlead/fairlead/testnet"
)

// takeover is a node with kube-proxy, or an agent, or both, beside a real API server:
//
//	client pod, server pod ── node ── remote (all other endpoints)
//	                           └── fabric (API server, clients outside)
type takeover struct {
	*rig
	t        *testing.T
	pod      *host // a server on the node
	names    *host // CoreDNS's pod, where there is one
	dir      string
	mode     string // of kube-proxy
	proxy    *process
	agent    *process
	services map[string]*corev1.Service
}

const (
	takeoverNumber = 31
	takeoverNode   = "adopt"
	balancerIP     = "203.0.113.7"
	externalIP     = "203.0.113.8"
)

// needPrograms are the paths of the programs that are built beside the tests.
func needPrograms(t *testing.T) programs {
	t.Helper()
	testnet.MustRoot(t)
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	p := programsOf(root)
	for _, path := range []string{p.fairlead, p.fairleadServer, p.kubeProxy, p.coreDNS} {
		if _, err := os.Stat(path); err != nil {
			testnet.Skip(t, path+" is not there: make build bench/bin/kube-proxy bench/bin/coredns")
		}
	}
	return p
}

func newTakeover(t *testing.T, mode string, flags ...string) *takeover {
	t.Helper()
	p := needPrograms(t)
	ctx := t.Context()
	dir := t.TempDir()
	w, err := newWorld(ctx, p, dir, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	k := &takeover{t: t, dir: dir, mode: mode, services: map[string]*corev1.Service{}, rig: &rig{name: takeoverNode, number: takeoverNumber, w: w}}
	for _, h := range []**host{&k.node, &k.client, &k.remote, &k.pod} {
		if *h, err = newHost(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*h).close)
	}
	local := strings.TrimSuffix(k.podAddr(), "2") + "3"
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, corev1.NamespaceNodeLease} {
		_, err := w.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	err = errors.Join(
		k.node.attach("pod0", k.client, k.podAddr()), k.node.attach("pod1", k.pod, local),
		cable(k.node, "remote0", k.remote, "eth0"),
		w.join(k.node, k.number),
		k.node.up("lo"), k.client.up("lo"),
		k.node.sysctls("net/ipv4/ip_forward", "1", "net/netfilter/nf_conntrack_tcp_timeout_close", "1"),
		k.node.addr("remote0", "192.168.78.1/24"), k.remote.addr("eth0", remoteIP+"/24"),
		k.remote.route(podCIDR, "192.168.78.1", "eth0"), k.remote.route("192.168.77.0/24", "192.168.78.1", "eth0"), k.remote.anyIP(remoteCIDR),
		k.node.route(remoteCIDR, remoteIP, "remote0"), k.node.route("0.0.0.0/0", fabricIP, "fabric0"),
		w.fabric.route("203.0.113.0/24", nodeAddr(k.number), "fabric"),
		w.addNode(ctx, k.name, nodeAddr(k.number), nodeCIDR(k.number)),
		w.addNode(ctx, remoteNode, remoteIP, remoteCIDR),
		w.keepNodes(ctx, k.name, remoteNode),
	)
	if err != nil {
		t.Fatal(err)
	}
	serveEcho(t, k.remote)
	serveEcho(t, k.pod)
	k.populate(local)
	return k
}

// serveEcho echoes at every address of a host, lines over TCP and datagrams over UDP.
func serveEcho(t *testing.T, h *host) {
	t.Helper()
	var l net.Listener
	var c net.PacketConn
	err := h.Do(func() (err error) {
		if l, err = net.Listen("tcp4", fmt.Sprintf(":%d", targetPort)); err == nil {
			c, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", targetPort))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); c.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	// A datagram to one of many addresses has to be answered from that one.
	if err := echoUDP(c.(*net.UDPConn)); err != nil {
		t.Fatal(err)
	}
}

// populate makes Services of all kinds.
func (k *takeover) populate(local string) {
	k.t.Helper()
	type spec struct {
		name  string
		edit  func(*corev1.Service)
		own   bool // an endpoint on the node
		other int  // endpoints elsewhere
		ready *bool
	}
	nodePort := func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }
	localExternal := func(s *corev1.Service) {
		nodePort(s)
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	localInternal := func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}
	affinity := func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To[int32](300)}}
	}
	balancer := func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.LoadBalancerSourceRanges = []string{"192.168.77.0/24", "198.51.100.0/25"}
	}
	for _, s := range []spec{
		{name: "shop", edit: nodePort, own: true, other: 3},
		{name: "lone", own: false, other: 1},
		{name: "sticky", edit: func(s *corev1.Service) { nodePort(s); affinity(s) }, own: true, other: 2},
		{name: "external-local", edit: localExternal, own: true, other: 2},
		{name: "external-local-elsewhere", edit: localExternal, other: 2},
		{name: "internal-local", edit: localInternal, own: true, other: 2},
		{name: "internal-local-elsewhere", edit: localInternal, other: 2},
		{name: "empty", edit: nodePort},
		{name: "not-ready", edit: nodePort, other: 2, ready: ptr.To(false)},
		{name: "balanced", edit: balancer, own: true, other: 2},
		{name: "external", edit: func(s *corev1.Service) { s.Spec.ExternalIPs = []string{externalIP} }, other: 2},
		{name: "headless", edit: func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }, other: 2},
	} {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: s.name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
			{Name: "tcp", Port: servicePort, TargetPort: intstr.FromInt32(targetPort)},
			{Name: "udp", Port: servicePort, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(targetPort)},
		}}}
		if s.edit != nil {
			s.edit(svc)
		}
		made, err := k.w.client.CoreV1().Services("default").Create(k.t.Context(), svc, metav1.CreateOptions{})
		if err != nil {
			k.t.Fatal(err)
		}
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
			made.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: balancerIP, IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)}}
			if made, err = k.w.client.CoreV1().Services("default").UpdateStatus(k.t.Context(), made, metav1.UpdateOptions{}); err != nil {
				k.t.Fatal(err)
			}
		}
		k.services[s.name] = made
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: s.name, Labels: map[string]string{discoveryv1.LabelServiceName: s.name}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{
				{Name: ptr.To("tcp"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To[int32](targetPort)},
				{Name: ptr.To("udp"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To[int32](targetPort)},
			},
		}
		add := func(addr, node string) {
			ready := s.ready == nil || *s.ready
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node,
				Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready, Terminating: ptr.To(false)}})
		}
		if s.own {
			add(local, k.name)
		}
		for range s.other {
			add(k.w.newEndpoint().String(), remoteNode)
		}
		if _, err := k.w.client.DiscoveryV1().EndpointSlices("default").Create(k.t.Context(), slice, metav1.CreateOptions{}); err != nil {
			k.t.Fatal(err)
		}
	}
}

// newDir makes a directory for a program that is started.
func (k *takeover) newDir(program string) string {
	k.t.Helper()
	dir, err := os.MkdirTemp(k.dir, program+"-")
	if err != nil {
		k.t.Fatal(err)
	}
	return dir
}

// start starts a program that runs for as long as the test, or until it is stopped.
func (k *takeover) start(h *host, dir string, argv ...string) *process {
	k.t.Helper()
	p, err := start(h, anyCPU, dir, filepath.Base(argv[0]), argv...)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(p.stop)
	return p
}

// startProxy starts kube-proxy and waits until it has nothing left to do: a check finds no difference.
func (k *takeover) startProxy() {
	k.t.Helper()
	dir := k.newDir("kube-proxy")
	argv, err := proxyInMode(k.mode, k.rig, dir, false)
	if err != nil {
		k.t.Fatal(err)
	}
	k.proxy = k.start(k.node, dir, argv...)
	err = k.proxy.until(k.t.Context(), time.Minute, 100*time.Millisecond, func() error {
		code, out := k.run(k.checkProxy()...)
		if code != 0 {
			return fmt.Errorf("check ends with %d: %s", code, out)
		}
		return nil
	})
	if err != nil {
		k.t.Fatal(err)
	}
}

// startAgent starts an agent and waits until it is ready.
func (k *takeover) startAgent(flags ...string) {
	k.t.Helper()
	state := filepath.Join(k.dir, "state")
	argv := append([]string{k.w.programs.fairlead, "agent", "--node", k.name, "--kubeconfig", k.w.kubeconfig, "--state", state,
		"--service-cidr", serviceCIDR, "--pod-cidr", podCIDR, "--startup-taint", ""}, flags...)
	k.agent = k.start(k.node, k.newDir("agent"), argv...)
	err := k.agent.until(k.t.Context(), time.Minute, 50*time.Millisecond, func() error {
		ctx, cancel := context.WithTimeout(k.t.Context(), 5*time.Second)
		defer cancel()
		r, err := status.Dial(filepath.Join(state, "agent.sock")).Report(ctx)
		if err == nil && r.PID == 0 {
			err = errors.New("the agent says nothing of itself")
		}
		if err == nil && r.Ready() != "" {
			err = errors.New(r.Ready())
		}
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
}

// exec runs a program on the node: its exit code, what it printed, and what it complained about.
func (k *takeover) exec(input string, argv ...string) (code int, out []byte, complaint string) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), 2*time.Minute)
	defer cancel()
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), done: make(chan struct{})}
	var stdout, stderr bytes.Buffer
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := p.launch(k.node, anyCPU); err != nil {
		k.t.Fatal(err)
	}
	<-p.done
	return p.cmd.ProcessState.ExitCode(), stdout.Bytes(), stderr.String()
}

// run runs fairlead on the node: its exit code, and what it printed.
func (k *takeover) run(args ...string) (int, string) {
	k.t.Helper()
	code, out, complaint := k.exec("", append([]string{k.w.programs.fairlead}, args...)...)
	return code, complaint + string(out)
}

// must runs fairlead on the node, which must succeed.
func (k *takeover) must(args ...string) string {
	k.t.Helper()
	code, out := k.run(args...)
	if code != 0 {
		k.t.Fatalf("fairlead %s: exit code %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// checkProxy are the arguments of adopt check of the proxy.
func (k *takeover) checkProxy(more ...string) []string {
	return append([]string{"adopt", "check", "--only", "proxy", "--node", k.name, "--kubeconfig", k.w.kubeconfig}, more...)
}

// check runs adopt check of the proxy and reads its report.
func (k *takeover) check() (int, adopt.Part) {
	k.t.Helper()
	code, out, complaint := k.exec("", append([]string{k.w.programs.fairlead}, k.checkProxy("--json")...)...)
	var r adopt.Report
	if err := json.Unmarshal(out, &r); err != nil || len(r.Parts) != 1 {
		k.t.Fatalf("read report: %v: %s%s", err, complaint, out)
	}
	return code, r.Parts[0]
}

// inNode runs a program on the node, which must succeed.
func (k *takeover) inNode(input string, argv ...string) string {
	k.t.Helper()
	code, out, complaint := k.exec(input, argv...)
	if code != 0 {
		k.t.Fatalf("%v: exit code %d: %s", argv, code, complaint)
	}
	return string(out)
}

func (k *takeover) vip(name string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(k.services[name].Spec.ClusterIP), servicePort)
}

func (k *takeover) nodePort(name string, i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(nodeAddr(k.number)), uint16(k.services[name].Spec.Ports[i].NodePort))
}

// clients are what is asked for all the time, and what failed.
type clients struct {
	t      *testing.T
	cancel context.CancelFunc
	wg     sync.WaitGroup
	kinds  []*clientKind
}

type clientKind struct {
	name   string
	done   atomic.Int64
	failed atomic.Int64
	mu     sync.Mutex
	errs   []string
}

func (c *clientKind) result(err error) {
	if err == nil {
		c.done.Add(1)
		return
	}
	c.failed.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.errs) < 5 {
		c.errs = append(c.errs, fmt.Sprintf("%s %v", time.Now().Format("15:04:05.000"), err))
	}
}

const (
	// exchangeLimit is how long one exchange may take: a SYN that is sent again comes after 1 s, and would be a gap.
	exchangeLimit = 900 * time.Millisecond
	// pace is the pause between two exchanges of a client.
	pace = 30 * time.Millisecond
)

// sayLine sends a line and waits for the same.
func sayLine(c net.Conn, n int64) error {
	if err := c.SetDeadline(time.Now().Add(exchangeLimit)); err != nil {
		return err
	}
	sent := fmt.Appendf(nil, "%015d\n", n)
	if _, err := c.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("got %q for %q", got, sent)
	}
	return nil
}

// newClients are none yet. They ask until ctx ends, which is with the test or when they are stopped.
func (k *takeover) newClients() (tr *clients, ctx context.Context) {
	tr = &clients{t: k.t}
	ctx, tr.cancel = context.WithCancel(k.t.Context())
	k.t.Cleanup(func() { tr.cancel(); tr.wg.Wait() })
	return tr, ctx
}

// every does something again and again, with a pause between, and counts it.
func (tr *clients) every(ctx context.Context, kind *clientKind, do func() error) {
	tr.wg.Go(func() {
		for ctx.Err() == nil {
			if err := do(); ctx.Err() == nil {
				kind.result(err)
			}
			time.Sleep(pace)
		}
	})
}

// stop ends all clients and tells how they fared.
func (tr *clients) stop() {
	tr.cancel()
	tr.wg.Wait()
	for _, k := range tr.kinds {
		tr.t.Logf("%s: %d answers, %d failed", k.name, k.done.Load(), k.failed.Load())
	}
}

// load starts clients of all kinds: new connections, and one that stays, from the pod and from outside.
func (k *takeover) load() *clients {
	k.t.Helper()
	tr, ctx := k.newClients()
	for _, c := range []struct {
		name, network string
		from          *host
		to            netip.AddrPort
	}{
		{"ClusterIP TCP", "tcp", k.client, k.vip("shop")},
		{"ClusterIP TCP, affinity", "tcp", k.client, k.vip("sticky")},
		{"ClusterIP UDP", "udp", k.client, k.vip("shop")},
		{"node port TCP", "tcp", k.w.fabric, k.nodePort("shop", 0)},
		{"node port UDP", "udp", k.w.fabric, k.nodePort("shop", 1)},
		{"node port TCP, policy Local", "tcp", k.w.fabric, k.nodePort("external-local", 0)},
		{"the node to ClusterIP TCP", "tcp", k.node, k.vip("shop")},
	} {
		dial := func() (net.Conn, error) {
			limited, cancel := context.WithTimeout(ctx, exchangeLimit)
			defer cancel()
			return c.from.Dial(limited, c.network, c.to.String())
		}
		fresh, kept := &clientKind{name: c.name + ", new"}, &clientKind{name: c.name + ", kept"}
		tr.kinds = append(tr.kinds, fresh, kept)
		tr.every(ctx, fresh, func() error {
			conn, err := dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			return sayLine(conn, fresh.done.Load())
		})
		conn, err := dial()
		if err != nil {
			k.t.Fatalf("%s: %v", c.name, err)
		}
		context.AfterFunc(ctx, func() { conn.Close() })
		tr.every(ctx, kept, func() error { return sayLine(conn, kept.done.Load()) })
	}
	return tr
}

// more waits until every kind of client has succeeded some times more.
func (tr *clients) more(n int64) {
	tr.t.Helper()
	want := make([]int64, len(tr.kinds))
	for i, k := range tr.kinds {
		want[i] = k.done.Load() + n
	}
	for i, k := range tr.kinds {
		for deadline := time.Now().Add(time.Minute); k.done.Load() < want[i]; time.Sleep(pace) {
			if time.Now().After(deadline) {
				tr.t.Fatalf("%s: no more answers: %v", k.name, k.errs)
			}
		}
	}
}

// none fails the test if anything has failed.
func (tr *clients) none(when string) {
	tr.t.Helper()
	tr.t.Log(when)
	for _, k := range tr.kinds {
		if n := k.failed.Load(); n > 0 {
			tr.t.Errorf("%s: %s: %d failed, %d succeeded: %v", when, k.name, n, k.done.Load(), k.errs)
		}
	}
	if tr.t.Failed() {
		tr.t.FailNow()
	}
}

// TestAdoptProxy takes a node over from kube-proxy and gives it back, several times, under new and established connections of all kinds.
func TestAdoptProxy(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			k := newTakeover(t, mode)
			k.startProxy()
			tr := k.load()
			tr.more(20)
			for round := range 3 {
				at := func(s string) string { return fmt.Sprintf("round %d, %s", round+1, s) }
				k.startAgent()
				tr.more(20)
				tr.none(at("both run"))
				k.proxy.stop()
				tr.more(20)
				tr.none(at("kube-proxy has ended"))
				if out := k.must("cleanup", "--only-kube-proxy"); !strings.Contains(out, "removed") {
					t.Fatalf("cleanup: %s", out)
				}
				if out := k.must("cleanup", "--only-kube-proxy", "--dry-run"); !strings.Contains(out, "nothing to remove") {
					t.Fatalf("kube-proxy has left: %s", out)
				}
				tr.more(50)
				tr.none(at("the agent alone"))
				if code, out := k.run(k.checkProxy()...); code != 2 || !strings.Contains(out, "kube-proxy has no rules") {
					t.Fatalf("check without kube-proxy: exit code %d: %s", code, out)
				}
				k.startProxy()
				tr.more(20)
				tr.none(at("kube-proxy is back"))
				k.agent.stop()
				tr.more(20)
				tr.none(at("the agent has ended"))
				if out := k.must("cleanup"); !strings.Contains(out, "table inet fairlead") {
					t.Fatalf("cleanup: %s", out)
				}
				tr.more(50)
				tr.none(at("kube-proxy alone"))
			}
			tr.stop()
		})
	}
}

// TestAdoptCheck compares with a real kube-proxy, then with one whose rules somebody has changed.
func TestAdoptCheck(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) {
			k := newTakeover(t, mode)
			k.startProxy()
			code, part := k.check()
			if code != 0 || part.Looked < 40 {
				t.Fatalf("exit code %d: %+v", code, part)
			}
			for _, d := range part.Differences {
				t.Logf("meant: %+v", d)
			}
			// Nothing mends these: kube-proxy writes what it believes to have changed.
			shop, sticky := k.vip("shop"), k.vip("sticky")
			for _, plant := range []struct {
				what   string
				edit   func()
				of     string
				differ string // what the difference says
			}{
				{"a destination is gone", func() {
					if mode == "nftables" {
						k.inNode("", "nft", "delete", "element", "ip", "kube-proxy", "service-ips", fmt.Sprintf("{ %s . tcp . %d }", shop.Addr(), shop.Port()))
					} else {
						k.editRules("-D", func(rule string) bool {
							return strings.HasPrefix(rule, "-A KUBE-SERVICES") && strings.Contains(rule, shop.Addr().String()) && strings.Contains(rule, "-p tcp")
						}, nil)
					}
				}, shop.String() + "/TCP", map[string]string{"nftables": "refused", "iptables": "untouched"}[mode]},
				{"another endpoint", func() {
					if mode == "nftables" {
						chain := k.chainOf("sticky", "udp", "endpoint-")
						k.inNode("", "nft", "flush", "chain", "ip", "kube-proxy", chain)
						k.inNode("", "nft", "add", "rule", "ip", "kube-proxy", chain, "meta", "l4proto", "udp", "dnat", "to", "10.160.9.9:99")
					} else {
						k.editRules("-R", func(rule string) bool {
							return strings.HasPrefix(rule, "-A KUBE-SEP") && strings.Contains(rule, "default/sticky:udp") && strings.Contains(rule, "DNAT")
						}, func(rule string) string {
							head, _, _ := strings.Cut(rule, "--to-destination")
							return head + "--to-destination 10.160.9.9:99"
						})
					}
				}, sticky.String() + "/UDP", "10.160.9.9:99"},
				{"nobody is dropped any more", func() {
					if mode == "nftables" {
						k.inNode("", "nft", "flush", "map", "ip", "kube-proxy", "firewall-ips")
					} else {
						k.editRules("-D", func(rule string) bool { return strings.HasPrefix(rule, "-A KUBE-PROXY-FIREWALL") }, nil)
					}
				}, balancerIP + ":80/TCP", "no answer"},
			} {
				plant.edit()
				code, part := k.check()
				found := false
				for _, d := range part.Differences {
					found = found || d.Of == plant.of && d.Meant == "" && strings.Contains(d.Here+d.There, plant.differ)
				}
				if code != 1 || !found {
					t.Errorf("%s: exit code %d, %+v", plant.what, code, part)
				}
			}
			// kube-proxy's next start writes everything.
			k.proxy.stop()
			k.startProxy()
			if code, part := k.check(); code != 0 {
				t.Errorf("after kube-proxy's restart: exit code %d, %+v", code, part)
			}
		})
	}
}

// chainOf is the name of one of kube-proxy's nftables chains for a Service.
func (k *takeover) chainOf(service, port, prefix string) string {
	k.t.Helper()
	for line := range strings.Lines(k.inNode("", "nft", "list", "chains", "ip")) {
		name := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "chain "), " {")
		if strings.HasPrefix(name, prefix) && strings.Contains(name, "default/"+service+"/"+port+"/") {
			return name
		}
	}
	k.t.Fatalf("no chain %s of %s", prefix, service)
	return ""
}

// editRules deletes (-D) or replaces (-R) rules of kube-proxy in iptables: all of some, or the first.
func (k *takeover) editRules(how string, which func(string) bool, to func(string) string) {
	k.t.Helper()
	done := 0
	table, at := "", map[string]int{}
	var edits []string
	for line := range strings.Lines(k.inNode("", "iptables-save")) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table, at = name, map[string]int{}
		}
		if !strings.HasPrefix(line, "-A ") {
			continue
		}
		chain := strings.Fields(line)[1]
		at[chain]++
		if !which(line) {
			continue
		}
		done++
		if how == "-D" {
			edits = append(edits, fmt.Sprintf("*%s\n-D%s\nCOMMIT\n", table, strings.TrimPrefix(line, "-A")))
			continue
		}
		edits = append(edits, fmt.Sprintf("*%s\n-R %s %d%s\nCOMMIT\n", table, chain, at[chain], strings.TrimPrefix(to(line), "-A "+chain)))
		break
	}
	if done == 0 {
		k.t.Fatal("no such rule")
	}
	k.inNode(strings.Join(edits, ""), "iptables-restore", "--noflush")
}
