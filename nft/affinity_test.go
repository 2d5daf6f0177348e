// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/model"
)

// crowdSize is how many clients there are of each kind: so many that chance does not leave two of four servers without any.
const crowdSize = 24

// client is one client of one of Service 1's ports in one family.
type client struct {
	network  string
	from, to netip.AddrPort
}

// affinityRoad is a road with four servers and a crowd of clients in both families, over TCP and UDP.
func affinityRoad(t *testing.T) (r *road, clients []client) {
	r = newRoad(t)
	r.serve(3)
	r.serve(4)
	for i := range crowdSize {
		for f, a := range podAddrs(1, 100+i) {
			r.pod.Addr("eth0", netip.PrefixFrom(a, map[bool]int{true: 24, false: 64}[a.Is4()]).String())
			vip := vipAddrs(1)[f]
			clients = append(clients, client{"tcp", netip.AddrPortFrom(a, 0), netip.AddrPortFrom(vip, 80)},
				client{"udp", netip.AddrPortFrom(a, 0), netip.AddrPortFrom(vip, 5060)})
		}
	}
	return r, clients
}

// stay leads Service 1, with affinity, to some of the servers, by number.
func (r *road) stay(t *testing.T, affinity time.Duration, servers ...int) {
	t.Helper()
	spec := clusterIP(1, http, sip)
	spec.Affinity = affinity
	r.lead(t, spec, servers...)
}

// restart has another process's Target take over what is there.
func (r *road) restart(t *testing.T) {
	t.Helper()
	r.target.Close()
	r.target = newTarget(t, r.node.NS)
	apply(t, r.target, r.b.Build())
	if s := r.target.Stats(); s.Transactions != 0 {
		t.Errorf("taking over wrote %+v", s)
	}
}

// ask asks as a client, once, and returns who answered.
func (r *road) ask(t *testing.T, c client) string {
	t.Helper()
	got, err := r.pod.Ask(c.network, c.from.Addr().String(), c.to)
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return got.Name
}

// server is a server's name in the family of a client.
func (c client) server(i int) string {
	return podAddrs(2, i)[map[bool]int{true: 0, false: 1}[c.to.Addr().Is4()]].String()
}

// places asks as every client.
func (r *road) places(t *testing.T, clients []client) map[client]string {
	t.Helper()
	at := make(map[client]string)
	for _, c := range clients {
		at[c] = r.ask(t, c)
	}
	return at
}

// spread is how many servers have clients, counted for each of the four kinds of client.
func spread(at map[client]string) int {
	used := make(map[string]bool)
	for c, name := range at {
		used[c.network+name] = true
	}
	return len(used)
}

// pinsOf is what the kernel remembers of clients, and for how many seconds more.
func pinsOf(t *testing.T, r *road) map[string]float64 {
	t.Helper()
	out := make(map[string]float64)
	for _, f := range families {
		var listing struct {
			Nftables []struct {
				Map struct {
					Elem [][2]json.RawMessage
				}
			}
		}
		if err := json.Unmarshal([]byte(tool(t, r.node.NS, "-j", "list", "map", "inet", Table, sets[pins][f.index].name())), &listing); err != nil {
			t.Fatal(err)
		}
		for _, o := range listing.Nftables {
			for _, e := range o.Map.Elem {
				var key struct {
					Elem struct {
						Val     json.RawMessage
						Expires float64
					}
				}
				if err := json.Unmarshal(e[0], &key); err != nil {
					t.Fatalf("%s: %v", e[0], err)
				}
				out[string(key.Elem.Val)] = key.Elem.Expires
			}
		}
	}
	return out
}

// A client keeps its endpoint over many connections, and the others have theirs.
func TestAffinityKeepsTheEndpoint(t *testing.T) {
	r, clients := affinityRoad(t)
	r.stay(t, time.Hour, 1, 2, 3, 4)
	at := r.places(t, clients)
	if n := spread(at); n < 2*2*3 {
		t.Errorf("%d clients of each kind use %d of 16 places", crowdSize, n)
	}
	for range 50 {
		for _, c := range clients {
			if name := r.ask(t, c); name != at[c] {
				t.Fatalf("%+v was at %s, is at %s", c, at[c], name)
			}
		}
	}
	if n := len(pinsOf(t, r)); n != len(clients) {
		t.Errorf("%d pins of %d clients", n, len(clients))
	}
}

