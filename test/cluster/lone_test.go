// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/status"
	"github.com/fairlead/fairlead/testnet"
)

// lone is one node without the one-machine cluster around it: the API server, an agent on the node n1, a pod of that node that is the client, and
// beyond another node n2 whose pods' addresses all answer. What is tested is the agent, so nothing else comes and goes by itself.
//
//	control ── n1 ── far (n2 and its pods)
//	            ├─── pod
//	            └─── outside (a client that is not of the cluster)
type lone struct {
	t                              testing.TB
	net                            *testnet.World
	control, n1, pod, far, outside *testnet.Host
	dir                            string
	config                         *rest.Config
	kube                           kubernetes.Interface
	agent                          *process
	agentArgs                      []string
	apiserver                      *process
}

// Addresses of a lone node. Every address of farPods and farPods6 is a pod's.
const (
	controlAddr  = "192.0.2.1"
	n1Addr       = "172.30.0.11"
	n2Addr       = "172.30.0.12"
	n1Addr6      = "fd00:30::11"
	n2Addr6      = "fd00:30::12"
	podAddr      = "10.244.0.5"
	podAddr6     = "fd00:244::5"
	farPods      = "10.245.0.0/16"
	farPods6     = "fd00:245::/64"
	outsideAddr  = "198.51.100.9"
	n1OutAddr    = "198.51.100.1"
	serviceCIDRs = "10.96.0.0/16,fd00:96::/112"
	farPort      = 8080
)

// newLone starts the API server and makes the networks. No agent runs yet.
func newLone(t testing.TB) *lone {
	t.Helper()
	w := testnet.New(t)
	// In memory: what a disk does is not what is tested, and waiting for it would be most of the time.
	dir, err := os.MkdirTemp("/dev/shm", "lone-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lone{t: t, net: w, dir: dir, control: w.Host("control"), n1: w.Host("n1"), pod: w.Host("pod"), far: w.Host("far"), outside: w.Host("outside")}
	l.control.Addr("lo", controlAddr+"/32")
	l.wire(l.n1, 1)
	w.Cable(l.n1, "pod", l.pod, "eth0")
	w.Cable(l.n1, "eth0", l.far, "eth0")
	w.Cable(l.n1, "out", l.outside, "eth0")
	l.n1.Addr("eth0", n1Addr+"/24", n1Addr6+"/64")
	l.far.Addr("eth0", n2Addr+"/24", n2Addr6+"/64")
	l.n1.Addr("pod", "169.254.1.1/32", "fe80::1/64")
	l.n1.Route(podAddr+"/32", "", "pod")
	l.n1.Route(podAddr6+"/128", "", "pod")
	l.pod.Addr("eth0", podAddr+"/32", podAddr6+"/128")
	l.pod.Route("169.254.1.1/32", "", "eth0")
	l.pod.Route("0.0.0.0/0", "169.254.1.1", "eth0")
	l.pod.Route("::/0", "fe80::1", "eth0")
	l.n1.Addr("out", n1OutAddr+"/24")
	l.outside.Addr("eth0", outsideAddr+"/24")
	l.n1.Route("0.0.0.0/0", n2Addr, "eth0") // the node's own processes need some way out to send to a virtual address
	l.n1.Route("::/0", n2Addr6, "eth0")
	l.far.Route("0.0.0.0/0", n1Addr, "eth0")
	l.far.Route("::/0", n1Addr6, "eth0")
	lo, err := l.far.Link.LinkByName("lo")
	l.ok(err)
	for _, all := range []string{farPods, farPods6} {
		prefix := netip.MustParsePrefix(all)
		l.ok(l.far.Link.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())},
			LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}))
	}
	l.far.Sysctl("net/ipv6/ip_nonlocal_bind", "1")
	t.Cleanup(func() {
		for _, name := range []string{"apiserver", "agent"} {
			if t.Failed() {
				t.Logf("the end of %s's log:\n%s", name, tail(filepath.Join(l.dir, name+".log"), 40))
			}
		}
	})
	l.startAPI()
	l.agentArgs = []string{"agent", "--node", "n1", "--kubeconfig", filepath.Join(l.dir, "api", "kubeconfig"), "--dns-ip", "10.96.0.10,fd00:96::a",
		"--service-cidr", serviceCIDRs, "--pod-cidr", "10.244.0.0/15,fd00:244::/31"}
	return l
}

// wire connects a host to the API server's, over a link of its own.
func (l *lone) wire(h *testnet.Host, n int) {
	l.t.Helper()
	name := fmt.Sprintf("to%d", n)
	l.net.Cable(l.control, name, h, "api")
	l.control.Addr(name, fmt.Sprintf("172.31.%d.1/24", n))
	h.Addr("api", fmt.Sprintf("172.31.%d.2/24", n))
	h.Route(controlAddr+"/32", fmt.Sprintf("172.31.%d.1", n), "api")
	h.Forward()
}

