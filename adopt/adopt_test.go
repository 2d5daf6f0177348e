// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cleanup"
	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// world is a small cluster: a Service of each kind that matters.
func world(edit func(*model.Builder)) *model.Snapshot {
	b := model.NewBuilder(model.Config{Self: "n1", DNS: []netip.Addr{addr("10.96.0.10")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, PassOn: true})
	for i, name := range []string{"n1", "n2"} {
		b.SetNode(model.Node{Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 0}), 24)}})
	}
	add := func(spec model.ServiceSpec, endpoints ...string) {
		spec.Ports = []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}}
		if spec.Exposure != nil {
			spec.Ports[0].NodePort = 30080
		}
		b.SetService(spec)
		s := model.Slice{Name: spec.Name, Service: spec.Name.Name, Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}}}
		for _, e := range endpoints {
			node := "n" + strings.Split(e, ".")[2]
			s.Endpoints = append(s.Endpoints, model.Endpoint{Addr: addr(e), Node: node, Ready: true, Serving: true})
		}
		b.SetSlice(s)
	}
	add(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "web"}, ClusterIPs: []netip.Addr{addr("10.96.0.1")},
		Exposure: &model.Exposure{}}, "10.244.1.2", "10.244.2.2")
	add(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "db"}, Type: model.Headless}, "10.244.2.3")
	if edit != nil {
		edit(b)
	}
	return b.Build()
}

