// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What changes, and is then asked for.
const (
	newService  = "new Service"
	newEndpoint = "endpoint of a headless Service changed"
	podReady    = "pod of a headless Service ready"
)

var nameChanges = []string{newService, newEndpoint, podReady}

const (
	// nameChurnEvery is 20 changes a second, the most that Kubernetes' scalability thresholds ask for.
	nameChurnEvery = 50 * time.Millisecond
	// nameLimit is how long a right answer may take: more than CoreDNS may keep an answer.
	nameLimit = 45 * time.Second
)

// learned is what a round of changes led to, by kind.
type learned struct {
	took   map[string][]float64 // ms from the API's answer to the first right one
	atOnce float64              // share of changes that the first question already saw
}

// nameChanged measures from the API's answer for a change to the first right answer of DNS, at a steady churn.
func nameChanged(ctx context.Context, s *suite) error {
	nodes := map[string]*dnsNode{}
	defer func() { closeAll(nodes) }()
	var names []string
	for _, r := range []resolver{fairleadDNS, coreDNS, coreDNSCached} {
		n, err := s.usualNode(ctx, r)
		if err != nil {
			return err
		}
		nodes[r.name], names = n, append(names, r.name)
		progress("starting %s", r.name)
		if err := n.run(ctx, s, anyCPU); err != nil {
			return err
		}
	}
	each := pick(s, 40, 5)
	round := 0
	taken, err := takeTurns(ctx, pick(s, 8, 2), names, func(name string) (learned, error) {
		round++
		return nodes[name].learn(ctx, fmt.Sprint("r", round), each)
	})
	if err != nil {
		return err
	}
	for _, rival := range names[1:] {
		s.reportLearned(taken[fairlead.name], rival, taken[rival])
	}
	return nil
}

func (s *suite) reportLearned(own []learned, rival string, theirs []learned) {
	for _, kind := range nameChanges {
		var target *goal
		if kind == podReady {
			target = against(rival, coreDNS, atLeast(20))
		}
		s.reportTook("change", kind, own, rival, theirs, target)
	}
	atOnce := func(r learned) float64 { return 100 * r.atOnce }
	s.compare(figure{Section: "change", Figure: "first question after the API's answer answered right", Unit: "%"}, rival,
		each(own, atOnce), each(theirs, atOnce), share, nil)
}

// reportTook compares how long a kind of change took to be answered right; the goal is of p99.
func (s *suite) reportTook(section, kind string, own []learned, rival string, theirs []learned, target *goal) {
	reportTimes(s, figure{Section: section, Figure: kind + ", to the first right answer", Unit: "ms", Rival: rival}, own, theirs,
		func(r learned) []float64 { return r.took[kind] }, target)
}

// learn makes n changes of each kind, one after the other at the rate, and asks for each until the answer is right, from when the API has answered. A round's
// names begin with round.
func (n *dnsNode) learn(ctx context.Context, round string, count int) (learned, error) {
	var mu sync.Mutex
	var changes []nameChange
	group, made := errgroup.WithContext(ctx)
	group.SetLimit(seeders)
	for i := range count {
		for _, prepare := range []func(context.Context, string) (nameChange, error){n.prepareService, n.prepareEndpoint, n.preparePod} {
			group.Go(func() error {
				change, err := prepare(made, fmt.Sprintf("%s-%03d", round, i))
				mu.Lock()
				defer mu.Unlock()
				changes = append(changes, change)
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		return learned{}, err
	}
	quiet(ctx)
	return n.change(ctx, changes, nameChurnEvery, askGrowing)
}

// change makes changes at a rate, and asks for each as askUntilRight does, from when the API has answered.
func (n *dnsNode) change(ctx context.Context, changes []nameChange, every, growing time.Duration) (learned, error) {
	var mu sync.Mutex
	out := learned{took: map[string][]float64{}}
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range changes {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return out, errors.Join(ctx.Err(), group.Wait())
		}
		group.Go(func() error {
			conn, err := n.client.Dial(ctx, "udp4", n.addr.String())
			if err != nil {
				return fmt.Errorf("open socket: %w", err)
			}
			defer conn.Close()
			if err := c.do(ctx); err != nil {
				return err
			}
			took, asked, err := askUntilRight(ctx, conn, c.question, growing)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			out.took[c.kind] = append(out.took[c.kind], ms(took))
			if asked == 1 {
				out.atOnce++
			}
			return nil
		})
	}
	err := group.Wait()
	out.atOnce /= float64(len(changes))
	return out, err
}

// nameChange is a change that is prepared, and what will be right to answer after it.
type nameChange struct {
	kind     string
	question question
	do       func(context.Context) error // returns when the API has answered
}

// prepareService has a Service to make. Its address is known only then, so the API gives it one and the Service is taken away again, for it to be
// made anew with that address.
func (n *dnsNode) prepareService(ctx context.Context, id string) (c nameChange, err error) {
	w, name := n.w, "new-"+id
	services := w.client.CoreV1().Services(metav1.NamespaceDefault)
	spec := corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: servicePort}}}
	made, err := services.Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "place-" + id}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return c, fmt.Errorf("create service: %w", err)
	}
	if err := services.Delete(ctx, made.Name, metav1.DeleteOptions{}); err != nil {
		return c, fmt.Errorf("delete service %s: %w", made.Name, err)
	}
	spec.ClusterIP = made.Spec.ClusterIP
	vip, err := netip.ParseAddr(spec.ClusterIP)
	if err != nil {
		return c, fmt.Errorf("read address of service %s: %w", made.Name, err)
	}
	c.kind = newService
	c.do = func(ctx context.Context) error {
		if _, err := w.addSlice(ctx, name, name+"-1", 2); err != nil {
			return err
		}
		if _, err := services.Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create service %s: %w", name, err)
		}
		return nil
	}
	c.question, err = newQuestion(name+below, typeA, rcodeSuccess, vip)
	return c, err
}

