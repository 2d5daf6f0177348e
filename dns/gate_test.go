// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

// cluster is a world that changes, with a server that hears of it.
type cluster struct {
	*model.Builder
	*Server
}

func newCluster(t testing.TB, o Options) *cluster {
	t.Helper()
	o.Blocks = []Block{block("cluster.local")}
	if o.Reverse == nil {
		o.Reverse = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.244.0.0/16")}
	}
	return &cluster{model.NewBuilder(model.Config{Self: "n1", DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}}), newServer(t, o)}
}

func name(s string) model.Name {
	ns, n, _ := strings.Cut(s, "/")
	return model.Name{Namespace: ns, Name: n}
}

// service sets a ClusterIP Service, or a headless one without addresses, with one port.
func (c *cluster) service(n string, vips ...string) {
	s := model.ServiceSpec{Name: name(n), Type: model.Headless, Arrived: time.Now(),
		Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 80}}}
	for _, v := range vips {
		s.Type = model.ClusterIP
		s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(v))
	}
	c.SetService(s)
}

// alias sets an ExternalName Service.
func (c *cluster) alias(n, to string) {
	c.SetService(model.ServiceSpec{Name: name(n), Type: model.ExternalName, ExternalName: to, Arrived: time.Now()})
}

// endpoints sets the one slice of a Service.
func (c *cluster) endpoints(n string, addrs ...string) {
	sl := model.Slice{Name: name(n), Service: name(n).Name, Ports: []model.Port{{Name: "http", Protocol: model.TCP, Port: 8080}}}
	for _, a := range addrs {
		sl.Endpoints = append(sl.Endpoints, model.Endpoint{Addr: netip.MustParseAddr(a), Ready: true, Serving: true})
	}
	c.SetSlice(sl)
}

func (c *cluster) announce() *model.Snapshot {
	s := c.Build()
	c.Announce(s)
	return s
}

// step announces and publishes at once.
func (c *cluster) step(refused ...model.Name) { c.Publish(c.announce(), refused...) }

// now asks and says what is answered at once; ok is false if the query has to wait.
func (c *cluster) now(n string, qtype uint16) (string, bool) {
	a, ok := c.gate.answer(c.plan.Load().targetOf(n), n, qtype)
	return summary(a), ok
}

// summary is the response code and the data of the answer.
func summary(a Answer) string {
	out := mdns.RcodeToString[a.Rcode]
	for _, r := range a.Answer {
		f := strings.Fields(r.String())
		out += " " + strings.Join(f[4:], " ")
	}
	return out
}

// asked is a query under way.
type asked struct {
	got  chan string
	took time.Duration
}

func (c *cluster) ask(ctx context.Context, n string, qtype uint16) *asked {
	a := &asked{got: make(chan string, 1)}
	begin := time.Now()
	go func() {
		answer, _ := c.Lookup(ctx, n, qtype)
		a.took = time.Since(begin)
		a.got <- summary(answer)
	}()
	return a
}

func (a *asked) waits(t *testing.T) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-a.got:
		t.Fatalf("answered %q, want it to wait", got)
	default:
	}
}

// within takes the answer and the time it took, which is exact: the clock of the test moves only when all wait.
func (a *asked) within(t *testing.T, want string, took time.Duration) {
	t.Helper()
	if got := <-a.got; got != want || a.took != took {
		t.Errorf("answer %q after %v, want %q after %v", got, a.took, want, took)
	}
}

const (
	typeA    = mdns.TypeA
	typeAAAA = mdns.TypeAAAA
	typeSRV  = mdns.TypeSRV
	typePTR  = mdns.TypePTR
	ms       = time.Millisecond
)