// Endpoints come and go at random, and processes: who has lost its endpoint has another one at once, and keeps that; everybody else stays.
func TestAffinityEndsWithTheEndpoint(t *testing.T) {
	r, clients := affinityRoad(t)
	random := seeded(t)
	r.stay(t, time.Hour, 1, 2, 3, 4)
	at := r.places(t, clients)
	moved, stayed := 0, 0
	for step := range 40 {
		servers := random.Perm(4)[:1+random.IntN(4)]
		for i := range servers {
			servers[i]++
		}
		if step == 39 {
			servers = []int{1, 2, 3, 4} // everybody may come back, nobody has a reason to
		}
		r.stay(t, time.Hour, servers...)
		if random.IntN(4) == 0 {
			r.restart(t)
		}
		for _, c := range clients {
			name := r.ask(t, c)
			there := func(name string) bool {
				return slices.ContainsFunc(servers, func(i int) bool { return c.server(i) == name })
			}
			switch {
			case !there(name):
				t.Fatalf("step %d: %+v is at %s; the endpoints are %v", step, c, name, servers)
			case there(at[c]) && name != at[c]:
				t.Fatalf("step %d: %+v was at %s, which is still there, and is at %s", step, c, at[c], name)
			case name != at[c]:
				moved++
			default:
				stayed++
			}
			at[c] = name
		}
	}
	t.Logf("%d moves, all needed; %d times nobody had to move and nobody did", moved, stayed)
	if moved < len(clients) || stayed < len(clients) {
		t.Error("the steps test nothing")
	}
	if n := len(pinsOf(t, r)); n != len(clients) {
		t.Errorf("%d pins of %d clients", n, len(clients))
	}
}

// When an endpoint goes, its clients do not all go to the same other one; nor when one comes that has its address.
func TestAffinitySpreadsTheHomeless(t *testing.T) {
	r, clients := affinityRoad(t)
	r.stay(t, time.Hour, 4)
	for _, c := range clients {
		if name := r.ask(t, c); name != c.server(4) {
			t.Fatalf("%+v is at %s", c, name)
		}
	}
	r.stay(t, time.Hour, 1, 2, 3)
	at := r.places(t, clients)
	if n := spread(at); n < 2*2*2 {
		t.Errorf("the clients of the endpoint that went use %d of 12 places", n)
	}
	r.stay(t, time.Hour, 1, 2, 3, 4)
	if after := r.places(t, clients); !maps.Equal(at, after) {
		t.Error("clients went back to an endpoint that returned")
	}
}

// Affinity that is switched off ends at once and leaves no pin; switched on again, it starts anew.
func TestAffinityIsSwitchedLive(t *testing.T) {
	r, clients := affinityRoad(t)
	r.stay(t, time.Hour, 1, 2, 3, 4)
	first := r.places(t, clients)
	for range 2 {
		r.stay(t, 0, 1, 2, 3, 4)
		if n := len(pinsOf(t, r)); n != 0 {
			t.Errorf("%d pins without affinity", n)
		}
		for _, c := range clients[:4] { // one of each kind
			used := make(map[string]bool)
			for range 60 {
				used[r.ask(t, c)] = true
			}
			if len(used) != 4 {
				t.Errorf("without affinity %+v reached %d of 4 servers in 60 connections", c, len(used))
			}
		}
		if n := len(pinsOf(t, r)); n != 0 {
			t.Errorf("%d pins were made without affinity", n)
		}
		// A flow of UDP goes on to its server, and its port may be drawn again.
		r.node.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
		r.stay(t, 2*time.Hour, 1, 2, 3, 4)
		at := r.places(t, clients)
		if maps.Equal(at, first) {
			t.Error("switched on again, every client is where it was: that is no new choice")
		}
		if again := r.places(t, clients); !maps.Equal(at, again) {
			t.Error("switched on again, clients move")
		}
		first = at
	}
	if n := r.target.Stats().Pins; n != uint64(2*len(clients)) {
		t.Errorf("%d pins removed, want %d", n, 2*len(clients))
	}
}

// Another timeout is no other affinity: clients stay, and their next connection has the new one.
func TestAffinityTimeoutIsChangedLive(t *testing.T) {
	r, clients := affinityRoad(t)
	r.stay(t, time.Hour, 1, 2, 3, 4)
	at := r.places(t, clients)
	r.stay(t, 2*time.Hour, 1, 2, 3, 4)
	if after := r.places(t, clients); !maps.Equal(at, after) {
		t.Error("clients moved because the timeout changed")
	}
	for key, left := range pinsOf(t, r) {
		if left <= time.Hour.Seconds() {
			t.Errorf("pin %s ends in %v s", key, left)
		}
	}
}

// A client has one endpoint behind a port of a Service, by whichever address it comes.
func TestAffinityIsOfThePort(t *testing.T) {
	r, clients := affinityRoad(t)
	spec := clusterIP(1, http, sip)
	spec.Affinity = time.Hour
	spec.Exposure = &model.Exposure{ExternalIPs: vipAddrs(200)}
	r.lead(t, spec, 1, 2, 3, 4)
	for c, name := range r.places(t, clients) {
		other := c
		other.to = netip.AddrPortFrom(vipAddrs(200)[familyOf(c.to.Addr()).index], c.to.Port())
		if got := r.ask(t, other); got != name {
			t.Errorf("%+v is at %s by one address, at %s by the other", c, name, got)
		}
	}
}