// saved are kube-proxy's rules for the world, as iptables-save prints them.
const saved = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m something --strange -j DROP
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "shop/none:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-EXT-WEB - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-SEP-ONE - [0:0]
:KUBE-SEP-TWO - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-WEB
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-WEB
-A KUBE-EXT-WEB -j KUBE-MARK-MASQ
-A KUBE-EXT-WEB -j KUBE-SVC-WEB
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SVC-WEB ! -s 10.244.0.0/16 -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-ONE
-A KUBE-SVC-WEB -j KUBE-SEP-TWO
-A KUBE-SEP-ONE -s 10.244.1.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-ONE -p tcp -m tcp -j DNAT --to-destination 10.244.1.2:8080
-A KUBE-SEP-TWO -p tcp -m tcp -j DNAT --to-destination 10.244.2.2:8080
COMMIT
`

// proxyOf is a kube-proxy with rules as iptables-save prints them.
func proxyOf(t *testing.T, text string) *KubeProxy {
	t.Helper()
	s := cleanup.Saved{Program: "iptables-nft"}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			s.Tables = append(s.Tables, cleanup.SavedTable{Name: name})
			continue
		}
		table := &s.Tables[len(s.Tables)-1]
		if name, ok := strings.CutPrefix(line, ":"); ok {
			table.Chains = append(table.Chains, strings.Fields(name)[0])
		} else if strings.HasPrefix(line, "-A") {
			table.Rules = append(table.Rules, line)
		}
	}
	rules := newIPTables(s)
	if rules == nil {
		t.Fatal("no chain of kube-proxy's")
	}
	k := &KubeProxy{}
	k.add(0, "iptables", rules)
	return k
}

func check(t *testing.T, snap *model.Snapshot, k *KubeProxy) Part {
	t.Helper()
	return CheckProxy(t.Context(), ProxyOptions{Snapshot: func() *model.Snapshot { return snap }, Looks: 2, Read: func(context.Context) (*KubeProxy, error) { return k, nil }})
}

// Each row is a change of kube-proxy's rules, and what comes of it.
func TestDifferences(t *testing.T) {
	for _, row := range []struct {
		name, old, new  string
		of, here, there string // of the only difference; empty: there is none
	}{
		{name: "nothing is changed"},
		{"an endpoint too few", "-m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-ONE", "-m statistic --mode random --probability 0.5 -j KUBE-SEP-TWO",
			"10.96.0.1:80/TCP nodeport4:30080/TCP", "10.244.1.2:8080, 10.244.2.2:8080", "10.244.2.2:8080"},
		{"another port", "10.244.1.2:8080", "10.244.1.2:8081", "10.96.0.1:80/TCP nodeport4:30080/TCP", "10.244.1.2:8080, 10.244.2.2:8080", "10.244.1.2:8081, 10.244.2.2:8080"},
		{"affinity", "-A KUBE-SVC-WEB -j KUBE-SEP-TWO", "-A KUBE-SVC-WEB -m recent --rcheck --seconds 60 --reap --name X --rsource -j KUBE-SEP-ONE\n-A KUBE-SVC-WEB -j KUBE-SEP-TWO",
			"10.96.0.1:80/TCP nodeport4:30080/TCP", "10.244.1.2:8080, 10.244.2.2:8080", "10.244.1.2:8080, 10.244.2.2:8080 with affinity for 1m0s"},
		{"no node port", "-A KUBE-NODEPORTS -p tcp", "-A KUBE-NODEPORTS -p udp", "nodeport4:30080/TCP", "10.244.1.2:8080, 10.244.2.2:8080", "untouched"},
		{"a rule from elsewhere", "-A KUBE-EXT-WEB -j KUBE-MARK-MASQ", "-A KUBE-EXT-WEB -m strange --thing 1 -j KUBE-MARK-MASQ", "nodeport4:30080/TCP", "10.244.1.2:8080, 10.244.2.2:8080",
			`unknown: chain KUBE-EXT-WEB: "--thing" is not understood in "-A KUBE-EXT-WEB -m strange --thing 1 -j KUBE-MARK-MASQ"`},
		{"a Service that is gone", "-d 10.96.0.9/32", "-d 10.96.0.9/32", "", "", ""},
		{"a circle", "-A KUBE-SEP-TWO -p tcp -m tcp -j DNAT --to-destination 10.244.2.2:8080", "-A KUBE-SEP-TWO -j KUBE-SVC-WEB", "10.96.0.1:80/TCP nodeport4:30080/TCP",
			"10.244.1.2:8080, 10.244.2.2:8080", "unknown: chain KUBE-"},
		{"a mark", "-A KUBE-EXT-WEB -j KUBE-MARK-MASQ", "-A KUBE-EXT-WEB -j KUBE-MARK-MASQ\n-A KUBE-EXT-WEB -m mark --mark 0x4000/0x4000 -j DROP", "nodeport4:30080/TCP",
			"10.244.1.2:8080, 10.244.2.2:8080", "no answer"},
		{"a chain that is gone to", "-A KUBE-EXT-WEB -j KUBE-SVC-WEB", "-A KUBE-EXT-WEB -g KUBE-MARK-MASQ\n-A KUBE-EXT-WEB -j KUBE-SVC-WEB", "nodeport4:30080/TCP",
			"10.244.1.2:8080, 10.244.2.2:8080", "untouched"},
		{"a return", "-A KUBE-EXT-WEB -j KUBE-MARK-MASQ", "-A KUBE-EXT-WEB -j RETURN", "nodeport4:30080/TCP", "10.244.1.2:8080, 10.244.2.2:8080", "untouched"},
		{"not for the first packet", "-A KUBE-EXT-WEB -j KUBE-MARK-MASQ", "-A KUBE-EXT-WEB -m conntrack --ctstate RELATED,ESTABLISHED -j DROP", "", "", ""},
		{"refused at the node", "-A INPUT -j KUBE-FIREWALL", "-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n" +
			"-A KUBE-EXTERNAL-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 30081 -j REJECT", "nodeport4:30081/TCP", "untouched", "refused"},
		{"only from here", "-A KUBE-SVC-WEB -j KUBE-SEP-TWO", "-A KUBE-SVC-WEB -m addrtype --src-type LOCAL -j DROP\n-A KUBE-SVC-WEB -j KUBE-SEP-TWO", "", "", "10.244.1.2:8080, no answer"},
	} {
		t.Run(row.name, func(t *testing.T) {
			text := saved
			if row.old != "" {
				if text = strings.Replace(saved, row.old, row.new, 1); text == saved && row.old != row.new {
					t.Fatalf("no %q in the rules", row.old)
				}
			}
			part := check(t, world(nil), proxyOf(t, text))
			if part.Failed != "" {
				t.Fatal(part.Failed)
			}
			if row.there == "" {
				if part.Unmeant() > 0 {
					t.Errorf("differs: %v", part.Differences)
				}
				return
			}
			var of []string
			for _, d := range part.Differences {
				if d.Meant != "" || row.here != "" && d.Here != row.here || d.There != row.there && !strings.HasPrefix(d.There, row.there) {
					t.Errorf("differs: %+v", d)
				}
				of = append(of, d.Of)
			}
			if got := strings.Join(slices.Compact(of), " "); row.of != "" && got != row.of || len(of) == 0 {
				t.Errorf("of %q, want %q", got, row.of)
			}
		})
	}
}

// A pod's host port is no work of kube-proxy's, and so no difference from it.
func TestHostPorts(t *testing.T) {
	snap := world(func(b *model.Builder) {
		b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "front"}, Addrs: []netip.Addr{addr("10.244.1.7")},
			HostPorts: []model.HostPort{{Addr: addr("192.168.0.1"), Protocol: model.TCP, Port: 8080, Target: 80}, {Protocol: model.TCP, Port: 8443, Target: 443}}})
	})
	if part := check(t, snap, proxyOf(t, saved)); part.Failed != "" || part.Looked != 3 || len(part.Differences) > 0 {
		t.Errorf("%+v", part)
	}
}

// Frontends of a family that kube-proxy knows nothing of are not passed over in silence.
func TestFamilyWithoutRules(t *testing.T) {
	snap := world(func(b *model.Builder) {
		b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "six"}, ClusterIPs: []netip.Addr{addr("fd00:96::1")}, Ports: []model.Port{{Protocol: model.TCP, Port: 80}}})
	})
	part := check(t, snap, proxyOf(t, saved))
	if part.Unmeant() != 0 || part.Looked+1 != part.All || len(part.Notes) != 1 || !strings.Contains(part.Notes[0], "1 frontends are of a family") {
		t.Errorf("%+v", part)
	}
}

// A difference that is gone at the next look is none.
func TestDifferencesLast(t *testing.T) {
	right, wrong := proxyOf(t, saved), proxyOf(t, strings.Replace(saved, "10.244.1.2:8080", "10.244.1.2:1", 1))
	looks := 0
	part := CheckProxy(t.Context(), ProxyOptions{Snapshot: func() *model.Snapshot { return world(nil) }, Looks: 3, Read: func(context.Context) (*KubeProxy, error) {
		if looks++; looks == 1 {
			return wrong, nil
		}
		return right, nil
	}})
	if part.Unmeant() != 0 || looks != 2 || part.Looked != 3 {
		t.Errorf("%d looks: %+v", looks, part)
	}
}

// Who else asks for a frontend, and what a family without source ranges means, differ on purpose.
func TestMeantDifferences(t *testing.T) {
	snap := world(func(b *model.Builder) {
		b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "a", Name: "taker"}, ClusterIPs: []netip.Addr{addr("10.96.0.7")},
			Exposure: &model.Exposure{ExternalIPs: []netip.Addr{addr("203.0.113.1")}}, Ports: []model.Port{{Protocol: model.TCP, Port: 80}}})
		b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "b", Name: "taker"}, ClusterIPs: []netip.Addr{addr("10.96.0.8")},
			Exposure: &model.Exposure{ExternalIPs: []netip.Addr{addr("203.0.113.1")}}, Ports: []model.Port{{Protocol: model.TCP, Port: 80}}})
	})
	part := check(t, snap, proxyOf(t, saved))
	n := 0
	for _, d := range part.Differences {
		disputed := d.Of == "203.0.113.1:80/TCP"
		if strings.Contains(d.Meant, "several Services") != disputed {
			t.Errorf("meant %q: %+v", d.Meant, d)
		}
		if disputed {
			n++
		}
	}
	if n == 0 {
		t.Error("nothing differs where two Services ask for an address")
	}
	one, two := netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.2.2")
	svc := &model.Service{Backends: [][]model.Backend{{{Endpoint: &model.Endpoint{Addr: one}, Port: 80}, {Endpoint: &model.Endpoint{Addr: two}, Port: 80}}}}
	svc.Backends[0][0].Leaving = true
	fate := func(ways ...string) Fate { return Fate{Ways: ways} }
	both := fate("10.244.1.2:80", "10.244.2.2:80")
	for _, row := range []struct {
		way         model.Way
		kind        clientKind
		here, there Fate
		asOutside   Fate
		want        string // what the reason begins with; empty: there is none
	}{
		{model.Way{Kind: model.AtBalancer, Guarded: true}, outside, fate(noAnswer), both, both, "source ranges of one family"},
		{model.Way{Kind: model.AtBalancer, Guarded: true, Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, outside, fate(noAnswer), both, both, ""},
		{model.Way{Kind: model.AtNodePort, Outside: model.Here}, ofOtherPod, both, fate(noAnswer), fate(noAnswer), "with externalTrafficPolicy Local"},
		{model.Way{Kind: model.AtNodePort, Outside: model.Here}, ofOtherPod, both, fate(noAnswer), both, ""},
		{model.Way{Kind: model.AtNodePort, Outside: model.Here}, ofNode, both, fate(noAnswer), fate(noAnswer), ""},
		{model.Way{Kind: model.AtNodePort}, ofOtherPod, both, fate(noAnswer), fate(noAnswer), ""},
		{model.Way{Kind: model.AtClusterIP, Outside: model.Here}, ofOtherPod, both, fate(noAnswer), fate(noAnswer), ""},
		{model.Way{}, ofPod, fate("10.244.2.2:80"), both, both, "a pod of this node that has been told to end"},
		{model.Way{}, ofPod, fate("10.244.1.2:80"), both, both, ""},
		{model.Way{}, ofPod, fate("10.244.3.3:80"), fate("10.244.1.2:80"), both, ""},
		{model.Way{}, ofPod, both, Fate{Ways: both.Ways, Affinity: time.Minute}, both, ""},
	} {
		row.way.Service = svc
		got := reason(row.way, false, client{kind: row.kind}, row.here, row.there, func() Fate { return row.asOutside })
		if !strings.HasPrefix(got, row.want) || row.want == "" && got != "" {
			t.Errorf("%+v: reason %q", row, got)
		}
	}
}

// follow sees every way that may be drawn, also where one draw leads to another.
func TestFollowDrawsEverything(t *testing.T) {
	f, err := follow(model.Packet{}, func(p *trip) (end, error) {
		s := ""
		for range 1 + p.choose(3) {
			s += string('a' + rune(p.choose(2)))
		}
		return end(s), nil
	})
	if err != nil || len(f.Ways) != 2+4+8 {
		t.Errorf("%v, %v", f, err)
	}
	if _, err := follow(model.Packet{}, func(p *trip) (end, error) { p.choose(1 << 31); return "", nil }); err == nil {
		t.Error("a draw among two thousand million is no error")
	}
}

func TestReport(t *testing.T) {
	p := Part{With: "kube-proxy (nftables)", Of: "frontends", Looked: 3, All: 3}
	p.add([]Difference{{Of: "b", Here: "1", There: "2"}, {Of: "a", Here: "1", There: "2", Meant: "so it is"}, {Of: "b", Who: "x", Here: "1", There: "3"}})
	r := &Report{Node: "n1", Services: 7, Parts: []Part{p}}
	var b bytes.Buffer
	r.Print(&b)
	const want = `node n1, 7 Services
  kube-proxy (nftables): 3 frontends: 1 same, 1 differences meant, 2 not meant: LOOK FIRST

