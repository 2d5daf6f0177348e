// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

func name(s string) model.Name { return model.Name{Namespace: "shop", Name: s} }

// check is one of a Service of both families.
func check(port uint16, v4, v6 int) Check { return Check{port, Family{true, v4}, Family{true, v6}} }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var everywhere = addrs("0.0.0.0", "::")

func yes() bool { return true }

// wired are ports on a wire of their own.
func wired(t *testing.T, o PortsOptions) (*wire, *Ports) {
	w := newWire()
	p := NewPorts(o)
	p.o.Listen = w.listen
	t.Cleanup(p.Close)
	return w, p
}

// body is what kube-proxy v1.37 sends.
func body(namespace, name string, local int, healthy bool) string {
	return strings.Join([]string{
		`{`,
		`	"service": {`,
		`		"namespace": "` + namespace + `",`,
		`		"name": "` + name + `"`,
		`	},`,
		`	"localEndpoints": ` + fmt.Sprint(local) + `,`,
		`	"serviceProxyHealthy": ` + fmt.Sprint(healthy),
		`}`,
	}, "\n")
}

// TestPortsAnswers asks a real port and compares all that is sent.
func TestPortsAnswers(t *testing.T) {
	healthy := true
	p := NewPorts(PortsOptions{Healthy: func() bool { return healthy }})
	defer p.Close()
	at := fmt.Sprintf("127.66.%d.%d", os.Getpid()>>8&0xff, os.Getpid()&0xff) // nobody else's
	for _, tt := range []struct {
		local   int
		healthy bool
		status  string
	}{
		{3, true, "200 OK"},
		{1, true, "200 OK"},
		{0, true, "503 Service Unavailable"},
		{2, false, "503 Service Unavailable"},
		{0, false, "503 Service Unavailable"},
	} {
		healthy = tt.healthy
		if failures := p.Set(addrs(at), map[model.Name]Check{name("front"): check(32100, tt.local, 9)}); len(failures) > 0 {
			t.Fatal(failures)
		}
		for _, path := range []string{"/", "/healthz", "/any/thing"} {
			got := response(t, at+":32100", "GET", path)
			h := header + fmt.Sprintf("X-Load-Balancing-Endpoint-Weight: %d\r\n", tt.local)
			if want := want(tt.status, h, body("shop", "front", tt.local, tt.healthy)); got != want {
				t.Errorf("%+v %s\ngot  %q\nwant %q", tt, path, got, want)
			}
		}
	}
}

// TestPortsEverywhere: on the unspecified addresses a port is open on all of the node, each family with its own answer, and a Service of one family only there.
func TestPortsEverywhere(t *testing.T) {
	h := testnet.New(t).Host("node")
	p := NewPorts(PortsOptions{Healthy: yes})
	defer p.Close()
	h.Do(func() error {
		failures := p.Set(everywhere, map[model.Name]Check{
			name("both"): check(32100, 2, 1),
			name("four"): {Port: 32101, IPv4: Family{true, 1}},
			name("six"):  {Port: 32102, IPv6: Family{true, 1}},
		})
		if len(failures) > 0 {
			t.Error(failures)
		}
		for at, want := range map[string]string{
			"127.0.0.1:32100": body("shop", "both", 2, true), "[::1]:32100": body("shop", "both", 1, true),
			"127.0.0.1:32101": body("shop", "four", 1, true), "[::1]:32101": "",
			"127.0.0.1:32102": "", "[::1]:32102": body("shop", "six", 1, true),
		} {
			if want == "" {
				if c, err := net.Dial("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: %v, %v", at, c, err)
				}
			} else if got := response(t, at, "GET", "/"); !strings.HasSuffix(got, "\r\n\r\n"+want) {
				t.Errorf("%s: %q, want %q", at, got, want)
			}
		}
		return nil
	})
}