func (l *lone) ok(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// startAPI starts the API server and registers the nodes.
func (l *lone) startAPI() {
	l.t.Helper()
	l.apiserver = l.start(l.control, "apiserver", "fairlead-server", "apiserver", "--state", filepath.Join(l.dir, "api"), "--listen", controlAddr+":6443",
		"--service-cidr", serviceCIDRs, "--pod-cidr", "10.244.0.0/15,fd00:244::/31")
	kubeconfig := filepath.Join(l.dir, "api", "kubeconfig")
	eventually(l.t, 30*time.Second, "API server", func() (err error) {
		if l.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
			return err
		}
		l.config.QPS = -1
		l.config.ContentType = runtime.ContentTypeProtobuf
		l.config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return l.control.NS.Dial(ctx, network, address)
		}
		if l.kube, err = kubernetes.NewForConfig(l.config); err != nil {
			return err
		}
		return l.kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(context.Background()).Error()
	})
	l.t.Cleanup(func() { l.closeIdle() })
	eventually(l.t, 10*time.Second, "namespace default", func() error {
		_, err := l.kube.CoreV1().Namespaces().Get(context.Background(), "default", metav1.GetOptions{})
		return err
	})
	for _, n := range []struct {
		name  string
		addrs []string
		cidrs []string
	}{
		{"n1", []string{n1Addr, n1Addr6}, []string{"10.244.0.0/24", "fd00:244::/64"}},
		{"n2", []string{n2Addr, n2Addr6}, []string{farPods, farPods6}},
	} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}, Spec: corev1.NodeSpec{PodCIDR: n.cidrs[0], PodCIDRs: n.cidrs}}
		node, err := l.kube.CoreV1().Nodes().Create(context.Background(), node, metav1.CreateOptions{})
		l.ok(err)
		for _, a := range n.addrs {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		_, err = l.kube.CoreV1().Nodes().UpdateStatus(context.Background(), node, metav1.UpdateOptions{})
		l.ok(err)
	}
}

// closeIdle closes the client's connections, which would count as leaked.
func (l *lone) closeIdle() {
	if transport, err := rest.TransportFor(l.config); err == nil {
		for {
			if c, ok := transport.(interface{ CloseIdleConnections() }); ok {
				c.CloseIdleConnections()
				return
			}
			inner, ok := transport.(interface{ WrappedRoundTripper() http.RoundTripper })
			if !ok {
				return
			}
			transport = inner.WrappedRoundTripper()
		}
	}
}

// process is a program in a host's namespace. It ends with the test's process at the latest, whatever becomes of that.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// start starts a program of the project; the test's end kills it.
func (l *lone) start(h *testnet.Host, name, program string, args ...string) *process {
	l.t.Helper()
	p := &process{cmd: exec.Command(binary(program), args...), log: filepath.Join(l.dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	l.ok(err)
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The thread that starts it waits for it: the kernel kills a child whose parent's thread has ended.
		err := h.NS.Do(func() error {
			err := p.cmd.Start()
			started <- err
			if err != nil {
				return err
			}
			_ = p.cmd.Wait()
			return nil
		})
		if err != nil {
			select {
			case started <- err:
			default:
			}
		}
		close(p.done)
	}()
	l.ok(<-started)
	l.t.Cleanup(p.kill)
	return p
}

// kill kills with -9 and waits for the end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// tail is the end of a file.
func tail(path string, lines int) string {
	text, _ := os.ReadFile(path)
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// startAgent starts the agent, or starts it again.
func (l *lone) startAgent() {
	l.t.Helper()
	l.agent = l.agentOn(l.n1, "agent")
}

// agentOn starts an agent of the node n1 in a namespace, with a state directory of its name.
func (l *lone) agentOn(h *testnet.Host, name string) *process {
	l.t.Helper()
	return l.start(h, name, "fairlead", append(l.agentArgs[:len(l.agentArgs):len(l.agentArgs)], "--state", filepath.Join(l.dir, name))...)
}

// ask is the socket of an agent by the name of its directory.
func (l *lone) ask(name string) *status.Client {
	return status.Dial(filepath.Join(l.dir, name, "agent.sock"))
}

// report is what the agent says of itself.
func (l *lone) report() (*status.Report, error) { return l.ask("agent").Report(context.Background()) }

// awaitReady waits until an agent is ready.
func (l *lone) awaitReady(name string) *status.Report {
	l.t.Helper()
	var r *status.Report
	eventually(l.t, 60*time.Second, name+" ready", func() (err error) {
		if r, err = l.ask(name).Report(context.Background()); err == nil && r.Ready() != "" {
			err = errors.New(r.Ready())
		}
		return err
	})
	return r
}

// awaitAll waits until an agent has acknowledged all that the API server has been told so far: what comes last by each watch is there.
func (l *lone) awaitAll(name string) {
	l.t.Helper()
	mark := fmt.Sprintf("mark-%x", rand.Uint64())
	svc := l.service(mark, corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}})
	l.endpoints(svc, farPort, "10.245.255.1")
	var text string
	eventually(l.t, 30*time.Second, name+" up to date", func() error {
		if err := l.ask(name).Get(context.Background(), "/v1/dump", url.Values{"what": {"model"}}, &text); err != nil {
			return err
		}
		if at := strings.Index(text, mark); at < 0 || !strings.Contains(text[at:min(len(text), at+300)], "10.245.255.1") {
			return fmt.Errorf("no %s in its model", mark)
		}
		return nil
	})
	l.drop(svc)
	eventually(l.t, 30*time.Second, name+" up to date", func() error {
		if err := l.ask(name).Get(context.Background(), "/v1/dump", url.Values{"what": {"model"}}, &text); err != nil {
			return err
		}
		if strings.Contains(text, mark) {
			return fmt.Errorf("%s is still in its model", mark)
		}
		return nil
	})
}

