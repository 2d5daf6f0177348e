// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	replaceRate = 2000 // connections per second
	// replaceStep is how long after a new pod was ready the next one comes: what a Deployment with one pod more at a time does with a program
	// that is ready after a second.
	replaceStep = time.Second
	replaceApp  = "replaced"
)

// replaceWorld is a cluster of three nodes, each with its contender: a client pod on the first, server pods on the others.
type replaceWorld struct {
	*world
	contender
	nodes   []*kubelet
	proxies []*process
	client  *host
	vip     netip.AddrPort
	servers []string // names of the pods, the oldest first
	made    int
}

// replacement counts connections that fail while every pod of a Service is replaced by a new one.
func replacement(ctx context.Context, s *suite) error {
	s.forgetAll()
	pods := pick(s, 8, 4)
	worlds := map[string]*replaceWorld{}
	names := []string{fairlead.name, proxy.name}
	for _, name := range names {
		progress("making a cluster of three nodes for %s", name)
		r, err := newReplaceWorld(ctx, s, contenders[name], pods)
		if r != nil {
			defer r.close()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		worlds[name] = r
	}
	taken, err := takeTurns(ctx, pick(s, 5, 2), names, func(name string) (stormResult, error) {
		quiet(ctx)
		r, err := worlds[name].replaceAll(ctx)
		progress("%s: %d connections, failed %v, slow %d", name, r.Connections, r.Failed, r.Slow)
		return r, err
	})
	if err != nil {
		return err
	}
	own, theirs := taken[fairlead.name], taken[proxy.name]
	for _, row := range []struct {
		name string
		goal bool
		of   func(stormResult) int
	}{
		{"failed", true, stormResult.failures},
		{"refused", false, func(r stormResult) int { return r.Failed["refused"] }},
		{"reset after it was accepted", false, func(r stormResult) int { return r.Failed["reset"] }},
		{"slow, after a lost packet", false, func(r stormResult) int { return r.Slow }},
	} {
		sum := func(rounds []stormResult) (n float64) {
			for _, r := range rounds {
				n += float64(row.of(r))
			}
			return n
		}
		f := figure{Section: "replace", Unit: "connections", Value: sum(own), Rival: proxy.name, RivalValue: sum(theirs)}
		f.Figure = fmt.Sprintf("%s, %d pods replaced %d times under %d connections/s", row.name, pods, len(own), replaceRate)
		if row.goal {
			met := f.Value == 0
			f.Goal, f.Met = "0", &met
		}
		s.state(f)
	}
	return nil
}

func newReplaceWorld(ctx context.Context, s *suite, c contender, pods int) (r *replaceWorld, err error) {
	r = &replaceWorld{contender: c}
	if r.world, err = newWorld(ctx, s.programs, filepath.Join(s.dir, "replace-"+c.name)); err != nil {
		return nil, err
	}
	var names []string
	for i := range 3 {
		name := fmt.Sprint("node-", i+1)
		k, err := newKubelet(ctx, r.world, name, 21+i)
		if err != nil {
			return r, err
		}
		names, r.nodes = append(names, name), append(r.nodes, k)
	}
	if err := r.keepNodes(ctx, names...); err != nil {
		return r, err
	}
	for _, a := range r.nodes {
		for _, b := range r.nodes {
			if a != b && c.name != fairlead.name { // which makes these routes itself
				if err := a.reach(b); err != nil {
					return r, err
				}
			}
		}
	}
	service, err := r.world.client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: replaceApp},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": replaceApp}, Ports: []corev1.ServicePort{{Port: servicePort}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return r, fmt.Errorf("create service: %w", err)
	}
	r.vip = netip.AddrPortFrom(netip.MustParseAddr(service.Spec.ClusterIP), servicePort)
	for range pods {
		if err := r.add(ctx); err != nil {
			return r, err
		}
	}
	for _, k := range r.nodes {
		p, err := c.run(&rig{name: k.name, number: k.number, node: k.node, w: r.world}, false, anyCPU)
		if err != nil {
			return r, err
		}
		r.proxies = append(r.proxies, p)
	}
	if r.client, _, err = r.nodes[0].attach(); err != nil {
		return r, err
	}
	if err := r.client.sysctls("net/ipv4/ip_local_port_range", "1024 65535"); err != nil {
		return r, err
	}
	bounded, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	_, err = awaitForwarding(bounded, r.client, []netip.AddrPort{r.vip}, r.alive)
	return r, err
}

// alive is an error when one of the contender's processes is not.
func (r *replaceWorld) alive() (err error) {
	for _, p := range r.proxies {
		err = errors.Join(err, p.gone())
	}
	return err
}

// add starts one more server pod, on the second and the third node in turn.
func (r *replaceWorld) add(ctx context.Context) error {
	name := fmt.Sprint(replaceApp, "-", r.made)
	k := r.nodes[1+r.made%2]
	r.made++
	if err := k.run(ctx, name, replaceApp); err != nil {
		return err
	}
	r.servers = append(r.servers, name)
	return nil
}

// replaceAll replaces every pod under load.
func (r *replaceWorld) replaceAll(ctx context.Context) (result stormResult, err error) {
	log := fmt.Sprint("storm-", r.made)
	load, err := start(r.client, anyCPU, r.dir, log, r.programs.bench, "storm", "-to", r.vip.String(), "-rate", fmt.Sprint(replaceRate))
	if err != nil {
		return result, err
	}
	defer load.stop()
	pause := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-load.done:
			return load.gone()
		case <-time.After(d):
			return nil
		}
	}
	if err := pause(replaceStep); err != nil {
		return result, err
	}
	for range len(r.servers) {
		if err := r.add(ctx); err != nil {
			return result, err
		}
		oldest := r.servers[0]
		r.servers = r.servers[1:]
		if err := r.world.client.CoreV1().Pods(metav1.NamespaceDefault).Delete(ctx, oldest, metav1.DeleteOptions{}); err != nil {
			return result, fmt.Errorf("delete pod %s: %w", oldest, err)
		}
		if err := pause(replaceStep); err != nil {
			return result, err
		}
	}
	if err := pause(2 * replaceStep); err != nil { // what is late still counts
		return result, err
	}
	load.stop()
	text, err := os.ReadFile(load.log)
	if err != nil {
		return result, fmt.Errorf("read result of the client: %w", err)
	}
	if err := json.Unmarshal(bytes.TrimSpace(text), &result); err != nil {
		return result, fmt.Errorf("parse result of the client %q: %w", text, err)
	}
	steps := time.Duration(len(r.servers)+3) * replaceStep
	if least := int(steps.Seconds() * replaceRate * 0.95); result.Connections < least {
		return result, fmt.Errorf("the client made %d connections, want at least %d", result.Connections, least)
	}
	return result, r.alive()
}

func (r *replaceWorld) close() {
	for _, p := range r.proxies {
		p.stop()
	}
	r.client.close()
	for _, k := range r.nodes {
		if err := k.close(); err != nil {
			progress("%v", err)
		}
	}
	r.world.close()
}