// prepareEndpoint has a headless Service of two endpoints, of which one gets another address.
func (n *dnsNode) prepareEndpoint(ctx context.Context, id string) (c nameChange, err error) {
	w, name := n.w, "moves-"+id
	if err := w.createHeadless(ctx, name, nil); err != nil {
		return c, err
	}
	slice, err := w.addSlice(ctx, name, name+"-1", 2)
	if err != nil {
		return c, err
	}
	moved := w.newEndpoint()
	stays := netip.MustParseAddr(slice.Endpoints[1].Addresses[0])
	slice.Endpoints[0].Addresses = []string{moved.String()}
	c.kind = newEndpoint
	c.do = func(ctx context.Context) error {
		if _, err := w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("update slice %s: %w", slice.Name, err)
		}
		return nil
	}
	c.question, err = newQuestion(name+below, typeA, rcodeSuccess, moved, stays)
	return c, err
}

// preparePod has a headless Service with a selector, and its pod, which is not ready.
func (n *dnsNode) preparePod(ctx context.Context, id string) (c nameChange, err error) {
	w, name := n.w, "ready-"+id
	if err := w.createHeadless(ctx, name, map[string]string{"app": name}); err != nil {
		return c, err
	}
	addr := w.newEndpoint()
	if err := w.addPod(ctx, name, name, remoteNode, addr.String()); err != nil {
		return c, err
	}
	if err := w.setReady(ctx, name, false); err != nil {
		return c, err
	}
	c.kind = podReady
	c.do = func(ctx context.Context) error { return w.setReady(ctx, name, true) }
	c.question, err = newQuestion(name+below, typeA, rcodeSuccess, addr)
	return c, err
}

const (
	// askEvery is the pause between questions; it grows with the time that has passed, so that what is late is known to 2 %.
	askEvery   = 200 * time.Microsecond
	askGrowing = 50
	// replyLimit is how long an answer may take; a server may hold one back for half a second.
	replyLimit = time.Second
)

// askUntilRight asks at once, and again and again, with pauses of 1/growing of the time that has passed, until the answer is right, and returns how long that
// took, and how many questions.
func askUntilRight(ctx context.Context, conn net.Conn, q question, growing time.Duration) (took time.Duration, asked int, err error) {
	begin := time.Now()
	packet := append([]byte(nil), q.packet...)
	buf := make([]byte, answerSize)
	for {
		asked++
		binary.BigEndian.PutUint16(packet, uint16(asked))
		if _, err := conn.Write(packet); err != nil {
			return 0, asked, fmt.Errorf("ask for %s: %w", q.name, err)
		}
		n, err := reply(conn, buf, uint16(asked))
		took = time.Since(begin)
		if err == nil {
			err = q.check(buf[:n])
		}
		switch {
		case err == nil:
			return took, asked, nil
		case ctx.Err() != nil:
			return 0, asked, ctx.Err()
		case took > nameLimit:
			return 0, asked, fmt.Errorf("after %v the answer to %s is not right: it %w", nameLimit, q.name, err)
		}
		pause := max(askEvery, took/growing)
		if pause > 10*time.Millisecond {
			time.Sleep(pause)
			continue
		}
		// The runtime's own timers are only good to a millisecond.
		short := unix.NsecToTimespec(pause.Nanoseconds())
		_ = unix.Nanosleep(&short, nil)
	}
}

// reply is the answer with an id; others are late ones to earlier questions.
func reply(conn net.Conn, buf []byte, id uint16) (int, error) {
	if err := conn.SetReadDeadline(time.Now().Add(replyLimit)); err != nil {
		return 0, fmt.Errorf("set deadline: %w", err)
	}
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return 0, fmt.Errorf("receive: %w", err)
		}
		if n >= headerSize && binary.BigEndian.Uint16(buf) == id {
			return n, nil
		}
	}
}
