// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

// refusing is a road with server 3, which refuses.
func refusing(t *testing.T, retry bool) *road {
	r := newRoad(t)
	r.b = model.NewBuilder(model.Config{Self: "n1", DNS: dnsAddrs, RetryRefused: retry})
	r.house(3)
	return r
}

// atNodePort is Service 1 with a node port.
var atNodePort = clusterIP(1, model.Port{Name: "http", Protocol: model.TCP, Port: 80, NodePort: 30080})

// heldBack is how many refusals were.
func (r *road) heldBack(t *testing.T) uint64 {
	t.Helper()
	d, err := ReadDropped(Options{NetNS: r.node.NS})
	if err != nil {
		t.Fatal(err)
	}
	return d.HeldBack
}

// connect is a connection that is patient enough for several attempts.
func connect(h *testnet.Host, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", "", to)
	if err == nil {
		conn.Close()
	}
	return err
}

// caller is a client for whom this node chooses an endpoint, with where it finds the Service in each family.
type caller struct {
	host *testnet.Host
	to   [2]netip.AddrPort
}

func (r *road) callers() map[string]caller {
	vips := vipAddrs(1)
	virtual := [2]netip.AddrPort{netip.AddrPortFrom(vips[0], 80), netip.AddrPortFrom(vips[1], 80)}
	return map[string]caller{
		"a pod": {r.pod, virtual}, "the node": {r.node, virtual},
		"another host": {r.beyond, [2]netip.AddrPort{netip.MustParseAddrPort("10.244.2.254:30080"), netip.MustParseAddrPort("[fd00:244:0:2::fe]:30080")}},
	}
}

// A connection that an endpoint refuses is tried once more, and reaches the endpoint that there is by then.
func TestRefusedIsTriedOnceMore(t *testing.T) {
	r := refusing(t, true)
	for name, c := range r.callers() {
		for _, to := range c.to {
			t.Run(fmt.Sprint(name, " ", to), func(t *testing.T) {
				r.lead(t, atNodePort, 3)
				before := r.heldBack(t)
				connected := make(chan error, 1)
				go func() { connected <- connect(c.host, to) }()
				await(t, "the first refusal", func() (uint64, bool) { n := r.heldBack(t); return n, n == before+1 })
				r.lead(t, atNodePort, 1)
				if err := <-connected; err != nil {
					t.Error(err)
				}
				if n := r.heldBack(t) - before; n != 1 {
					t.Errorf("%d refusals held back, want 1", n)
				}
			})
		}
	}
}

// What is refused twice is refused, and a new connection has its own second attempt.
func TestRefusedTwiceIsRefused(t *testing.T) {
	r := refusing(t, true)
	r.lead(t, atNodePort, 3)
	for name, c := range r.callers() {
		for _, to := range c.to {
			for i := range 2 {
				before := r.heldBack(t)
				if err := connect(c.host, to); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s to %s: %v", name, to, err)
				}
				if n := r.heldBack(t) - before; n != 1 {
					t.Errorf("%s to %s, connection %d: %d refusals held back, want 1", name, to, i, n)
				}
			}
		}
	}
}

// Nothing is held back that no endpoint of a Service has said, or not to the first packet; nor anything where it is not wanted.
func TestRefusalsThatAreNotHeldBack(t *testing.T) {
	for _, retry := range []bool{true, false} {
		r := refusing(t, retry)
		if !retry {
			r.lead(t, atNodePort, 3)
			for name, c := range r.callers() {
				for _, to := range c.to {
					if err := connect(c.host, to); !errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("not wanted, %s to %s: %v", name, to, err)
					}
				}
			}
		}
		for i, a := range podAddrs(2, 3) {
			if err := connect(r.pod, netip.AddrPortFrom(a, 8080)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("to a pod itself: %v", err)
			}
			r.lead(t, atNodePort)
			if err := connect(r.pod, netip.AddrPortFrom(vipAddrs(1)[i], 80)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("to a Service without endpoints: %v", err)
			}
			r.lead(t, atNodePort, 3)
			r.resets(t, a, netip.AddrPortFrom(vipAddrs(1)[i], 80))
		}
		if n := r.heldBack(t); n != 0 {
			t.Errorf("wanted %t: %d refusals held back", retry, n)
		}
	}
}

// resets has a server at an endpoint's address accept a connection and reset it, which the client must hear of.
func (r *road) resets(t *testing.T, at netip.Addr, to netip.AddrPort) {
	t.Helper()
	l, err := r.beyond.NS.Listen("tcp", netip.AddrPortFrom(at, 8080).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Read(make([]byte, 1)) // the client knows of the connection
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := r.pod.Dial(ctx, "tcp", "", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection that was reset: %v", err)
	}
}

// A client that hears nothing of the second refusal either, or that waits longer before it tries again, hears of the next: it is not held back for ever.
func TestRefusalThatIsLostIsSentAgain(t *testing.T) {
	r := refusing(t, true)
	r.lead(t, atNodePort, 3)
	r.pod.Sysctl("net/ipv4/tcp_syn_linear_timeouts", "0") // after 1, 3 and 7 seconds, as most systems do
	tool(t, r.pod.NS, "table inet lossy { chain in { type filter hook prerouting priority -300; }; }")
	for _, to := range r.callers()["a pod"].to {
		tool(t, r.pod.NS, `flush chain inet lossy in; add rule inet lossy in tcp flags & rst == rst numgen inc mod 9 0 drop`)
		before := r.heldBack(t)
		if err := connect(r.pod, to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("to %s: %v", to, err)
		}
		if n := r.heldBack(t) - before; n != 1 {
			t.Errorf("to %s: %d refusals held back, want 1", to, n)
		}
	}
}

// Of two clients that have the same port, one gets another port where the node takes their place, and another one at each attempt: it is still the same client.
func TestRefusedTwiceThoughThePortIsTaken(t *testing.T) {
	r := refusing(t, true)
	r.lead(t, atNodePort, 3)
	to := r.callers()["another host"].to
	for i, server := range podAddrs(2, 3) {
		at := netip.AddrPortFrom(server, 8080)
		l, err := r.beyond.NS.Listen("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		from := func(n int) string { return netip.AddrPortFrom(podAddrs(2, n)[i], 40000).String() }
		first, err := r.beyond.Dial(t.Context(), "tcp", from(1), to[i])
		l.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		before := r.heldBack(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := r.beyond.Dial(ctx, "tcp", from(2), to[i]); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", to[i], err)
		}
		cancel()
		if n := r.heldBack(t) - before; n != 1 {
			t.Errorf("%s: %d refusals held back, want 1", to[i], n)
		}
	}
}