// dump is the dataplane of a host in words, read from its kernel.
func (l *lone) dump(h *testnet.Host) string {
	l.t.Helper()
	text, err := nft.Dump(nft.Options{NetNS: h.NS})
	l.ok(err)
	return text
}

// service makes a Service without a selector.
func (l *lone) service(name string, spec corev1.ServiceSpec) *corev1.Service {
	l.t.Helper()
	svc, err := l.kube.CoreV1().Services("default").Create(context.Background(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	l.ok(err)
	return svc
}

// drop deletes a Service and its slices.
func (l *lone) drop(svc *corev1.Service) {
	l.t.Helper()
	l.ok(l.kube.CoreV1().Services("default").Delete(context.Background(), svc.Name, metav1.DeleteOptions{}))
	l.ok(l.kube.DiscoveryV1().EndpointSlices("default").DeleteCollection(context.Background(), metav1.DeleteOptions{},
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + svc.Name}))
}

// endpoints makes, or changes, the slices by which a Service's ports lead to addresses, a slice for each family that the Service has.
func (l *lone) endpoints(svc *corev1.Service, port int32, addrs ...string) {
	l.t.Helper()
	for _, family := range svc.Spec.IPFamilies {
		s := slice(svc, "", family, port, addrs)
		slices := l.kube.DiscoveryV1().EndpointSlices("default")
		_, err := slices.Update(context.Background(), s, metav1.UpdateOptions{})
		if err != nil {
			_, err = slices.Create(context.Background(), s, metav1.CreateOptions{})
		}
		l.ok(err)
	}
}

// slice is a hand-made EndpointSlice of a Service. It takes the addresses that are of its family.
func slice(svc *corev1.Service, suffix string, family corev1.IPFamily, port int32, addrs []string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: svc.Name + "-" + strings.ToLower(string(family)) + suffix, Namespace: "default",
			Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: "scenario"}},
		AddressType: discoveryv1.AddressType(family),
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		number := port + int32(i)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &number})
	}
	for _, a := range addrs {
		if netip.MustParseAddr(a).Is4() == (family == corev1.IPv4Protocol) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
		}
	}
	return s
}

// bulk does something for each number below n, with many workers.
func bulk(n int, do func(i int) error) error {
	var all sync.WaitGroup
	work, errs := make(chan int), make(chan error, 1)
	for range 64 {
		all.Go(func() {
			for i := range work {
				if err := do(i); err != nil {
					select {
					case errs <- fmt.Errorf("number %d: %w", i, err):
					default:
					}
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	all.Wait()
	close(errs)
	return <-errs
}

// answerAll answers TCP connections to every address of the far pods, with the address that was asked. Connections stay open.
func (l *lone) answerAll() {
	l.t.Helper()
	l.far.EchoAs("", "tcp", fmt.Sprintf("[::]:%d", farPort))
}

// at is a Service's address of a family and its first port.
func at(svc *corev1.Service, is4 bool) netip.AddrPort {
	for _, ip := range svc.Spec.ClusterIPs {
		if a := netip.MustParseAddr(ip); a.Is4() == is4 {
			return netip.AddrPortFrom(a, uint16(svc.Spec.Ports[0].Port))
		}
	}
	panic(svc.Name + " has no such address")
}

// farPod is the address of a far pod, by number.
func farPod(i int) string { return fmt.Sprintf("10.245.%d.%d", i/250%250, 1+i%250) }

func farPod6(i int) string { return fmt.Sprintf("fd00:245::%x", 1+i) }

// dualStack asks for addresses of both families.
func dualStack() *corev1.IPFamilyPolicy {
	p := corev1.IPFamilyPolicyRequireDualStack
	return &p
}