// Where another policy, or another Service, takes over a frontend, its clients go where that leads, though the endpoint that they had is still one elsewhere.
func TestAffinityEndsWithThePolicy(t *testing.T) {
	r, clients := affinityRoad(t)
	last := podAddrs(2, 4)
	here := func(e *model.Endpoint) {
		e.Node = "n2"
		if slices.Contains(last[:], e.Addr) {
			e.Node = "n1"
		}
	}
	spec := clusterIP(1, http, sip)
	spec.Affinity, spec.Exposure = time.Hour, &model.Exposure{}
	for i := range spec.Ports {
		spec.Ports[i].NodePort = uint16(30080 + i) // which keeps the group that the ClusterIP leaves
	}
	lead := func(local bool) {
		spec.LocalOnly = local
		r.b.SetService(spec)
		setEndpointsAs(r.b, spec, 8080, here, podAddrs(2, 1), podAddrs(2, 2), podAddrs(2, 3), podAddrs(2, 4))
		apply(t, r.target, r.b.Build())
	}
	want := func(when string, server func(client) string) {
		t.Helper()
		for c, name := range r.places(t, clients) {
			if name != server(c) {
				t.Errorf("%s: %+v is at %s, want %s", when, c, name, server(c))
			}
		}
	}
	lead(false)
	at := r.places(t, clients)
	lead(true)
	want("policy Local", func(c client) string { return c.server(4) })
	lead(false)
	want("policy Cluster again", func(c client) string { return at[c] })

	// The address goes to a Service whose name is the first, and that leads to one server.
	thief := spec
	thief.Name.Name, thief.Ports = "a", slices.Clone(spec.Ports)
	for i := range thief.Ports {
		thief.Ports[i].NodePort = 0
	}
	r.b.SetService(thief)
	setEndpoints(r.b, thief, 8080, podAddrs(2, 3))
	apply(t, r.target, r.b.Build())
	want("another Service", func(c client) string { return c.server(3) })
}

// A pin ends when its client has been away for the timeout, and every connection makes it last longer.
func TestAffinityTimesOut(t *testing.T) {
	r, clients := affinityRoad(t)
	r.stay(t, time.Hour, 1, 2, 3, 4)
	one := clients[:1]
	r.places(t, one)
	least := func() float64 {
		left := slices.Sorted(maps.Values(pinsOf(t, r)))
		if len(left) != 1 {
			t.Fatalf("%d pins of one client", len(left))
		}
		return left[0]
	}
	worn := await(t, "a pin that has grown old", func() (float64, bool) {
		left := least()
		return left, left <= time.Hour.Seconds()-2
	})
	r.places(t, one)
	if left := least(); left <= worn {
		t.Errorf("a pin with %v s left has %v s after another connection", worn, left)
	}

	r.stay(t, time.Second, 1, 2, 3, 4)
	at := r.places(t, clients)
	await(t, "the pins' end", func() (int, bool) {
		n := len(pinsOf(t, r))
		return n, n == 0
	})
	if after := r.places(t, clients); maps.Equal(at, after) {
		t.Errorf("after the timeout, all %d clients are where they were", len(clients))
	}
}

// await looks again and again until there is what is waited for.
func await[T any](t *testing.T, what string, look func() (T, bool)) T {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for {
		got, ok := look()
		if ok {
			return got
		}
		if time.Now().After(end) {
			t.Fatalf("%s: still %v", what, got)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// With a Service its pins go, and no others, whether it goes while an agent runs or before it starts.
func TestAffinityPinsGoWithTheService(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%t", away), func(t *testing.T) {
			r, clients := affinityRoad(t)
			other := clusterIP(2, http, sip)
			other.Affinity = time.Hour
			r.b.SetService(other)
			setEndpoints(r.b, other, 8080, podAddrs(2, 1), podAddrs(2, 2))
			r.stay(t, time.Hour, 1, 2, 3, 4)
			r.places(t, clients)
			elsewhere := make([]client, len(clients))
			for i, c := range clients {
				vip := vipAddrs(2)[map[bool]int{true: 0, false: 1}[c.to.Addr().Is4()]]
				elsewhere[i] = client{c.network, c.from, netip.AddrPortFrom(vip, c.to.Port())}
			}
			at := r.places(t, elsewhere)
			if n := len(pinsOf(t, r)); n != 2*len(clients) {
				t.Fatalf("%d pins of %d clients of two Services", n, len(clients))
			}
			if away {
				r.target.Close()
				r.target = newTarget(t, r.node.NS)
			}
			r.b.DeleteService(clusterIP(1).Name)
			apply(t, r.target, r.b.Build())
			if n := len(pinsOf(t, r)); n != len(clients) {
				t.Errorf("%d pins left, %d clients have a Service still", n, len(clients))
			}
			if n := r.target.Stats().Pins; n != uint64(len(clients)) {
				t.Errorf("%d pins counted as removed, want %d", n, len(clients))
			}
			if after := r.places(t, elsewhere); !maps.Equal(at, after) {
				t.Error("the other Service's clients moved")
			}
			// The same Service made again begins without memory, whoever has its numbers now.
			r.stay(t, time.Hour, 2)
			for _, c := range clients {
				if name := r.ask(t, c); name != c.server(2) {
					t.Errorf("%+v is at %s", c, name)
				}
			}
		})
	}
}