// TestPortsSet goes through changes of the desired state; only what differs opens and closes.
func TestPortsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := wired(t, PortsOptions{Healthy: yes})
		for _, tt := range []struct {
			does   string
			addrs  []netip.Addr
			checks map[model.Name]Check
			opened string // what the call opened
			open   string // address, Service and count of all that is open
		}{
			{"first", everywhere, map[model.Name]Check{name("a"): check(1, 1, 2)},
				"tcp4 0.0.0.0:1, tcp6 [::]:1", "0.0.0.0:1 a 1, [::]:1 a 2"},
			{"same again", everywhere, map[model.Name]Check{name("a"): check(1, 1, 2)}, "", "0.0.0.0:1 a 1, [::]:1 a 2"},
			{"count changes", everywhere, map[model.Name]Check{name("a"): check(1, 0, 5)}, "", "0.0.0.0:1 a 0, [::]:1 a 5"},
			{"second Service", everywhere, map[model.Name]Check{name("a"): check(1, 1, 1), name("b"): check(2, 7, 8)},
				"tcp4 0.0.0.0:2, tcp6 [::]:2", "0.0.0.0:1 a 1, 0.0.0.0:2 b 7, [::]:1 a 1, [::]:2 b 8"},
			{"ports swapped", everywhere, map[model.Name]Check{name("a"): check(2, 1, 1), name("b"): check(1, 7, 8)},
				"", "0.0.0.0:1 b 7, 0.0.0.0:2 a 1, [::]:1 b 8, [::]:2 a 1"},
			{"port moves to a new Service", everywhere, map[model.Name]Check{name("c"): check(2, 3, 3), name("b"): check(1, 7, 8)},
				"", "0.0.0.0:1 b 7, 0.0.0.0:2 c 3, [::]:1 b 8, [::]:2 c 3"},
			{"port changes", everywhere, map[model.Name]Check{name("b"): check(3, 7, 8)},
				"tcp4 0.0.0.0:3, tcp6 [::]:3", "0.0.0.0:3 b 7, [::]:3 b 8"},
			{"one family", everywhere, map[model.Name]Check{name("b"): {3, Family{}, Family{true, 8}}}, "", "[::]:3 b 8"},
			{"certain addresses", addrs("10.0.0.1", "fd00::1"), map[model.Name]Check{name("b"): check(3, 7, 8)},
				"tcp4 10.0.0.1:3, tcp6 [fd00::1]:3", "10.0.0.1:3 b 7, [fd00::1]:3 b 8"},
			{"an address more", addrs("10.0.0.1", "fd00::1", "::ffff:10.0.0.2"), map[model.Name]Check{name("b"): check(3, 7, 8)},
				"tcp4 10.0.0.2:3", "10.0.0.1:3 b 7, 10.0.0.2:3 b 7, [fd00::1]:3 b 8"},
			{"an address less", addrs("10.0.0.2"), map[model.Name]Check{name("b"): check(3, 7, 8)}, "", "10.0.0.2:3 b 7"},
			{"no address", nil, map[model.Name]Check{name("b"): check(3, 7, 8)}, "", ""},
			{"no port", addrs("10.0.0.2"), map[model.Name]Check{name("b"): check(0, 7, 8)}, "", ""},
			{"nothing", nil, nil, "", ""},
		} {
			w.opened = nil
			if failures := p.Set(tt.addrs, tt.checks); len(failures) > 0 {
				t.Errorf("%s: %v", tt.does, failures)
			}
			synctest.Wait()
			slices.Sort(w.opened)
			if got := strings.Join(w.opened, ", "); got != tt.opened {
				t.Errorf("%s: opened %q, want %q", tt.does, got, tt.opened)
			}
			if got := shown(t, w); got != tt.open {
				t.Errorf("%s: open %q, want %q", tt.does, got, tt.open)
			}
		}
	})
}

// shown asks every port of the wire and prints the answers short.
func shown(t *testing.T, w *wire) string {
	t.Helper()
	var out []string
	for _, at := range slices.Sorted(maps.Keys(w.open)) {
		got, err := w.get(at, "/")
		if err != nil {
			t.Errorf("ask %s: %v", at, err)
		}
		var code, n int
		var service string
		fields := strings.FieldsFunc(got, func(r rune) bool { return strings.ContainsRune("{}\":, \t\n", r) })
		// CODE service namespace shop name NAME localEndpoints N serviceProxyHealthy true
		if len(fields) == 10 {
			fmt.Sscan(fields[0]+" "+fields[5]+" "+fields[7], &code, &service, &n)
		}
		if (code == 200) != (n > 0) || service == "" {
			t.Errorf("%s answers %q", at, got)
		}
		out = append(out, fmt.Sprintf("%s %s %d", at, service, n))
	}
	return strings.Join(out, ", ")
}