kube-proxy (nftables), not meant:
  b: here 1; there 2
  b, x: here 1; there 3

kube-proxy (nftables), meant: so it is
  a: here 1; there 2
`
	if b.String() != want {
		t.Errorf("got\n%s", b.String())
	}
	for _, row := range []struct {
		parts []Part
		code  int
	}{{nil, 0}, {[]Part{p}, 1}, {[]Part{{Failed: "x"}, p}, 2}, {[]Part{{Differences: p.Differences[:1]}}, 0}} {
		if got := (&Report{Parts: row.parts}).Code(); got != row.code {
			t.Errorf("code %d, want %d", got, row.code)
		}
	}
}

// proxyIn is a kube-proxy of one family, with the table that the nft tool makes of rules.
func proxyIn(t *testing.T, family uint8, rules string) *KubeProxy {
	t.Helper()
	testnet.MustRoot(t)
	if _, err := exec.LookPath("nft"); err != nil {
		testnet.Skip(t, "needs the nft tool")
	}
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	k := &KubeProxy{}
	err = ns.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		for i, f := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
			tbl, err := readTable(f, cleanup.KubeProxyTable)
			if err != nil || (tbl != nil) != (f == family) {
				return fmt.Errorf("the table of family %d is %v: %v", f, tbl, err)
			}
			if tbl != nil {
				k.add(i, "nftables", tbl)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The kernel's own table is read and followed: each row is a rule written by the nft tool, and what becomes of packets.
func TestReadTable(t *testing.T) {
	const rules = `table ip kube-proxy {
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.1 . tcp . 80 : goto two, 10.96.0.2 . udp . 53 : goto sticky, 10.96.0.3 . tcp . 80 : goto ranges, 10.96.0.4 . tcp . 80 : goto strange }; }
	map service-nodeports { type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : goto two }; }
	map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.5 . tcp . 80 : goto refuse, 10.96.0.6 . tcp . 80 : drop }; }
	map no-endpoint-nodeports { type inet_proto . inet_service : verdict
		elements = { tcp . 30090 : goto refuse }; }
	set pin { type ipv4_addr; flags dynamic,timeout; timeout 3h; }
	chain two { meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.244.1.2 . 8080, 1 : 10.244.2.2 . 8081 }; }
	chain sticky { ip saddr @pin goto end
		numgen random mod 1 vmap { 0 : goto end }; }
	chain end { update @pin { ip saddr }
		meta l4proto udp dnat to 10.244.1.9:5353; }
	chain ranges { ip saddr != { 10.1.0.0/16, 192.0.2.0/24 } drop
		fib saddr type local return
		mark set mark or 0x4000 meta l4proto tcp dnat to 10.244.1.3:80; }
	chain strange { tcp flags syn drop; }
	chain refuse { reject; }
	chain services { ip daddr . meta l4proto . th dport vmap @service-ips
		fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports; }
	chain check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
	chain pre { type nat hook prerouting priority -100; jump services; }
	chain out { type nat hook output priority -100; jump services; }
	chain nodes { fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @no-endpoint-nodeports; }
	chain input { type filter hook input priority 0; ct state new jump nodes; }
	chain forward { type filter hook forward priority 0; ct state new jump check; }
	chain output { type filter hook output priority 0; ct state new jump check; }
}`
	k := proxyIn(t, unix.NFPROTO_IPV4, rules)
	for _, row := range []struct {
		proto    model.Protocol
		src, dst string
		from, to bool
		want     string
	}{
		{model.TCP, "192.0.2.1", "10.96.0.1:80", false, false, "10.244.1.2:8080, 10.244.2.2:8081"},
		{model.TCP, "192.0.2.1", "10.96.0.1:80", true, false, "10.244.1.2:8080, 10.244.2.2:8081"},
		{model.UDP, "192.0.2.1", "10.96.0.1:80", false, false, "untouched"},
		{model.UDP, "192.0.2.1", "10.96.0.2:53", false, false, "10.244.1.9:5353 with affinity for 3h0m0s"},
		{model.TCP, "192.0.2.0", "10.96.0.3:80", false, false, "10.244.1.3:80"},
		{model.TCP, "192.0.2.255", "10.96.0.3:80", false, false, "10.244.1.3:80"},
		{model.TCP, "192.0.3.0", "10.96.0.3:80", false, false, "no answer"},
		{model.TCP, "10.0.255.255", "10.96.0.3:80", false, false, "no answer"},
		{model.TCP, "10.1.0.0", "10.96.0.3:80", false, false, "10.244.1.3:80"},
		{model.TCP, "10.1.255.255", "10.96.0.3:80", true, false, "untouched"},
		{model.TCP, "192.0.2.1", "192.168.0.1:30080", false, true, "10.244.1.2:8080, 10.244.2.2:8081"},
		{model.TCP, "192.0.2.1", "192.168.0.2:30080", false, false, "untouched"},
		{model.TCP, "192.0.2.1", "192.168.0.1:30090", false, true, "refused"},
		{model.TCP, "192.168.0.1", "192.168.0.1:30090", true, true, "refused"},
		{model.TCP, "192.0.2.1", "192.168.0.2:30090", false, false, "untouched"},
		{model.TCP, "192.0.2.1", "10.96.0.5:80", false, false, "refused"},
		{model.TCP, "192.0.2.1", "10.96.0.6:80", true, false, "no answer"},
		{model.TCP, "192.0.2.1", "10.96.0.4:80", false, false, "not understood"},
	} {
		p := model.Packet{Protocol: row.proto, Src: netip.AddrPortFrom(addr(row.src), 1000), Dst: addrPort(row.dst), FromNode: row.from, ToNode: row.to}
		f, err := k.Decide(p)
		got := f.String()
		if err != nil {
			got = err.Error()
		}
		if got != row.want && !(err != nil && row.want == "not understood") {
			t.Errorf("%+v: %s, want %s", row, got, row.want)
		}
	}
	if got := len(k.Frontends()); got != 8 {
		t.Errorf("%d frontends, want 8", got)
	}
}

// IPv6 goes the same way.
func TestReadTableIPv6(t *testing.T) {
	k := proxyIn(t, unix.NFPROTO_IPV6, `table ip6 kube-proxy {
	map service-ips { type ipv6_addr . inet_proto . inet_service : verdict
		elements = { fd00:96::1 . tcp . 80 : goto two, fd00:96::2 . tcp . 80 : goto ranges } }
	map service-nodeports { type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : goto two } }
	chain two { meta l4proto tcp dnat ip6 addr . port to numgen random mod 2 map { 0 : fd00:1::2 . 8080, 1 : fd00:2::2 . 8080 }; }
	chain ranges { ip6 saddr != { fd00:5::/64 } drop
		meta l4proto tcp dnat to [fd00:1::3]:80; }
	chain pre { type nat hook prerouting priority -100
		ip6 daddr . meta l4proto . th dport vmap @service-ips
		fib daddr type local ip6 daddr != ::1 meta l4proto . th dport vmap @service-nodeports; }
}`)
	for _, row := range []struct {
		src, dst string
		to       bool
		want     string
	}{
		{"2001:db8::1", "[fd00:96::1]:80", false, "[fd00:1::2]:8080, [fd00:2::2]:8080"},
		{"fd00:5::ffff:ffff:ffff:ffff", "[fd00:96::2]:80", false, "[fd00:1::3]:80"},
		{"fd00:5:0:1::", "[fd00:96::2]:80", false, "no answer"},
		{"2001:db8::1", "[fd00:77::1]:30080", true, "[fd00:1::2]:8080, [fd00:2::2]:8080"},
		{"2001:db8::1", "[fd00:77::1]:30081", true, "untouched"},
	} {
		f, err := k.Decide(model.Packet{Protocol: model.TCP, Src: netip.AddrPortFrom(addr(row.src), 1000), Dst: addrPort(row.dst), ToNode: row.to})
		if err != nil || f.String() != row.want {
			t.Errorf("%+v: %s, %v", row, f, err)
		}
	}
	for f := range k.Frontends() {
		if f.Addr.Is4() {
			t.Errorf("frontend %s", f)
		}
	}
}

// A table that was read while it changed may have a circle.
func TestCircle(t *testing.T) {
	to := func(name string) []expression {
		verdict := append([]byte{8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfc, 6, 0, 2, 0}, name+"\x00\x00\x00"...) // goto
		nested := append([]byte{byte(4 + len(verdict)), 0, unix.NFTA_DATA_VERDICT, 0}, verdict...)
		return []expression{{"immediate", map[uint16][]byte{unix.NFTA_IMMEDIATE_DATA: nested}}}
	}
	a, b := &chain{name: "a", rules: [][]expression{to("b")}}, &chain{name: "b", rules: [][]expression{to("a")}}
	m := machine{table: &table{is4: true, chains: map[string]*chain{"a": a, "b": b}}, trip: &trip{}}
	if _, err := m.run(a); err == nil || !strings.Contains(err.Error(), "circle") {
		t.Errorf("got %v", err)
	}
}

// A server that is asked gives the right answers, or one wrong answer, or none.
func TestCheckDNS(t *testing.T) {
	snap := world(nil)
	options := dns.Options{Blocks: []dns.Block{{Zones: []string{"."}, Cluster: &dns.Cluster{Zones: []string{"cluster.local.", "in-addr.arpa.", "ip6.arpa."}, TTL: 30 * time.Second}}},
		Reverse: append(slices.Clone(snap.ServiceCIDRs), netip.MustParsePrefix("10.244.0.0/16"))}
	view, err := dns.NewView(options, snap)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		edit func(q mdns.Question, m *mdns.Msg) bool // false: no answer
		want string                                  // a difference; empty: none
		why  string                                  // what its reason begins with; empty: it is not meant
	}{
		{"as it should", nil, "", ""},
		{"another address", func(q mdns.Question, m *mdns.Msg) bool {
			if q.Name == "web.shop.svc.cluster.local." && q.Qtype == mdns.TypeA {
				m.Answer[0].(*mdns.A).A = addr("10.1.1.1").AsSlice()
			}
			return true
		}, "web.shop.svc.cluster.local. A, ADDR: here 10.96.0.1; there 10.1.1.1", ""},
		{"a name that does not exist", func(q mdns.Question, m *mdns.Msg) bool {
			if strings.HasPrefix(q.Name, nobody+".shop") {
				m.Rcode = mdns.RcodeSuccess
			}
			return true
		}, nobody + ".shop.svc.cluster.local. A, ADDR: here NXDOMAIN; there no such record", ""},
		{"names of pods", func(q mdns.Question, m *mdns.Msg) bool {
			if strings.HasPrefix(q.Name, "10-0-0-1.default.pod.") {
				m.Rcode = mdns.RcodeSuccess
				m.Answer = append(m.Answer, &mdns.A{Hdr: mdns.RR_Header{Name: q.Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET}, A: addr("10.0.0.1").AsSlice()})
			}
			return true
		}, "10-0-0-1.default.pod.cluster.local. A, ADDR: here NXDOMAIN; there 10.0.0.1", "pods have no names by their address"},
		{"an endpoint's name below a Service with an address", func(q mdns.Question, m *mdns.Msg) bool {
			return pointer(q, m, "10-244-2-3.web.shop.svc.cluster.local.")
		}, "3.2.244.10.in-addr.arpa. PTR, ADDR: here 10-244-2-3.db.shop.svc.cluster.local.; there 10-244-2-3.db.shop.svc.cluster.local., 10-244-2-3.web.shop.svc.cluster.local.",
			"reverse names of endpoints"},
		{"a second name below the same Service", func(q mdns.Question, m *mdns.Msg) bool {
			return pointer(q, m, "another.db.shop.svc.cluster.local.")
		}, "3.2.244.10.in-addr.arpa. PTR, ADDR: here 10-244-2-3.db.shop.svc.cluster.local.; there 10-244-2-3.db.shop.svc.cluster.local., another.db.shop.svc.cluster.local.",
			"reverse names of endpoints"},
		{"a name that has nothing to do with it", func(q mdns.Question, m *mdns.Msg) bool {
			return pointer(q, m, "www.example.com.")
		}, "3.2.244.10.in-addr.arpa. PTR, ADDR: here 10-244-2-3.db.shop.svc.cluster.local.; there 10-244-2-3.db.shop.svc.cluster.local., www.example.com.", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			at := answering(t, func(q mdns.Question, m *mdns.Msg) bool {
				a := view.Answer(q.Name, q.Qtype)
				m.Rcode = a.Rcode
				for _, r := range a.Answer {
					m.Answer = append(m.Answer, r.RR())
				}
				return row.edit == nil || row.edit(q, m)
			})
			part := CheckDNS(t.Context(), DNSOptions{Snapshot: func() *model.Snapshot { return snap }, Names: options, Servers: []netip.AddrPort{at}, Rate: 10000, Looks: 2})
			var got []string
			for _, d := range part.Differences {
				got = append(got, strings.ReplaceAll(d.String(), at.String(), "ADDR"))
				if !strings.HasPrefix(d.Meant, row.why) || row.why == "" && d.Meant != "" {
					t.Errorf("meant: %q", d.Meant)
				}
			}
			if part.Failed != "" || strings.Join(got, "\n") != row.want || part.Looked < 8 || part.Same != part.Looked-len(got) {
				t.Errorf("%+v", part)
			}
		})
	}
}

// Not more questions are asked than may be, and if nobody answers, nothing was compared.
func TestCheckDNSAsks(t *testing.T) {
	snap := world(nil)
	options := DNSOptions{Snapshot: func() *model.Snapshot { return snap }, Rate: 10000, Looks: 1,
		Names: dns.Options{Blocks: []dns.Block{{Zones: []string{"."}, Cluster: &dns.Cluster{Zones: []string{"cluster.local."}}}}}}
	asked := make(map[mdns.Question]int)
	at := answering(t, func(q mdns.Question, m *mdns.Msg) bool {
		asked[q]++
		m.Rcode = mdns.RcodeNameError
		return true
	})
	options.Servers, options.Most = []netip.AddrPort{at}, 5
	if part := CheckDNS(t.Context(), options); part.Failed != "" || part.Looked != 5 || part.All <= 5 || len(asked) != 5 || len(part.Notes) == 0 {
		t.Errorf("%d questions: %+v", len(asked), part)
	}
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	options.Servers = []netip.AddrPort{addrPort(closed.LocalAddr().String())}
	if part := CheckDNS(t.Context(), options); !strings.HasPrefix(part.Failed, "no server answers") {
		t.Errorf("%+v", part)
	}
	options.Servers = nil
	if part := CheckDNS(t.Context(), options); !strings.HasPrefix(part.Failed, "the Service kube-system/kube-dns has no ready endpoint") {
		t.Errorf("%+v", part)
	}
}

// pointer adds a name to the answer about the address of the headless Service's endpoint.
func pointer(q mdns.Question, m *mdns.Msg, name string) bool {
	if q.Name == "3.2.244.10.in-addr.arpa." && q.Qtype == mdns.TypePTR {
		m.Answer = append(m.Answer, &mdns.PTR{Hdr: mdns.RR_Header{Name: q.Name, Rrtype: mdns.TypePTR, Class: mdns.ClassINET}, Ptr: name})
	}
	return true
}

// sameport is a port of loopback that is free for UDP and for TCP; that it is free for one says nothing of the other.
func sameport(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for try := 0; ; try++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return c, l
		}
		l.Close()
		if try == 10 || !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// answering is a server on loopback. What it has to say of the headless Service is too long for UDP.
func answering(t *testing.T, answer func(mdns.Question, *mdns.Msg) bool) netip.AddrPort {
	t.Helper()
	c, l := sameport(t)
	var mu sync.Mutex
	handler := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		mu.Lock()
		defer mu.Unlock()
		m := new(mdns.Msg).SetReply(q)
		if !answer(q.Question[0], m) {
			return
		}
		if w.LocalAddr().Network() == "udp" && strings.HasPrefix(q.Question[0].Name, "db.") {
			m.Truncated, m.Answer = true, nil
		}
		w.WriteMsg(m)
	})
	for _, s := range []*mdns.Server{{PacketConn: c, Handler: handler}, {Listener: l, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return addrPort(c.LocalAddr().String())
}

// cluster is an API server that has these objects.
func cluster(objects map[string]string) Get {
	return func(_ context.Context, path string, into any) (bool, error) {
		text, ok := objects[path]
		if !ok {
			return false, nil
		}
		return true, json.Unmarshal([]byte(text), into)
	}
}

func TestPlan(t *testing.T) {
	objects := func(edit map[string]string) map[string]string {
		o := map[string]string{
			"/api/v1/nodes":                  `{"items":[{"metadata":{"name":"n1"},"status":{"nodeInfo":{"kubeletVersion":"v1.37.2","operatingSystem":"linux"}}},{"metadata":{"name":"w1"},"status":{"nodeInfo":{"operatingSystem":"windows"}}}]}`,
			apps + "daemonsets/kube-proxy":   `{}`,
			system + "configmaps/kube-proxy": `{"data":{"config.conf":"apiVersion: x\nclusterCIDR: 10.244.0.0/16\nmode: \"nftables\"\n"}}`,
			apps + "deployments/coredns":     `{"spec":{"replicas":2}}`,
			system + "configmaps/coredns":    `{"data":{"Corefile":".:53 {\n errors\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n  pods insecure\n  fallthrough in-addr.arpa ip6.arpa\n }\n forward . /etc/resolv.conf\n cache 30\n}\n"}}`,
			system + "services/kube-dns":     `{"spec":{"clusterIPs":["10.96.0.10"],"selector":{"k8s-app":"kube-dns"}}}`,
			serviceRanges:                    `{"spec":{"cidrs":["10.96.0.0/16","fd00:96::/112"]}}`,
		}
		for k, v := range edit {
			if v == "" {
				delete(o, k)
			} else {
				o[k] = v
			}
		}
		return o
	}
	for _, row := range []struct {
		name  string
		edit  map[string]string
		kind  string
		steps int
		has   []string // in what is printed
		bad   string   // an obstacle
	}{
		{"kubeadm", nil, "kubeadm", 9, []string{"mode nftables", "serviceCIDRs={10.96.0.0/16,fd00:96::/112},podCIDRs={10.244.0.0/16}'", "node w1 runs windows", "cleanup --only-kube-proxy", "--replicas=2", `"k8s-app":"kube-dns"`, "NODE is each of: n1."}, ""},
		{"kind", map[string]string{"/api/v1/nodes": `{"items":[{"metadata":{"name":"k"},"spec":{"providerID":"kind://docker/kind/k"}}]}`}, "kind", 9, nil, ""},
		{"k3s", map[string]string{"/api/v1/nodes": `{"items":[{"metadata":{"name":"k"},"status":{"nodeInfo":{"kubeletVersion":"v1.36.1+k3s1"}}}]}`, apps + "daemonsets/kube-proxy": "", system + "configmaps/kube-proxy": ""}, "k3s", 8,
			[]string{"disable-kube-proxy: true", "coredns.yaml.skip", "podCIDRs={POD-RANGES}'", "10.42.0.0/16"}, ""},
		{"ranges that are not said", map[string]string{serviceRanges: "", system + "configmaps/kube-proxy": `{"data":{"config.conf":"mode: nftables\n"}}`}, "kubeadm", 9,
			[]string{"serviceCIDRs={SERVICE-RANGES},podCIDRs={POD-RANGES}'", "give it for POD-RANGES", "give it for SERVICE-RANGES"}, ""},
		{"ipvs", map[string]string{system + "configmaps/kube-proxy": `{"data":{"config.conf":"mode: ipvs\n"}}`}, "kubeadm", 9, nil, "ipvs"},
		{"a Corefile that is refused", map[string]string{system + "configmaps/coredns": `{"data":{"Corefile":".:53 {\n etcd\n}\n"}}`}, "kubeadm", 9, nil, "etcd"},
		{"another domain", map[string]string{system + "configmaps/coredns": `{"data":{"Corefile":".:53 {\n kubernetes in-addr.arpa Corp.Example ip6.arpa\n forward . /etc/resolv.conf\n}\n"}}`}, "kubeadm", 9,
			[]string{"domain is corp.example", "dns.corefileConfigMap=coredns,clusterDomain=corp.example --set 'dns.ips={10.96.0.10}'"}, ""},
		{"another proxy", map[string]string{apps + "daemonsets/kube-proxy": ""}, "kubeadm", 3, []string{"another program is the service proxy", "helm install fairlead deploy/chart -n kube-system --set 'proxy.enabled=false,network.enabled=false,serviceCIDRs={10.96.0.0/16,fd00:96::/112},podCIDRs={10.244.0.0/16}'", "helm uninstall"}, ""},
		{"NodeLocal DNSCache", map[string]string{apps + "daemonsets/node-local-dns": `{}`}, "kubeadm", 10, []string{"delete daemonset node-local-dns"}, ""},
		{"addresses of node ports", map[string]string{system + "configmaps/kube-proxy": `{"data":{"config.conf":"nodePortAddresses:\n- 192.0.2.0/24\n- \"2001:db8::/64\"\nportRange: \"\"\nother:\n- x\n"}}`}, "kubeadm", 9,
			[]string{"kube-proxy has nodePortAddresses 192.0.2.0/24, 2001:db8::/64: give the same"}, ""},
		{"nothing to take over", map[string]string{apps + "daemonsets/kube-proxy": "", system + "configmaps/kube-proxy": "", apps + "deployments/coredns": ""}, "kubeadm", 0, nil, ""},
		{"no cluster DNS", map[string]string{system + "services/kube-dns": ""}, "kubeadm", 6, []string{"no Service kube-system/kube-dns"}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := MakePlan(t.Context(), cluster(objects(row.edit)))
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			p.Print(&b)
			if p.Kind != row.kind || len(p.Steps) != row.steps {
				t.Errorf("%s with %d steps:\n%s", p.Kind, len(p.Steps), b.String())
			}
			for _, s := range row.has {
				if !strings.Contains(b.String(), s) {
					t.Errorf("no %q in\n%s", s, b.String())
				}
			}
			if bad := strings.Join(p.Obstacles, "\n"); row.bad == "" && bad != "" || !strings.Contains(bad, row.bad) {
				t.Errorf("obstacles: %q, want %q", bad, row.bad)
			}
			if strings.Contains(b.String(), "clusterDomain=") != (row.name == "another domain") {
				t.Errorf("the domain is said where it is the chart's own, or not where it is another:\n%s", b.String())
			}
			if b.Len() > 0 && len(p.Steps) == 0 && strings.Contains(b.String(), "-RANGES") {
				t.Errorf("there is nothing to fill in:\n%s", b.String())
			}
			for _, s := range p.Steps {
				if len(s.Do) == 0 || len(s.See) == 0 || len(s.Undo) == 0 {
					t.Errorf("step %q is not whole", s.Title)
				}
			}
		})
	}
	if _, err := MakePlan(t.Context(), func(context.Context, string, any) (bool, error) { return false, context.DeadlineExceeded }); err == nil {
		t.Error("an API server that does not answer is no error")
	}
}

// What comes from the kernel or from iptables-save may be anything.
func FuzzRules(f *testing.F) {
	for line := range strings.Lines(saved) {
		f.Add(strings.TrimSpace(line))
	}
	f.Fuzz(func(t *testing.T, line string) {
		if !strings.HasPrefix(line, "-A ") || strings.ContainsAny(line, "\n\r") || len(cleanup.Words(line)) < 2 {
			return
		}
		k := proxyOf(t, strings.Replace(saved, "-A KUBE-SERVICES", line+"\n-A KUBE-SERVICES", 1))
		_, _ = k.Decide(model.Packet{Protocol: model.TCP, Src: addrPort("10.1.1.1:1"), Dst: addrPort("10.96.0.1:80")})
	})
}

func FuzzAttributes(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 1, 2, 3, 4})
	f.Add([]byte{255, 255, 1, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		rule, err := expressions(raw)
		if err != nil {
			return
		}
		m := machine{table: &table{is4: true}, trip: &trip{to: addrPort("10.0.0.1:1"), Packet: model.Packet{Src: addrPort("10.0.0.2:1")}, choose: func(int) int { return 0 }}}
		_, _, _ = m.rule(rule)
	})
}