func TestGateBeforeFirstState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, Options{})
		c.service("shop/orders", "10.96.0.20")
		c.endpoints("shop/orders", "10.244.1.6")
		early := c.ask(t.Context(), "orders.shop.svc.cluster.local.", typeA)
		none := c.ask(t.Context(), "nothing.shop.svc.cluster.local.", typeA)
		early.waits(t)
		c.announce()
		early.waits(t)
		time.Sleep(100 * ms)
		c.step()
		early.within(t, "NOERROR 10.96.0.20", 100*ms)
		none.within(t, "NXDOMAIN", 100*ms)

		never := newCluster(t, Options{})
		never.ask(t.Context(), "cluster.local.", mdns.TypeSOA).within(t, "SERVFAIL", 500*ms)
		if n := never.gate.timeouts[starting].Load(); n != 1 {
			t.Errorf("%d timeouts counted", n)
		}
	})
}

func TestGateNewService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, Options{})
		c.service("default/kubernetes", "10.96.0.1")
		c.endpoints("default/kubernetes", "172.30.0.1")
		c.step()
		if got, ok := c.now("orders.shop.svc.cluster.local.", typeA); !ok || got != "NXDOMAIN" {
			t.Errorf("before it exists: %q, %t", got, ok)
		}
		c.service("shop/orders", "10.96.0.20")
		c.endpoints("shop/orders", "10.244.1.6")
		snap := c.announce()
		var all []*asked
		for _, q := range []struct {
			name  string
			qtype uint16
		}{
			{"orders.shop.svc.cluster.local.", typeA},
			{"_http._tcp.orders.shop.svc.cluster.local.", typeSRV},
			{"20.0.96.10.in-addr.arpa.", typePTR},
		} {
			a := c.ask(t.Context(), q.name, q.qtype)
			a.waits(t)
			all = append(all, a)
		}
		// Others do not wait: what was there, what is not there, what the new Service does not have.
		for _, q := range []struct {
			name  string
			qtype uint16
			want  string
		}{
			{"kubernetes.default.svc.cluster.local.", typeA, "NOERROR 10.96.0.1"},
			{"1.0.96.10.in-addr.arpa.", typePTR, "NOERROR kubernetes.default.svc.cluster.local."},
			{"nothing.shop.svc.cluster.local.", typeA, "NXDOMAIN"},
			{"orders.shop.svc.cluster.local.", typeAAAA, "NOERROR"},
			{"_nope._tcp.orders.shop.svc.cluster.local.", typeSRV, "NXDOMAIN"},
			{"_http._tcp.orders.shop.svc.cluster.local.", typeA, "NOERROR"},
		} {
			if got, ok := c.now(q.name, q.qtype); !ok || got != q.want {
				t.Errorf("%s while another is programmed: %q, at once %t, want %q", q.name, got, ok, q.want)
			}
		}
		time.Sleep(30 * ms)
		// A later state arrives before the first is done.
		c.service("shop/later", "10.96.0.21")
		c.endpoints("shop/later", "10.244.1.7")
		c.announce()
		all[0].waits(t)
		time.Sleep(30 * ms)
		c.Publish(snap)
		all[0].within(t, "NOERROR 10.96.0.20", 60*ms)
		all[1].within(t, "NOERROR 0 100 80 orders.shop.svc.cluster.local.", 60*ms)
		all[2].within(t, "NOERROR orders.shop.svc.cluster.local.", 60*ms)
		later := c.ask(t.Context(), "later.shop.svc.cluster.local.", typeA)
		later.within(t, "SERVFAIL", 500*ms)
		if w, o := c.gate.waits[programming].Load(), c.gate.timeouts[programming].Load(); w != 4 || o != 1 {
			t.Errorf("%d waits and %d timeouts counted, want 4 and 1", w, o)
		}
	})
}

