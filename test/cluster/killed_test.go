// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/testnet"
)

// client makes requests of one kind over and over, and remembers what went wrong.
type client struct {
	what         string
	asked, again atomic.Int64
	mu           sync.Mutex
	wrong        []string
}

func (c *client) fail(format string, args ...any) {
	c.mu.Lock()
	c.wrong = append(c.wrong, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	c.mu.Unlock()
}

// crowd are the clients of a lone node's Services, until stop.
type crowd struct {
	l       *lone
	stop    atomic.Bool
	all     sync.WaitGroup
	clients []*client
}

func (c *crowd) add(what string, ask func(*client)) {
	one := &client{what: what}
	c.clients = append(c.clients, one)
	c.all.Go(func() {
		for !c.stop.Load() {
			ask(one)
			one.asked.Add(1)
			time.Sleep(2 * time.Millisecond) // the machine's other half is the agent's
		}
	})
}

// fresh makes a connection for every request. A datagram that is lost is not sent again, so that its client sees it.
func (c *crowd) fresh(svc *corev1.Service, network string, to netip.AddrPort) {
	c.add(fmt.Sprintf("new %s to %s %s", network, svc.Name, to), func(one *client) {
		if _, err := c.l.pod.Ask(network, "", to); err != nil {
			one.fail("%v", err)
		}
	})
}

// freshUDP is fresh for a Service whose endpoints leave. The flow of a datagram that an endpoint has not answered when it leaves is removed, so that
// its answer comes from nowhere: that is what the change means. Its client asks again, once.
func (c *crowd) freshUDP(svc *corev1.Service, to netip.AddrPort) {
	c.add(fmt.Sprintf("new udp to %s %s", svc.Name, to), func(one *client) {
		if _, err := c.l.pod.Ask("udp", "", to); err != nil {
			one.again.Add(1)
			if _, err := c.l.pod.Ask("udp", "", to); err != nil {
				one.fail("%v", err)
			}
		}
	})
}

// keep makes all requests over one connection, which must lead to the same place all the time.
func (c *crowd) keep(svc *corev1.Service, network string, to netip.AddrPort) {
	conn, err := c.l.pod.Dial(context.Background(), network, "", to)
	c.l.ok(err)
	c.l.t.Cleanup(func() { conn.Close() })
	first, err := testnet.AskOn(conn)
	c.l.ok(err)
	c.add(fmt.Sprintf("kept %s to %s %s", network, svc.Name, to), func(one *client) {
		if got, err := testnet.AskOn(conn); err != nil || got.Name != first.Name {
			one.fail("answered by %q after %q, %v", got.Name, first.Name, err)
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// end stops the clients and fails the test with what they lost.
func (c *crowd) end() {
	c.stop.Store(true)
	c.all.Wait()
	for _, one := range c.clients {
		c.l.t.Logf("%s: %d requests, %d made again, %d failed", one.what, one.asked.Load(), one.again.Load(), len(one.wrong))
		if len(one.wrong) > 0 {
			c.l.t.Errorf("%s: %d of %d failed:\n%s", one.what, len(one.wrong), one.asked.Load(), strings.Join(one.wrong[:min(5, len(one.wrong))], "\n"))
		}
		if one.asked.Load() < 100 {
			c.l.t.Errorf("%s: only %d requests", one.what, one.asked.Load())
		}
	}
}

// churn changes Services at random, all of one name's prefix.
type churn struct {
	l       *lone
	prefix  string
	r       *rand.Rand
	have    map[int]*corev1.Service
	changes int
}

// change does one thing to one Service.
func (c *churn) change() error {
	ctx, services := context.Background(), c.l.kube.CoreV1().Services("default")
	i := c.r.IntN(12)
	svc := c.have[i]
	c.changes++
	switch kind := c.r.IntN(10); {
	case svc == nil:
		svc = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s%d", c.prefix, i)}, Spec: corev1.ServiceSpec{Ports: c.ports()}}
		if c.r.IntN(2) == 0 {
			svc.Spec.IPFamilyPolicy = dualStack()
		}
		if c.r.IntN(3) == 0 {
			svc.Spec.Type = corev1.ServiceTypeNodePort
		}
		c.mood(svc)
		made, err := services.Create(ctx, svc, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		c.have[i] = made
		return c.lead(made)
	case kind < 2:
		delete(c.have, i)
		c.l.drop(svc)
		return nil
	case kind < 4:
		svc = svc.DeepCopy()
		svc.Spec.Ports = c.ports()
		c.mood(svc)
		svc, err := services.Update(ctx, svc, metav1.UpdateOptions{})
		if err != nil {
			return err
		}
		c.have[i] = svc
		return c.lead(svc)
	}
	return c.lead(svc)
}

// lead gives a Service other endpoints, or none.
func (c *churn) lead(svc *corev1.Service) error {
	var addrs []string
	for range c.r.IntN(1 + c.r.IntN(12)) {
		n := 200 + c.r.IntN(40)
		addrs = append(addrs, farPod(n), farPod6(n))
	}
	slices.Sort(addrs)
	c.l.endpoints(svc, farPort+int32(c.r.IntN(2)), slices.Compact(addrs)...)
	return nil
}

func (c *churn) ports() []corev1.ServicePort {
	all := []corev1.ServicePort{
		{Name: "http", Port: 80 + int32(c.r.IntN(3)), Protocol: corev1.ProtocolTCP},
		{Name: "sip", Port: 5060 + int32(c.r.IntN(3)), Protocol: corev1.ProtocolUDP},
		{Name: "x", Port: 9 + int32(c.r.IntN(3)), Protocol: corev1.ProtocolSCTP},
	}
	return all[:1+c.r.IntN(3)]
}

func (c *churn) mood(svc *corev1.Service) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	svc.Spec.InternalTrafficPolicy = []*corev1.ServiceInternalTrafficPolicy{nil, nil, &local}[c.r.IntN(3)]
	svc.Spec.SessionAffinity, svc.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	if c.r.IntN(3) == 0 {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
}

// TestKilledAt200Moments: the agent is killed with -9 again and again while Services change, at moments spread over its start and its work. What does not
// change does not notice; in the end the kernel is as if nothing had happened, and an agent that finds it so writes nothing.
func TestKilledAt200Moments(t *testing.T) {
	const kills, check = 200, 50
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLone(t)
	l.answerAll()
	// Two Services with a TCP and a UDP port. One stays as it is; the other one's endpoints are others all the time, all of which answer.
	tcpAndUDP := corev1.ServiceSpec{IPFamilyPolicy: dualStack(), Ports: []corev1.ServicePort{
		{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "sip", Port: 5060, Protocol: corev1.ProtocolUDP}}}
	same, moving := l.service("same", tcpAndUDP), l.service("moving", tcpAndUDP)
	for i := range 20 {
		for _, a := range []string{farPod(i), farPod6(i)} {
			l.far.EchoAs(a, "udp", netip.AddrPortFrom(netip.MustParseAddr(a), farPort+1).String())
		}
	}
	l.endpoints(same, farPort, farPod(0), farPod6(0), farPod(1), farPod6(1))
	l.endpoints(moving, farPort, farPod(2), farPod6(2))
	l.startAgent()
	l.awaitReady("agent")
	l.awaitAll("agent")

	clients := &crowd{l: l}
	for _, is4 := range []bool{true, false} {
		tcp := at(same, is4)
		udp := netip.AddrPortFrom(tcp.Addr(), 5060)
		clients.fresh(same, "tcp", tcp)
		clients.fresh(same, "udp", udp)
		clients.keep(same, "tcp", tcp)
		clients.keep(same, "udp", udp)
		tcp = at(moving, is4)
		clients.fresh(moving, "tcp", tcp)
		clients.freshUDP(moving, netip.AddrPortFrom(tcp.Addr(), 5060))
		clients.keep(moving, "tcp", tcp)
	}

	// The changes, which hold still while the kernel is looked at.
	var still sync.RWMutex
	var changing sync.WaitGroup
	var over atomic.Bool
	churns := []*churn{{l: l, prefix: "a"}, {l: l, prefix: "b"}}
	for i, c := range churns {
		c.r, c.have = rand.New(rand.NewPCG(seed, uint64(1+i))), map[int]*corev1.Service{}
		changing.Go(func() {
			for !over.Load() {
				still.RLock()
				err := c.change()
				still.RUnlock()
				if err != nil {
					t.Errorf("change: %v", err)
					return
				}
				time.Sleep(time.Duration(c.r.IntN(10)) * time.Millisecond)
			}
		})
	}
	mover := rand.New(rand.NewPCG(seed, 3))
	moved := 0
	changing.Go(func() {
		for !over.Load() {
			var addrs []string
			for _, n := range mover.Perm(18)[:1+mover.IntN(6)] {
				addrs = append(addrs, farPod(2+n), farPod6(2+n))
			}
			still.RLock()
			l.endpoints(moving, farPort, addrs...)
			still.RUnlock()
			moved++
			time.Sleep(time.Duration(mover.IntN(40)) * time.Millisecond)
		}
	})

	begin, early := time.Now(), 0
	for n := 1; n <= kills && !t.Failed(); n++ {
		time.Sleep(time.Duration(r.IntN(500)) * time.Millisecond)
		if rep, err := l.report(); err != nil || rep.Ready() != "" {
			early++
		}
		l.agent.kill()
		if n%check == 0 {
			still.Lock()
			l.startAgent()
			l.awaitReady("agent")
			l.awaitAll("agent")
			l.compareWithFresh(t, n)
			l.restartUnchanged(t, n)
			still.Unlock()
			continue
		}
		l.startAgent()
	}
	over.Store(true)
	changing.Wait()
	clients.end()
	t.Logf("%d kills in %.0f s, %d of them before the agent was ready; %d changes of %d Services, %d of endpoints under load", kills, time.Since(begin).Seconds(), early,
		churns[0].changes+churns[1].changes, len(churns[0].have)+len(churns[1].have), moved)
	if !t.Failed() && (early < kills/20 || early > kills*19/20) {
		t.Errorf("%d of %d kills came before the agent was ready: the moments are not spread", early, kills)
	}
}

// restartUnchanged restarts the agent when nothing has changed: it writes nothing, but for the table that belongs to its own process.
func (l *lone) restartUnchanged(t *testing.T, n int) {
	t.Helper()
	before := l.listing()
	l.agent.kill()
	if after := l.listing(); after != before {
		t.Errorf("after %d kills: the agent's end changed the table", n)
	}
	l.startAgent()
	if r := l.awaitReady("agent"); r.Dataplane.Transactions > 1 || r.Dataplane.Elements != 0 {
		t.Errorf("after %d kills: a start with nothing changed wrote %d elements in %d transactions", n, r.Dataplane.Elements, r.Dataplane.Transactions)
	}
	if after := l.listing(); after != before {
		t.Errorf("after %d kills: a start with nothing changed changed the table:\n%s", n, difference(strings.Split(before, "\n"), strings.Split(after, "\n")))
	}
}

// moves are the parts of a listing that change by themselves.
var moves = regexp.MustCompile(`packets \d+ bytes \d+|expires [\dhms]+`)

// listing is the node's table as the nft tool shows it, with the kernel's numbers of every object, a line each, sorted.
func (l *lone) listing() string {
	l.t.Helper()
	var out []byte
	l.n1.Do(func() (err error) {
		out, err = exec.Command("nft", "-a", "list", "table", "inet", nft.Table).Output()
		return err
	})
	var lines []string
	for line := range strings.Lines(moves.ReplaceAllString(string(out), "")) {
		for part := range strings.SplitSeq(line, ",") { // the kernel lists elements in an order of its own
			lines = append(lines, strings.TrimSpace(part))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// compareWithFresh compares the node's kernel with one in which an agent of the same API server starts for the first time.
func (l *lone) compareWithFresh(t *testing.T, n int) {
	t.Helper()
	h, name := l.net.Host(fmt.Sprint("fresh", n)), fmt.Sprint("fresh", n)
	l.wire(h, 100+n/50)
	h.Addr("lo", n1Addr+"/32", n1Addr6+"/128")
	p := l.agentOn(h, name)
	l.awaitReady(name)
	got, want := l.dump(l.n1), l.dump(h)
	p.kill()
	if got == want {
		return
	}
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	slices.Sort(a)
	slices.Sort(b)
	t.Errorf("after %d kills the kernel differs from a fresh start's (-):\n%s", n, difference(b, a))
}
