// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

func TestParseTarget(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"orders:80", "orders:80"},
		{"orders:http", "orders:http"},
		{"ticker.shop:7000/udp", "ticker.shop:7000/udp"},
		{"orders:80/TCP", "orders:80"},
		{"10.96.0.1:443", "10.96.0.1:443"},
		{"[fd00:96::1]:443", "[fd00:96::1]:443"},
		{"orders", `parse target "orders": want NAME:PORT, for example orders:80`},
		{"orders:", `parse target "orders:": want NAME:PORT, for example orders:80`},
		{":80", `parse target ":80": want NAME:PORT, for example orders:80`},
		{"orders:0", `parse target "orders:0": port 0 is not between 1 and 65535`},
		{"orders:70000", `parse target "orders:70000": port 70000 is not between 1 and 65535`},
		{"orders:80/icmp", `parse target "orders:80/icmp": "icmp" is no protocol; use tcp, udp or sctp`},
		{"orders:80/", `parse target "orders:80/": "" is no protocol; use tcp, udp or sctp`},
		{"a..b:80", `parse target "a..b:80": "a..b" is no domain name`},
	} {
		target, err := ParseTarget(tt.in)
		got := target.String()
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.in, got, tt.want)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"orders:80", "x:http/udp", "[::1]:53", "a:b:c", ":/", "ü:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, err := ParseTarget(s)
		if err == nil && (target.Host == "" || target.Port == 0 && target.PortName == "") {
			t.Errorf("%q gives %+v", s, target)
		}
	})
}

var orders = netip.MustParseAddr("10.96.1.1")