func TestGateRemovedService(t *testing.T) {
	c := newCluster(t, Options{})
	c.service("shop/orders", "10.96.0.20")
	c.endpoints("shop/orders", "10.244.1.6")
	c.service("shop/web")
	c.endpoints("shop/web", "10.244.1.7", "10.244.1.8")
	c.step()
	c.DeleteService(name("shop/orders"))
	c.endpoints("shop/web", "10.244.1.8")
	c.announce()
	for _, q := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"orders.shop.svc.cluster.local.", typeA, "NXDOMAIN"},
		{"_http._tcp.orders.shop.svc.cluster.local.", typeSRV, "NXDOMAIN"},
		{"20.0.96.10.in-addr.arpa.", typePTR, "NXDOMAIN"},
		{"web.shop.svc.cluster.local.", typeA, "NOERROR 10.244.1.8"},
		{"10-244-1-7.web.shop.svc.cluster.local.", typeA, "NXDOMAIN"},
		{"7.1.244.10.in-addr.arpa.", typePTR, "NXDOMAIN"},
	} {
		if got, ok := c.now(q.name, q.qtype); !ok || got != q.want {
			t.Errorf("%s: %q, at once %t, want %q", q.name, got, ok, q.want)
		}
	}
}

// A Service that gets another address, or loses one and gets it back, is treated as what the difference is.
func TestGateChangedService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, Options{})
		c.service("shop/orders", "10.96.0.20")
		c.endpoints("shop/orders", "10.244.1.6")
		c.service("shop/web")
		c.endpoints("shop/web", "10.244.1.7")
		c.alias("shop/alias", "orders.shop.svc.cluster.local")
		c.step()

		// Endpoints come and go: the Service's own name is not concerned.
		c.endpoints("shop/orders", "10.244.1.9")
		c.announce()
		if got, ok := c.now("orders.shop.svc.cluster.local.", typeA); !ok || got != "NOERROR 10.96.0.20" {
			t.Errorf("changed endpoints: %q, %t", got, ok)
		}

		// A second family is new; the first stays.
		c.service("shop/orders", "10.96.0.20", "fd00:96::14")
		c.announce()
		if got, ok := c.now("orders.shop.svc.cluster.local.", typeA); !ok || got != "NOERROR 10.96.0.20" {
			t.Errorf("second family: %q, %t", got, ok)
		}
		c.ask(t.Context(), "orders.shop.svc.cluster.local.", typeAAAA).within(t, "SERVFAIL", 500*ms)
		c.ask(t.Context(), "alias.shop.svc.cluster.local.", typeAAAA).within(t, "SERVFAIL", 500*ms)
		// What both states agree on is true even when the wait was in vain.
		c.endpoints("shop/web", "10.244.1.7", "10.244.2.7")
		c.announce()
		c.ask(t.Context(), "web.shop.svc.cluster.local.", typeA).within(t, "NOERROR 10.244.1.7", 500*ms)
		c.step()
		if got, ok := c.now("web.shop.svc.cluster.local.", typeA); !ok || got != "NOERROR 10.244.1.7 10.244.2.7" {
			t.Errorf("published: %q, %t", got, ok)
		}

		// The alias turns elsewhere: only the new target counts.
		c.alias("shop/alias", "web.shop.svc.cluster.local")
		c.announce()
		a := c.ask(t.Context(), "alias.shop.svc.cluster.local.", typeA)
		a.waits(t)
		c.step()
		a.within(t, "NOERROR web.shop.svc.cluster.local. 10.244.1.7 10.244.2.7", 0)
	})
}

