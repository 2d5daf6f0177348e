// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nodenet

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/testnet"
)

func setMTU(t *testing.T, h *testnet.Host, mtu int, devs ...string) {
	t.Helper()
	for _, dev := range devs {
		link, err := h.Link.LinkByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Link.LinkSetMTU(link, mtu); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSmallerLinks: the route's MTU is what is left of the link's, whatever that is, and everything gets through.
func TestSmallerLinks(t *testing.T) {
	testnet.MustRoot(t)
	for _, nodes := range []int{v4only, v6only} {
		for _, mtu := range []int{1400, 9000} {
			t.Run(fmt.Sprintf("%s/%d", map[int]string{v4only: "over IPv4", v6only: "over IPv6"}[nodes], mtu), func(t *testing.T) {
				s := newSite(t, nodes, dual)
				setMTU(t, s.router, mtu, "left", "right")
				setMTU(t, s.border, mtu, "left", "right")
				setMTU(t, s.fabric, mtu, "p0", "p1", "p2", "br0")
				for _, m := range s.members {
					setMTU(t, m.Host, mtu, "eth0")
				}
				for i := range s.members {
					s.set(i, Auto)
				}
				one, far := s.members[0], s.members[2]
				for _, r := range far.node.PodCIDRs {
					at := podAddr(r)
					inner := mtu - overhead(far.node.Addrs[0])
					one.Do(func() error {
						hop, err := Lookup(at)
						if hop.MTU != inner {
							t.Errorf("to %s: mtu %d, want %d", at, hop.MTU, inner)
						}
						return err
					})
					want := min(inner, 1500) - 52 // of the pods' own devices
					if at.Is6() {
						want -= 20
					}
					if mss := transfer(t, one.pod, far.pod, at, 1<<20); mss != want {
						t.Errorf("to %s: segments of %d bytes, want %d", at, mss, want)
					}
					datagram(t, one.pod, far.pod, at, 8000)
				}
			})
		}
	}
}

// TestNarrowPlace: a link between routers that no node sees is narrower than those that they see. What is too large for it is cut up over IPv4; over IPv6, the
// kernel learns the path's MTU from the router, and the routes follow when they are verified.
func TestNarrowPlace(t *testing.T) {
	testnet.MustRoot(t)
	for _, nodes := range []int{v4only, v6only} {
		t.Run(map[int]string{v4only: "over IPv4", v6only: "over IPv6"}[nodes], func(t *testing.T) {
			s := newSite(t, nodes, dual)
			setMTU(t, s.router, 1400, "right")
			setMTU(t, s.border, 1400, "left")
			for i := range s.members {
				s.set(i, Auto)
			}
			one, far := s.members[0], s.members[2]
			for _, r := range far.node.PodCIDRs {
				if nodes == v6only {
					// The first large packet is lost, and tells.
					server := far.pod.Echo("udp", netip.AddrPortFrom(podAddr(r), 0).String())
					c, err := one.pod.Dial(context.Background(), "udp", "", server)
					if err != nil {
						t.Fatal(err)
					}
					for end, learnt := time.Now().Add(10*time.Second), false; !learnt; time.Sleep(time.Millisecond) {
						c.Write(make([]byte, 1370)) // an error is what was learnt before
						one.Do(func() error {
							hop, err := Lookup(far.node.Addrs[0])
							learnt = hop.MTU == 1400
							return err
						})
						if time.Now().After(end) {
							t.Fatal("the path's MTU is not learnt")
						}
					}
					c.Close()
					one.Do(func() error { return one.target.Verify(context.Background()) })
					one.Do(func() error {
						hop, err := Lookup(podAddr(r))
						if hop.MTU != 1330 {
							t.Errorf("to %s: mtu %d, want 1330", podAddr(r), hop.MTU)
						}
						return err
					})
				}
				transfer(t, one.pod, far.pod, podAddr(r), 1<<20)
			}
		})
	}
}

// TestSilentPath: a client whose path drops ICMP gets segments that fit when it connects through the tunnel: it need not be told later.
func TestSilentPath(t *testing.T) {
	testnet.MustRoot(t)
	s := newSite(t, dual, dual)
	for i := range s.members {
		s.set(i, Auto)
	}
	one, far := s.members[0], s.members[2]
	one.Do(func() error { // no ICMP to the pod
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "silent"})
		chain := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
		for _, proto := range []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{meta(expr.MetaKeyL4PROTO), is(proto),
				meta(expr.MetaKeyOIFNAME), deviceName("fl00000000001"), &expr.Verdict{Kind: expr.VerdictDrop}}})
		}
		return c.Flush()
	})
	for _, r := range far.node.PodCIDRs {
		transfer(t, one.pod, far.pod, podAddr(r), 1<<20)
	}
}

// TestNodePortThroughTunnel: a client outside comes to a node port of one node, and the endpoint is behind the tunnel: the source is that node's own
// address, because the answer must come back there, and it does.
func TestNodePortThroughTunnel(t *testing.T) {
	testnet.MustRoot(t)
	for _, nodes := range []int{dual, v6first} {
		s := newSite(t, nodes, dual)
		for i := range s.members {
			s.set(i, Auto)
		}
		one, far := s.members[0], s.members[2]
		// A device that comes first, with an address that nobody else knows: the one that the kernel would take.
		one.Addr("lo", "192.0.2.200/32", "2001:db8::200/128")
		b := model.NewBuilder(model.Config{Self: "n1"})
		for _, m := range s.members {
			b.SetNode(m.node)
		}
		name := model.Name{Namespace: "shop", Name: "web"}
		b.SetService(model.ServiceSpec{Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:96::20")},
			Ports: []model.Port{{Protocol: model.TCP, Port: 80, NodePort: 30080}}, Exposure: &model.Exposure{}})
		for i, r := range far.node.PodCIDRs {
			at := podAddr(r)
			far.pod.Echo("tcp", netip.AddrPortFrom(at, 8080).String())
			b.SetSlice(model.Slice{Name: model.Name{Namespace: "shop", Name: fmt.Sprintf("web-%d", i)}, Service: "web",
				Ports: []model.Port{{Protocol: model.TCP, Port: 8080}}, Endpoints: []model.Endpoint{{Addr: at, Node: "n3", Ready: true, Serving: true}}})
		}
		snap := b.Build()
		one.Do(func() error {
			target := nft.New(nft.Options{})
			defer target.Close()
			return target.Apply(context.Background(), snap)
		})
		for _, a := range one.node.Addrs {
			answer, err := s.router.Ask("tcp", "", netip.AddrPortFrom(a, 30080))
			if err != nil {
				t.Errorf("node port at %s: %v", a, err)
				continue
			}
			if answer.Name != "p3" || answer.Client.Addr() != a {
				t.Errorf("node port at %s: %v; want p3, which sees the node", a, answer)
			}
		}
		one.Do(func() error {
			for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
				flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
				if err != nil {
					return err
				}
				tracked := 0
				for _, f := range flows {
					if f.Forward.DstPort == DefaultPort {
						t.Errorf("the tunnel's own packets are tracked: %v", f)
					}
					tracked++
				}
				if tracked == 0 {
					t.Error("nothing is tracked")
				}
			}
			return nil
		})
	}
}
