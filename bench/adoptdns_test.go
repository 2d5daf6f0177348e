// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// serveDNS makes a pod for CoreDNS, and the Service kube-dns, whose only endpoint it is.
func (k *takeover) serveDNS() {
	k.t.Helper()
	ctx := k.t.Context()
	var err error
	if k.names, err = newHost(); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(k.names.close)
	if err := errors.Join(k.node.attach("pod2", k.names, k.namesIP()), k.names.up("lo")); err != nil {
		k.t.Fatal(err)
	}
	if err := k.w.fabric.route(nodeCIDR(k.number), nodeAddr(k.number), "fabric"); err != nil {
		k.t.Fatal(err)
	}
	ports := []corev1.ServicePort{{Name: "dns", Port: dnsPort, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Port: dnsPort}}
	_, err = k.w.client.CoreV1().Services(metav1.NamespaceSystem).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-dns"}, Spec: corev1.ServiceSpec{ClusterIP: dnsIP, Ports: ports}}, metav1.CreateOptions{})
	if err != nil {
		k.t.Fatal(err)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "kube-dns", Labels: map[string]string{discoveryv1.LabelServiceName: "kube-dns"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{k.namesIP()}, NodeName: ptr.To(k.name), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}},
	}
	for _, p := range ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Protocol: ptr.To(p.Protocol), Port: ptr.To(p.Port)})
	}
	slice.Ports[1].Protocol = ptr.To(corev1.ProtocolTCP)
	if _, err := k.w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		k.t.Fatal(err)
	}
}

// namesIP is the address of CoreDNS's pod.
func (k *takeover) namesIP() string { return strings.TrimSuffix(k.podAddr(), "2") + "4" }

// startCoreDNS starts it with kubeadm's Corefile, and more before what is the cluster's, and waits until it answers as it should.
func (k *takeover) startCoreDNS(more string, want int) (*process, string) {
	k.t.Helper()
	dir := k.newDir("coredns")
	text := fmt.Sprintf(corefile, "bind "+k.namesIP()+"\n    "+more, "kubeconfig "+k.w.kubeconfig, remoteIP, uncached)
	flags, err := writeConfig(dir, "Corefile", text, "-conf")
	if err != nil {
		k.t.Fatal(err)
	}
	p := k.start(k.names, dir, append([]string{k.w.programs.coreDNS}, flags...)...)
	out := ""
	err = p.until(k.t.Context(), time.Minute, 100*time.Millisecond, func() error {
		var code int
		if code, out = k.run("adopt", "check", "--only", "dns", "--node", k.name, "--kubeconfig", k.w.kubeconfig, "--dns-ip", dnsIP,
			"--service-cidr", serviceCIDR, "--pod-cidr", podCIDR); code != want {
			return fmt.Errorf("check ends with %d: %s", code, out)
		}
		return nil
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return p, out
}

// resolvers asks the cluster DNS all the time, over UDP and TCP, with a new socket for each question, and one for all of them. TCP connections are
// counted when they break, and opened again, as resolvers do; what is asked over UDP is asked once.
func (k *takeover) resolvers() (tr *clients, byAgent func() int64, broken *clientKind) {
	k.t.Helper()
	tr, ctx := k.newClients()
	broken = &clientKind{name: "TCP connections that broke"}
	agents := &clientKind{}
	want := k.vip("shop").Addr()
	ask := func(c *dns.Conn) error {
		if err := c.SetDeadline(time.Now().Add(exchangeLimit)); err != nil {
			return err
		}
		m := new(dns.Msg).SetQuestion("shop.default.svc."+clusterDomain+".", dns.TypeA)
		if err := c.WriteMsg(m); err != nil {
			return fmt.Errorf("ask: %w", err)
		}
		a, err := c.ReadMsg()
		switch {
		case err != nil:
			return fmt.Errorf("hear: %w", err)
		case a.Id != m.Id || len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != want.String():
			return fmt.Errorf("got %s", a)
		}
		if a.Answer[0].Header().Ttl == 5 {
			agents.done.Add(1)
		}
		return nil
	}
	dial := func(network string) (*dns.Conn, error) {
		limited, cancel := context.WithTimeout(ctx, exchangeLimit)
		defer cancel()
		c, err := k.client.Dial(limited, network, netip.AddrPortFrom(netip.MustParseAddr(dnsIP), dnsPort).String())
		if err != nil {
			return nil, fmt.Errorf("dial: %w", err)
		}
		return &dns.Conn{Conn: c}, nil
	}
	for _, network := range []string{"udp", "tcp"} {
		fresh, kept := &clientKind{name: network + ", new"}, &clientKind{name: network + ", kept"}
		tr.kinds = append(tr.kinds, fresh, kept)
		once := func() error {
			c, err := dial(network)
			if err != nil {
				return err
			}
			defer c.Close()
			return ask(c)
		}
		tr.every(ctx, fresh, func() error {
			err := once()
			if err != nil && network == "tcp" {
				// The agent's sockets take over what is on its way to CoreDNS just then, and reset it; resolvers ask again.
				broken.result(err)
				err = once()
			}
			return err
		})
		var c *dns.Conn
		tr.every(ctx, kept, func() (err error) {
			if c == nil {
				if c, err = dial(network); err != nil {
					return err
				}
			}
			if err = ask(c); err == nil || network == "udp" {
				return err
			}
			// A server may close a connection at any time (RFC 7766, section 6.2.4): the question is asked again.
			broken.result(err)
			c.Close()
			if c, err = dial(network); err != nil {
				return err
			}
			return ask(c)
		})
	}
	return tr, func() int64 { return agents.done.Load() }, broken
}

// TestAdoptDNS has the agent answer instead of CoreDNS and gives back, several times, with kube-proxy carrying the traffic.
func TestAdoptDNS(t *testing.T) {
	k := newTakeover(t, "nftables", "--controllers=false")
	k.serveDNS()
	k.startProxy()
	coredns, out := k.startCoreDNS("", 0)
	t.Log(out)
	tr, byAgent, broken := k.resolvers()
	tr.more(20)
	if byAgent() != 0 {
		t.Fatal("an agent answers that does not run")
	}
	for round := range 3 {
		at := func(s string) string { return fmt.Sprintf("round %d, %s", round+1, s) }
		before := byAgent()
		k.startAgent("--proxy=false", "--dns-ip", dnsIP)
		tr.more(20)
		tr.none(at("both run"))
		if byAgent() == before {
			t.Fatal("the agent answers nothing")
		}
		coredns.stop()
		tr.more(50)
		tr.none(at("the agent alone"))
		coredns, _ = k.startCoreDNS("", 0)
		k.agent.stop()
		tr.more(20)
		tr.none(at("CoreDNS alone, before the cleanup"))
		k.must("cleanup")
		tr.more(50)
		tr.none(at("CoreDNS alone"))
	}
	tr.stop()
	t.Logf("by the agent: %d; %s: %d %v", byAgent(), broken.name, broken.failed.Load(), broken.errs)
	// In each of six switches the connection that is kept, and at most one that was just opened.
	if n := broken.failed.Load(); n > 12 {
		t.Errorf("%d TCP connections broke in 6 switches", n)
	}
	coredns.stop()

	// An answer of CoreDNS's that it should not give is found.
	_, out = k.startCoreDNS("hosts {\n        10.1.2.3 lone.default.svc.cluster.local\n        fallthrough\n    }", 1)
	if want := "lone.default.svc.cluster.local. A, " + k.namesIP() + ":53: here " + k.vip("lone").Addr().String() + "; there 10.1.2.3"; !strings.Contains(out, want) {
		t.Errorf("no %q in %s", want, out)
	}
}