// A Service and its slices arrive by different watches.
func TestGateYoungService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const orders, web = "orders.shop.svc.cluster.local.", "web.shop.svc.cluster.local."
		c := newCluster(t, Options{})
		c.service("shop/orders", "10.96.0.20")
		c.service("shop/web")
		c.step()
		if got, ok := c.now(orders, typeAAAA); !ok || got != "NOERROR" {
			t.Errorf("what it does not have: %q, %t", got, ok)
		}
		a, h := c.ask(t.Context(), orders, typeA), c.ask(t.Context(), web, typeA)
		a.waits(t)
		h.waits(t)
		time.Sleep(20 * ms)
		c.endpoints("shop/orders", "10.244.1.6")
		c.endpoints("shop/web", "10.244.1.7")
		c.announce()
		a.waits(t)
		h.waits(t)
		time.Sleep(20 * ms)
		c.step()
		a.within(t, "NOERROR 10.96.0.20", 40*ms)
		h.within(t, "NOERROR 10.244.1.7", 40*ms)

		// Slices that never come: each query waits its time, then the answer is given as it is.
		c.service("shop/alone", "10.96.0.21")
		c.step()
		c.ask(t.Context(), "alone.shop.svc.cluster.local.", typeA).within(t, "NOERROR 10.96.0.21", 500*ms)
		time.Sleep(1400 * ms)
		c.ask(t.Context(), "alone.shop.svc.cluster.local.", typeA).within(t, "NOERROR 10.96.0.21", 100*ms)
		if got, ok := c.now("alone.shop.svc.cluster.local.", typeA); ok == false || got != "NOERROR 10.96.0.21" {
			t.Errorf("no longer young: %q, %t", got, ok)
		}

		// One that was there when the node began has no time of arrival, and is not waited for.
		c.SetService(model.ServiceSpec{Name: name("shop/old"), ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.22")}})
		c.step()
		if got, ok := c.now("old.shop.svc.cluster.local.", typeA); !ok || got != "NOERROR 10.96.0.22" {
			t.Errorf("old: %q, %t", got, ok)
		}
	})
}

func TestGateRefusedService(t *testing.T) {
	c := newCluster(t, Options{})
	c.service("shop/bad", "10.96.0.20")
	c.endpoints("shop/bad", "10.244.1.6")
	c.service("shop/good", "10.96.0.21")
	c.endpoints("shop/good", "10.244.1.7")
	c.step(name("shop/bad"))
	if got, ok := c.now("bad.shop.svc.cluster.local.", typeA); !ok || got != "SERVFAIL" {
		t.Errorf("refused: %q, %t", got, ok)
	}
	if got, ok := c.now("good.shop.svc.cluster.local.", typeA); !ok || got != "NOERROR 10.96.0.21" {
		t.Errorf("beside a refused one: %q, %t", got, ok)
	}
	c.step()
	if got, ok := c.now("bad.shop.svc.cluster.local.", typeA); !ok || got != "NOERROR 10.96.0.20" {
		t.Errorf("taken after all: %q, %t", got, ok)
	}
}

func TestGateTooManyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, Options{MaxWaiting: 3})
		var waiting []*asked
		for range 3 {
			a := c.ask(t.Context(), "cluster.local.", typeA)
			a.waits(t)
			waiting = append(waiting, a)
		}
		c.ask(t.Context(), "cluster.local.", typeA).within(t, "SERVFAIL", 0)
		if n := c.gate.overflows.Load(); n != 1 {
			t.Errorf("%d overflows counted", n)
		}
		c.step()
		for _, a := range waiting {
			a.within(t, "NOERROR", 0)
		}
		if n := c.gate.waiting.Load(); n != 0 {
			t.Errorf("%d still waiting", n)
		}
	})
}

func TestGateGivesUpWithTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		a := c.ask(ctx, "cluster.local.", typeA)
		a.waits(t)
		time.Sleep(7 * ms)
		cancel()
		a.within(t, "SERVFAIL", 7*ms)
	})
}

// The namespaces with Services are counted along the way: names above Services exist exactly while Services do.
func TestNamespacesFollow(t *testing.T) {
	c := newCluster(t, Options{})
	check := func(want string) {
		t.Helper()
		if got, ok := c.now("shop.svc.cluster.local.", typeA); !ok || got != want {
			t.Errorf("shop: %q, %t, want %q", got, ok, want)
		}
	}
	c.step()
	check("NXDOMAIN")
	c.service("shop/a", "10.96.0.20")
	c.service("shop/b", "10.96.0.21")
	c.step()
	check("NOERROR")
	c.DeleteService(name("shop/a"))
	c.step()
	check("NOERROR")
	c.service("shop/a", "10.96.0.22")
	c.DeleteService(name("shop/b"))
	c.step()
	check("NOERROR")
	c.DeleteService(name("shop/a"))
	c.step()
	check("NXDOMAIN")
}