// TestPortsFailure: ports that cannot be opened are named once, the others serve, and each opens when it can, without another Set.
func TestPortsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inUse := errors.New("address already in use")
		var told []string
		w, p := wired(t, PortsOptions{Healthy: yes, Failed: func(f Failure) { told = append(told, f.Error()) }})
		w.set("10.0.0.1:1", inUse)
		w.set("10.0.0.1:2", inUse)
		w.set("10.0.0.2:2", inUse)
		failures := p.Set(addrs("10.0.0.1", "10.0.0.2"), map[model.Name]Check{name("a"): check(1, 1, 1), name("b"): check(2, 1, 1), name("c"): check(3, 1, 1)})
		synctest.Wait()
		if got := fmt.Sprint(failures); got != `[failed to start healthcheck "shop/a" on port 1: address already in use `+
			`failed to start healthcheck "shop/b" on port 2: address already in use failed to start healthcheck "shop/b" on port 2: address already in use]` {
			t.Errorf("failures %s", got)
		}
		if !errors.Is(failures[0], inUse) || failures[1].Addr != netip.MustParseAddrPort("10.0.0.1:2") {
			t.Errorf("failures %+v", failures)
		}
		if got := shown(t, w); got != "10.0.0.1:3 c 1, 10.0.0.2:1 a 1, 10.0.0.2:3 c 1" {
			t.Errorf("open %s", got)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(told) != 3 {
			t.Errorf("told %d times: %v", len(told), told)
		}
		w.set("10.0.0.1:1", nil)
		w.set("10.0.0.1:2", errors.New("permission denied"))
		time.Sleep(retryAfter)
		synctest.Wait()
		if len(told) != 4 || !strings.HasSuffix(told[3], "permission denied") || len(p.Failures()) != 2 {
			t.Errorf("told %v, failures %v", told, p.Failures())
		}
		w.set("10.0.0.1:2", nil)
		w.set("10.0.0.2:2", nil)
		time.Sleep(retryAfter)
		synctest.Wait()
		if got := shown(t, w); len(p.Failures()) > 0 || got != "10.0.0.1:1 a 1, 10.0.0.1:2 b 1, 10.0.0.1:3 c 1, 10.0.0.2:1 a 1, 10.0.0.2:2 b 1, 10.0.0.2:3 c 1" {
			t.Errorf("failures %v, open %s", p.Failures(), got)
		}
	})
}

// TestPortsLost: a listener that fails is named and opened again.
func TestPortsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := wired(t, PortsOptions{Healthy: yes})
		p.Set(addrs("10.0.0.1"), map[model.Name]Check{name("a"): check(1, 1, 1)})
		w.listener("10.0.0.1:1").fail <- errors.New("interface gone")
		synctest.Wait()
		if f := p.Failures(); len(f) != 1 || f[0].Service != name("a") || f[0].Err.Error() != "interface gone" {
			t.Errorf("failures %v", f)
		}
		time.Sleep(retryAfter)
		synctest.Wait()
		if got := shown(t, w); got != "10.0.0.1:1 a 1" || len(p.Failures()) > 0 {
			t.Errorf("open %q, failures %v", got, p.Failures())
		}
	})
}

// TestPortsTwoOwners: of two Services with one port the first by name has it, keeps it, and leaves it to the other when it goes.
func TestPortsTwoOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := wired(t, PortsOptions{Healthy: yes})
		at := addrs("10.0.0.1")
		for _, tt := range []struct {
			checks map[model.Name]Check
			open   string
			failed string
		}{
			{map[model.Name]Check{name("b"): check(1, 1, 1), name("c"): check(1, 2, 2)}, "10.0.0.1:1 b 1", "[shop/c the port is Service shop/b's]"},
			{map[model.Name]Check{name("a"): check(1, 3, 3), name("b"): check(1, 1, 1)}, "10.0.0.1:1 b 1", "[shop/a the port is Service shop/b's]"},
			{map[model.Name]Check{name("a"): check(1, 3, 3)}, "10.0.0.1:1 a 3", "[]"},
		} {
			var failed []string
			for _, f := range p.Set(at, tt.checks) {
				failed = append(failed, fmt.Sprint(f.Service, " ", f.Err))
			}
			synctest.Wait()
			if got := shown(t, w); got != tt.open || fmt.Sprint(failed) != tt.failed {
				t.Errorf("open %q, want %q; failed %v, want %s", got, tt.open, failed, tt.failed)
			}
		}
	})
}

