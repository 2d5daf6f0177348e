// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
)

// stack is a DNS server and what writes the EndpointSlices that it learns from.
type stack struct {
	resolver
	writer string
}

func (t stack) name() string {
	if t.writer == fairlead.name {
		return fairlead.name
	}
	return t.resolver.name + " and " + t.writer
}

// stacks are Fairlead as it runs alone, and what it replaces there: as it is shipped, and without the limit of the controller's client.
var stacks = []stack{{fairleadDNS, fairlead.name}, {coreDNS, manager}, {coreDNS, managerLifted}}

const podReadyAmong = "pod ready, at 100 a second, each with its own slice controller"

// readyGrowing makes for fewer questions than askGrowing: hundreds of pods are waited for at a time, and asking must not be what the server is busy with.
const readyGrowing = 10

// podsReady measures from the API's answer for a pod that became ready to the first right answer for that pod's name, where many become ready and the
// slices are written by each contender's own controller.
func podsReady(ctx context.Context, s *suite) error {
	s.forgetAll()
	crowds := map[string]*crowdOfPods{}
	var names []string
	for i, t := range stacks {
		c, err := s.newCrowd(ctx, t, filepath.Join(s.dir, fmt.Sprint("ready-", i)))
		if err != nil {
			return fmt.Errorf("%s: %w", t.name(), err)
		}
		defer c.close()
		crowds[t.name()], names = c, append(names, t.name())
	}
	n := pick(s, 300, 50)
	taken, err := takeTurns(ctx, pick(s, 6, 2), names, func(name string) (learned, error) { return crowds[name].round(ctx, n) })
	if err != nil {
		return err
	}
	s.reportReady(names, taken)
	return nil
}

// reportReady compares the first with the others. The goal is against what is shipped.
func (s *suite) reportReady(names []string, taken map[string][]learned) {
	for i, goal := range []*goal{atLeast(20), nil} {
		s.reportTook("ready", podReadyAmong, taken[names[0]], names[i+1], taken[names[i+1]], goal)
	}
}

// crowdOfPods is the pods of headless Services, each with a name of its own, and the DNS server that is to know them.
type crowdOfPods struct {
	w    *world
	node *dnsNode
	pods []namedPod
}

// namedPod is a pod with the question for its name, when it is ready and when it is not.
type namedPod struct {
	name          string
	there, absent question
}

func (c *crowdOfPods) close() {
	c.node.close()
	c.w.close()
}

// newCrowd makes a world with its DNS server, and 100 headless Services in it with ten pods each, as StatefulSets have them.
func (s *suite) newCrowd(ctx context.Context, t stack, dir string) (_ *crowdOfPods, err error) {
	c := new(crowdOfPods)
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.w, err = s.sliceWorld(ctx, t.writer, dir); err != nil {
		return nil, err
	}
	named := &dnsWorld{world: c.w}
	if err := named.populate(ctx, pick(s, shape{1000, 2, 100, 10}, shape{50, 2, 5, 2})); err != nil {
		return nil, err
	}
	if c.node, err = s.newDNSNode(ctx, t.resolver, named); err != nil {
		return nil, err
	}
	progress("making 1,000 pods for %s", t.name())
	if err := c.populate(ctx); err != nil {
		return nil, err
	}
	progress("starting %s", t.name())
	if err := c.node.run(ctx, s, anyCPU); err != nil {
		return nil, err
	}
	return c, c.await(ctx, c.pods, func(p namedPod) question { return p.there })
}

func (c *crowdOfPods) populate(ctx context.Context) error {
	const services, pods = 100, 10
	c.pods = make([]namedPod, services*pods)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(seeders)
	for i := range services {
		app := fmt.Sprint("set-", i)
		group.Go(func() error { return c.w.createHeadless(ctx, app, map[string]string{"app": app}) })
		for j := range pods {
			group.Go(func() (err error) {
				p, addr := &c.pods[i*pods+j], c.w.newEndpoint()
				p.name = fmt.Sprint(app, "-", j)
				if p.there, err = newQuestion(p.name+"."+app+below, typeA, rcodeSuccess, addr); err != nil {
					return err
				}
				if p.absent, err = newQuestion(p.there.name, typeA, rcodeNotFound); err != nil {
					return err
				}
				return c.w.addPod(ctx, p.name, app, remoteNode, addr.String(), func(spec *corev1.PodSpec) { spec.Hostname, spec.Subdomain = p.name, app })
			})
		}
	}
	return group.Wait()
}

// await waits until pods have the answers that they should.
func (c *crowdOfPods) await(ctx context.Context, pods []namedPod, of func(namedPod) question) error {
	ctx, cancel := context.WithTimeout(ctx, sliceLimit)
	defer cancel()
	questions := make([]question, len(pods))
	for i, p := range pods {
		questions[i] = of(p)
	}
	return awaitAnswers(ctx, c.node.client, c.node.addr, questions, false, c.node.process.gone)
}

// round takes pods' readiness from n pods, and when their names are gone gives it back, to one after the other at the rate, whatever the slices do.
func (c *crowdOfPods) round(ctx context.Context, n int) (learned, error) {
	var pods []namedPod
	for _, i := range rand.Perm(len(c.pods))[:n] {
		pods = append(pods, c.pods[i])
	}
	group, taken := errgroup.WithContext(ctx)
	group.SetLimit(seeders)
	for _, p := range pods {
		group.Go(func() error { return c.w.setReady(taken, p.name, false) })
	}
	if err := group.Wait(); err != nil {
		return learned{}, err
	}
	if err := c.await(ctx, pods, func(p namedPod) question { return p.absent }); err != nil {
		return learned{}, err
	}
	quiet(ctx)
	changes := make([]nameChange, n)
	for i, p := range pods {
		changes[i] = nameChange{podReadyAmong, p.there, func(ctx context.Context) error { return c.w.setReady(ctx, p.name, true) }}
	}
	return c.node.change(ctx, changes, churnEvery, readyGrowing)
}