// bed is a small world: Service shop/orders with one endpoint ready and one not, and a pod that asks.
func bed(t *testing.T) *Explainer {
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetNode(model.Node{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}})
	b.SetNode(model.Node{Name: "n2", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "client"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.9")}})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "starting"}})
	port := []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}}
	b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "orders"}, ClusterIPs: []netip.Addr{orders}, Ports: port})
	b.SetSlice(model.Slice{Name: model.Name{Namespace: "shop", Name: "orders-1"}, Service: "orders", Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}},
		Endpoints: []model.Endpoint{
			{Addr: netip.MustParseAddr("10.244.1.5"), Node: "n2", Ready: true, Pod: model.Name{Namespace: "shop", Name: "orders-a"}},
			{Addr: netip.MustParseAddr("10.244.1.6"), Node: "n2"},
		}})
	b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "db"}, Type: model.Headless, Ports: []model.Port{{Name: "sql", Protocol: model.TCP, Port: 80}}})
	b.SetSlice(model.Slice{Name: model.Name{Namespace: "shop", Name: "db-1"}, Service: "db", Ports: []model.Port{{Name: "sql", Protocol: model.TCP, Port: 5432}},
		Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.244.1.7"), Node: "n2", Ready: true}}})
	snap := b.Build()
	return &Explainer{
		Domain:   "cluster.local",
		DNS:      []netip.AddrPort{serveDNS(t)},
		Snapshot: func() *model.Snapshot { return snap },
		Entry: func(model.Frontend) (Entry, bool, error) {
			return Entry{"pick4-1", []netip.AddrPort{netip.MustParseAddrPort("10.244.1.5:8080")}}, true, nil
		},
		Route: func(netip.Addr) (Route, error) {
			return Route{Dev: "eth0", Via: netip.MustParseAddr("172.30.0.12"), MTU: 1500}, nil
		},
		Fast:     func(_, _ netip.Addr) (string, error) { return "", nil },
		Led:      func(netip.Addr, netip.AddrPort) ([]netip.AddrPort, error) { return nil, nil },
		InKernel: func(netip.Addr, netip.AddrPort, string, uint16) bool { return false },
	}
}

// TestFastPath: what goes past netfilter is said, of TCP, and nothing of what does not.
func TestFastPath(t *testing.T) {
	e := bed(t)
	e.Fast = func(_, to netip.Addr) (string, error) { return map[bool]string{true: "established"}[to == orders], nil }
	if _, text := walk(t, e, "orders:80"); strings.Contains(text, "fast path") {
		t.Errorf("to a Service whose endpoints are no pods:\n%s", text)
	}
	e.Fast = func(pod, to netip.Addr) (string, error) {
		switch to {
		case orders:
			return "established", nil
		case netip.MustParseAddr("10.244.1.5"):
			return "whole", nil
		}
		return "", errors.New("no map")
	}
	for target, want := range map[string]string{
		"orders:80":         "fast path  while it is established", // its one endpoint is a pod
		"10.244.1.5:80":     "fast path  all of",
		"10.244.1.5:80/udp": "",
		"orders:81":         "", // refused
		"10.244.1.6:80":     "finding: the fast path to 10.244.1.6:80 cannot be read: no map",
	} {
		if _, text := walk(t, e, target); !strings.Contains(text, want) || want == "" && strings.Contains(text, "fast path") {
			t.Errorf("%s: want %q:\n%s", target, want, text)
		}
	}
}

// TestLed: that a connection is led at the socket is said, and where else to than the model has it; it then goes as one to the endpoint does.
func TestLed(t *testing.T) {
	const said = "leads to an endpoint from when it is made"
	e := bed(t)
	e.Fast = func(_, to netip.Addr) (string, error) {
		return map[bool]string{true: "established", false: "whole"}[to == orders], nil
	}
	right, other := netip.MustParseAddrPort("10.244.1.5:8080"), netip.MustParseAddrPort("10.244.1.6:8080")
	for _, tt := range []struct {
		target   string
		to       []netip.AddrPort
		err      error
		led      bool
		fast     string
		findings int
	}{
		{"orders:80", []netip.AddrPort{right}, nil, true, "whole", 0},
		{"orders:80", nil, nil, false, "established", 0},
		{"orders:80", []netip.AddrPort{right, other}, nil, true, "whole", 1},
		{"orders:80", []netip.AddrPort{netip.MustParseAddrPort("10.244.1.9:8080")}, nil, true, "whole", 2},
		{"orders:80", nil, errors.New("no map"), false, "established", 1},
		{"orders:80/udp", []netip.AddrPort{right}, nil, false, "", 2}, // refused, and not by the kernel
		{"orders:81", nil, nil, false, "", 2},                         // the same
		{"orders:81", []netip.AddrPort{right}, nil, true, "", 4},      // and led, to what is no endpoint
		{"10.244.1.5:80", []netip.AddrPort{right}, nil, false, "whole", 0},
	} {
		e.Led = func(pod netip.Addr, at netip.AddrPort) ([]netip.AddrPort, error) {
			if pod != netip.MustParseAddr("10.244.0.9") || at.Addr() != orders {
				t.Errorf("asked about %s to %s", pod, at)
			}
			return tt.to, tt.err
		}
		w, text := walk(t, e, tt.target)
		if way := w.Ways[0]; way.Led != tt.led || way.FastPath != tt.fast || len(w.Findings) != tt.findings || strings.Contains(text, said) != tt.led {
			t.Errorf("%s led to %v, %v:\n%s", tt.target, tt.to, tt.err, text)
		}
	}
}

// TestInKernel: what the pod has from the kernel is said, of the question that it is.
func TestInKernel(t *testing.T) {
	e := bed(t)
	e.InKernel = func(pod netip.Addr, at netip.AddrPort, name string, qtype uint16) bool {
		return pod == netip.MustParseAddr("10.244.0.9") && at == e.DNS[0] && name == "orders.shop.svc.cluster.local." && qtype == dns.TypeA
	}
	const said = "from the kernel, without asking"
	if w, text := walk(t, e, "orders:80"); strings.Count(text, said) != 1 || !w.Questions[0].InKernel {
		t.Errorf("known to the kernel:\n%s", text)
	}
	if _, text := walk(t, e, "nothing:80"); strings.Contains(text, said) {
		t.Errorf("not known to the kernel:\n%s", text)
	}
}

// serveDNS answers for orders in one namespace on loopback, and NXDOMAIN for all else.
func serveDNS(t *testing.T) netip.AddrPort {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		r := new(dns.Msg).SetReply(m)
		if m.Question[0].Name == "orders.shop.svc.cluster.local." {
			rr, _ := dns.NewRR(m.Question[0].Name + " 5 IN A " + orders.String())
			r.Answer = append(r.Answer, rr)
		} else {
			r.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(r)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = srv.Shutdown(); pc.Close() })
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

func walk(t *testing.T, e *Explainer, target string) (*Walk, string) {
	t.Helper()
	parsed, err := ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	w, err := e.Walk(t.Context(), model.Name{Namespace: "shop", Name: "client"}, parsed)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	w.Print(&b)
	return w, b.String()
}

func TestWalk(t *testing.T) {
	w, text := walk(t, bed(t), "orders:http")
	if len(w.Findings) != 0 || len(w.Questions) != 1 {
		t.Errorf("findings %v, questions %v", w.Findings, w.Questions)
	}
	for _, want := range []string{
		"shop/client (10.244.0.9 on node n1) to orders:http",
		"search     shop.svc.cluster.local, svc.cluster.local, cluster.local",
		"orders.shop.svc.cluster.local. A at ",
		"NOERROR 10.96.1.1",
		`10.96.1.1:80/tcp is shop/orders port "http": forward, a Service's ClusterIP and port`,
		"entry 10.96.1.1 . tcp . 80 leads to chain pick4-1 with 1 endpoints (read from the kernel)",
		"in  10.244.1.5:8080 ready, pod shop/orders-a on n2, via 172.30.0.12 dev eth0 mtu 1500, sees 10.244.0.9 (kept)",
		"out 10.244.1.6:8080 not ready on n2",
		"The model, the DNS and the kernel agree.",
	} {
		if !strings.Contains(strings.ReplaceAll(text, "ready, on", "ready on"), want) {
			t.Errorf("the walk lacks %q:\n%s", want, text)
		}
	}
}

func TestRoute(t *testing.T) {
	for want, r := range map[string]Route{
		"dev fl0 mtu 1500":                  {Dev: "fl0", MTU: 1500},
		"via 172.30.0.12 dev eth0 mtu 1500": {Dev: "eth0", Via: netip.MustParseAddr("172.30.0.12"), MTU: 1500},
		"via 10.244.3.0 dev fairlead-vxlan mtu 1450 through the tunnel to 172.31.0.13": {Dev: "fairlead-vxlan", Via: netip.MustParseAddr("10.244.3.0"), MTU: 1450, Tunnel: netip.MustParseAddr("172.31.0.13")},
	} {
		if got := r.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestWalkFindings(t *testing.T) {
	for _, tt := range []struct {
		name, target, want string
		bend               func(*Explainer)
	}{
		{"the kernel lacks an endpoint", "orders:80", "endpoint 10.244.1.5:8080: the model says in=true, the kernel says in=false",
			func(e *Explainer) {
				e.Entry = func(model.Frontend) (Entry, bool, error) { return Entry{}, false, nil }
			}},
		{"the kernel has one too many", "orders:80", "the kernel still sends to 10.244.9.9:1, which is no endpoint of shop/orders",
			func(e *Explainer) {
				old := e.Entry
				e.Entry = func(f model.Frontend) (Entry, bool, error) {
					x, ok, err := old(f)
					x.Backends = append(x.Backends, netip.MustParseAddrPort("10.244.9.9:1"))
					return x, ok, err
				}
			}},
		{"the kernel cannot be read", "orders:80", "the kernel's entry for 10.96.1.1:80 cannot be read: no permission",
			func(e *Explainer) {
				e.Entry = func(model.Frontend) (Entry, bool, error) {
					return Entry{}, false, errors.New("no permission")
				}
			}},
		{"no such port", "orders:81", "connections to 10.96.1.1:81 are refused: the Service has no such port", func(*Explainer) {}},
		{"no such port name", "orders:web", `nothing behind 10.96.1.1 has a port named "web"`, func(*Explainer) {}},
		{"no such name", "ordres:80", "the name ordres leads to no address", func(*Explainer) {}},
		{"no route", "10.244.1.5:80", "there is no route to 10.244.1.5: network is unreachable",
			func(e *Explainer) {
				e.Route = func(netip.Addr) (Route, error) { return Route{}, errors.New("network is unreachable") }
			}},
		{"no DNS", "orders:80", "does not answer for orders.shop.svc.cluster.local.",
			func(e *Explainer) { e.DNS = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")} }},
		{"nobody's DNS", "orders:80", "there is no cluster DNS to ask for orders: Service kube-system/kube-dns has no address",
			func(e *Explainer) { e.DNS = nil }},
		{"the DNS of others", "orders:80", "the DNS at 127.9.9.9:53 does not answer for orders.shop.svc.cluster.local.",
			func(e *Explainer) {
				b := model.NewBuilder(model.Config{Self: "n1"})
				b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "client"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.9")}})
				b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("127.9.9.9")}})
				snap := b.Build()
				e.DNS, e.Snapshot = nil, func() *model.Snapshot { return snap }
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := bed(t)
			tt.bend(e)
			_, text := walk(t, e, tt.target)
			if !strings.Contains(text, tt.want) {
				t.Errorf("want %q in\n%s", tt.want, text)
			}
		})
	}
}

// TestExposed: a Service's other addresses are known for what they are, asked for in the kernel as it holds them, and what gets no answer is found.
func TestExposed(t *testing.T) {
	b := model.NewBuilder(model.Config{Self: "n1", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	b.SetNode(model.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "client"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.9")}})
	b.SetService(model.ServiceSpec{Name: model.Name{Namespace: "shop", Name: "orders"}, ClusterIPs: []netip.Addr{orders}, Affinity: 3 * time.Hour,
		Ports: []model.Port{{Protocol: model.TCP, Port: 80, NodePort: 30080}}, Exposure: &model.Exposure{
			Balancers:    []netip.Addr{netip.MustParseAddr("203.0.113.5")},
			SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}})
	b.SetSlice(model.Slice{Name: model.Name{Namespace: "shop", Name: "orders-1"}, Service: "orders", Ports: []model.Port{{Protocol: model.TCP, Port: 8080}},
		Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr("10.244.1.5"), Node: "n2", Ready: true}}})
	snap := b.Build()
	e := bed(t)
	e.Snapshot = func() *model.Snapshot { return snap }
	entry := e.Entry
	var asked model.Frontend
	e.Entry = func(f model.Frontend) (Entry, bool, error) { asked = f; return entry(f) }
	for _, tt := range []struct {
		target, asked, kind string
		findings            int
		want                []string
	}{
		{"10.96.1.1:80", "10.96.1.1:80/TCP", "ClusterIP", 0, []string{
			"the client keeps its endpoint until it has made no connection for 3h0m0s", "entry 10.96.1.1 . tcp . 80 leads to chain pick4-1 with 1 endpoints"}},
		{"172.30.0.11:30080", "nodeport4:30080/TCP", "node port", 0, []string{"entry tcp . 30080 leads to chain pick4-1 with 1 endpoints"}},
		{"203.0.113.5:80", "203.0.113.5:80/TCP", "load balancer", 1, []string{"finding: connections to 203.0.113.5:80 get no answer: "}},
		{"10.96.9.9:80", "", "", 1, []string{" 10.96.9.9:80: ", "finding: connections to 10.96.9.9:80 are refused: "}},
	} {
		asked = model.Frontend{}
		w, text := walk(t, e, tt.target)
		if got := asked.String(); tt.asked != "" && got != tt.asked || tt.asked == "" && asked != (model.Frontend{}) {
			t.Errorf("%s: asked the kernel for %s", tt.target, got)
		}
		if len(w.Ways) != 1 || w.Ways[0].Kind != tt.kind || len(w.Findings) != tt.findings {
			t.Errorf("%s: %+v, findings %q", tt.target, w.Ways, w.Findings)
		}
		for _, want := range tt.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: want %q in\n%s", tt.target, want, text)
			}
		}
	}
}

func TestProbe(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, tt := range []struct {
		name  string
		probe Probe
		want  string
	}{
		{"chosen", Probe{From: at("10.244.0.9:40000"), To: at("10.96.1.1:80"), Resolved: 0.5, Connected: 0.25, Server: at("10.244.1.5:8080"), Client: at("10.244.0.9:40000")},
			"connected to 10.96.1.1:80 from 10.244.0.9:40000 in 0.25 ms, name resolved in 0.50 ms\n" +
				" 8  chosen     10.244.1.5:8080, pod shop/orders-a on n2, which saw 10.244.0.9:40000 (kept)\n"},
		{"masqueraded", Probe{From: at("10.244.0.9:40000"), To: at("10.96.1.1:80"), Server: at("10.244.9.9:8080"), Client: at("172.30.0.11:40000")},
			"chosen     10.244.9.9:8080, which saw 172.30.0.11:40000 (not kept)"},
		{"silent", Probe{From: at("10.244.0.9:40000"), To: at("10.96.1.1:80"), Silent: true}, "sent, neither answered nor refused, to 10.96.1.1:80"},
		{"failed", Probe{Error: "connection refused"}, "finding: the probe failed: connection refused"},
	} {
		w, _ := walk(t, bed(t), "orders:80")
		w.AddProbe(tt.probe)
		var b strings.Builder
		w.Print(&b)
		if !strings.Contains(b.String(), tt.want) {
			t.Errorf("%s: want %q in\n%s", tt.name, tt.want, b.String())
		}
	}
}

func TestWalkSearchOrder(t *testing.T) {
	w, _ := walk(t, bed(t), "a.b.c.d.e.f:80")
	if w.Questions[0].Name != "a.b.c.d.e.f." {
		t.Errorf("a name with five dots is asked as %s first", w.Questions[0].Name)
	}
	w, _ = walk(t, bed(t), "orders.shop.svc.cluster.local.:80")
	if len(w.Search) != 0 || len(w.Questions) != 1 {
		t.Errorf("a full name was searched: %v %v", w.Search, w.Questions)
	}
}

// TestHeadless: the address of a headless Service's endpoint is known as that, and a client must use the endpoint's own port.
func TestHeadless(t *testing.T) {
	for target, want := range map[string]string{
		"10.244.1.7:5432": "10.244.1.7:5432 is of shop/db: an endpoint of a headless Service, reached directly; it is ready",
		"10.244.1.7:sql":  "10.244.1.7:5432 is of shop/db: an endpoint of a headless Service, reached directly; it is ready",
		"10.244.1.7:80":   "finding: shop/db is headless and translates no ports: 10.244.1.7 listens on 10.244.1.7:5432, not on 80",
		"10.244.1.7:web":  `finding: nothing behind 10.244.1.7 has a port named "web"`,
		"10.9.9.9:80":     "10.9.9.9:80: the destination is no Service's address",
	} {
		if _, text := walk(t, bed(t), target); !strings.Contains(text, want) {
			t.Errorf("%s: want %q in\n%s", target, want, text)
		}
	}
}

func TestNothingToExplain(t *testing.T) {
	e := bed(t)
	for pod, want := range map[string]string{"nobody": "is not on node n1", "starting": "has no address yet"} {
		_, err := e.Walk(context.Background(), model.Name{Namespace: "shop", Name: pod}, Target{Host: "x", Port: 1})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", pod, err)
		}
	}
	e.Snapshot = func() *model.Snapshot { return nil }
	if _, err := e.Walk(context.Background(), model.Name{}, Target{}); err == nil {
		t.Error("an agent that has nothing explained something")
	}
}