// TestPortsWithoutIPv6: a machine without IPv6 lacks nothing, unless its addresses were asked for.
func TestPortsWithoutIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := wired(t, PortsOptions{Healthy: yes})
		none := &net.OpError{Op: "listen", Err: syscall.EAFNOSUPPORT}
		w.set("[::]:1", none)
		w.set("[fd00::1]:1", none)
		checks := map[model.Name]Check{name("a"): check(1, 1, 1)}
		if f := p.Set(everywhere, checks); len(f) != 0 || shown(t, w) != "0.0.0.0:1 a 1" {
			t.Errorf("failures %v, open %s", f, shown(t, w))
		}
		if f := p.Set(addrs("fd00::1"), checks); len(f) != 1 || !errors.Is(f[0], syscall.EAFNOSUPPORT) {
			t.Errorf("failures %v", f)
		}
	})
}

// TestPortsClosedAtOnce: when Set returns, a port that is not wanted any more is closed, though its server may not even have begun.
func TestPortsClosedAtOnce(t *testing.T) {
	w, p := wired(t, PortsOptions{Healthy: yes})
	for range 1000 {
		p.Set(addrs("10.0.0.1"), map[model.Name]Check{name("a"): check(1, 1, 1)})
		if f := p.Set(nil, nil); w.listener("10.0.0.1:1") != nil || len(f) > 0 {
			t.Fatalf("still open; failures %v", f)
		}
	}
}

// TestPortsClose: nothing is open after Close, and nothing opens again.
func TestPortsClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, p := wired(t, PortsOptions{Healthy: yes})
		w.set("10.0.0.1:2", errors.New("address already in use"))
		p.Set(addrs("10.0.0.1"), map[model.Name]Check{name("a"): check(1, 1, 1), name("b"): check(2, 1, 1)})
		p.Close()
		w.set("10.0.0.1:2", nil)
		time.Sleep(time.Hour)
		p.Set(addrs("10.0.0.1"), map[model.Name]Check{name("a"): check(1, 1, 1)})
		if len(w.open) > 0 || len(p.Failures()) > 0 {
			t.Errorf("open %v, failures %v", w.open, p.Failures())
		}
	})
}

// TestPortsRandom goes through random states, with addresses that fail and come back: what is open is always what was wanted last and can be.
func TestPortsRandom(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 0))
	synctest.Test(t, func(t *testing.T) {
		w, p := wired(t, PortsOptions{Healthy: yes})
		all := addrs("10.0.0.1", "10.0.0.2", "fd00::1")
		for step := range 300 {
			var on []netip.Addr
			for _, a := range all {
				if rng.IntN(3) > 0 {
					on = append(on, a)
				}
			}
			if len(on) == 0 {
				on = all[:1]
			}
			checks := make(map[model.Name]Check)
			ports := rng.Perm(6)
			for i := range rng.IntN(6) {
				checks[name(string(rune('a'+rng.IntN(8))))] = Check{uint16(ports[i]), Family{rng.IntN(4) > 0, rng.IntN(3)}, Family{rng.IntN(4) > 0, rng.IntN(3)}}
			}
			broken := map[string]bool{}
			for _, a := range all {
				for port := range 6 {
					at := netip.AddrPortFrom(a, uint16(port)).String()
					broken[at] = rng.IntN(5) == 0
					w.set(at, nil)
					if broken[at] && w.listener(at) == nil {
						w.set(at, errors.New("broken"))
					}
				}
			}
			was := maps.Clone(w.open)
			failures := p.Set(on, checks)
			synctest.Wait()
			var want []string
			failed := 0
			for n, c := range checks {
				for _, a := range on {
					at := netip.AddrPortFrom(a, c.Port).String()
					switch {
					case c.Port == 0 || !c.family(a).Served:
					case broken[at] && was[at] == nil:
						failed++
					default:
						want = append(want, fmt.Sprintf("%s %s %d", at, n.Name, c.family(a).LocalEndpoints))
					}
				}
			}
			slices.Sort(want)
			if got := shown(t, w); got != strings.Join(want, ", ") || len(failures) != failed {
				t.Fatalf("step %d: open %q, want %q; %d failures, want %d", step, got, strings.Join(want, ", "), len(failures), failed)
			}
			for at, l := range was { // what stays wanted was never closed
				if now := w.listener(at); now != nil && now != l {
					t.Fatalf("step %d: %s was closed and opened again", step, at)
				}
			}
		}
	})
}