// TestHostPort: a pod's host port is known for what it is, at every address or at one, and asked for in the kernel as it is held there.
func TestHostPort(t *testing.T) {
	node, here := netip.MustParseAddr("172.30.0.11"), netip.MustParsePrefix("10.244.0.0/24")
	b := model.NewBuilder(model.Config{Self: "n1"})
	b.SetNode(model.Node{Name: "n1", Addrs: []netip.Addr{node}, PodCIDRs: []netip.Prefix{here}})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "client"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.9")}})
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "edge"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.7")}, HostPorts: []model.HostPort{
		{Protocol: model.TCP, Port: 8080, Target: 80}, {Addr: node, Protocol: model.TCP, Port: 8443, Target: 443}}})
	snap := b.Build()
	e := bed(t)
	e.Snapshot = func() *model.Snapshot { return snap }
	for _, tt := range []struct {
		target string
		asked  model.Frontend
		to     string
		want   []string
	}{
		{"172.30.0.11:8080", model.Frontend{Addr: netip.IPv4Unspecified(), Protocol: model.TCP, Port: 8080, Host: true}, "10.244.0.7:80", []string{
			"host port  172.30.0.11:8080/tcp: forward, a host port of pod shop/edge (hostport4:8080/TCP)",
			"entry tcp . 8080 leads to chain pick4-1 with 1 endpoints", "in  10.244.0.7:80 ready, pod shop/edge on n1"}},
		{"172.30.0.11:8443", model.Frontend{Addr: node, Protocol: model.TCP, Port: 8443, Host: true}, "10.244.0.7:443", []string{
			"(hostport:172.30.0.11:8443/TCP)", "entry 172.30.0.11 . tcp . 8443 leads to chain pick4-1"}},
	} {
		e.Entry = func(f model.Frontend) (Entry, bool, error) {
			if f != tt.asked {
				t.Errorf("%s: the kernel is asked for %s", tt.target, f)
			}
			return Entry{"pick4-1", []netip.AddrPort{netip.MustParseAddrPort(tt.to)}}, true, nil
		}
		w, text := walk(t, e, tt.target)
		if len(w.Findings) > 0 || w.Ways[0].Kind != "host port" || w.Ways[0].Service != "" {
			t.Errorf("%s: %+v", tt.target, w)
		}
		for _, want := range tt.want {
			if !strings.Contains(text, want) {
				t.Errorf("the walk lacks %q:\n%s", want, text)
			}
		}
	}
}
