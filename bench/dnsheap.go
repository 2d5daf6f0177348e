// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/model"
)

// dnsheap tells how much memory the package dns itself holds, in bytes: in a process with a snapshot of the cluster's state, what there is more of
// after a server has got the snapshot and has been asked for every name.
func dnsheap(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("dnsheap", flag.ContinueOnError)
	services := flags.Int("services", 1000, "Services")
	endpoints := flags.Int("endpoints", 10, "endpoints of each")
	if err := flags.Parse(args); err != nil {
		return err
	}
	snap, questions, err := makeSnapshot(*services, *endpoints)
	if err != nil {
		return err
	}
	before := inUse()
	server, err := dns.New(dns.Options{Blocks: []dns.Block{{Zones: []string{"."}, Cluster: &dns.Cluster{Zones: []string{clusterDomain + ".", "in-addr.arpa.", "ip6.arpa."}}}},
		Reverse: []netip.Prefix{netip.MustParsePrefix(serviceCIDR), netip.MustParsePrefix(podCIDR)}})
	if err != nil {
		return fmt.Errorf("make DNS server: %w", err)
	}
	server.Announce(snap)
	server.Publish(snap)
	sockets, err := server.Listen([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		return fmt.Errorf("open DNS sockets: %w", err)
	}
	to := sockets.Addrs()[0]
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- server.ServeSockets(ctx, sockets) }()
	for i := range questions {
		if err := askLoopback(to, &questions[i]); err != nil {
			cancel()
			return err
		}
	}
	after := inUse()
	cancel()
	if err := <-served; err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	runtime.KeepAlive(snap)
	runtime.KeepAlive(questions)
	return json.NewEncoder(out).Encode(int64(after) - int64(before))
}

// inUse is what is held on the heap and on stacks.
func inUse() uint64 {
	runtime.GC()
	runtime.GC() // what had a finalizer goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// makeSnapshot is a cluster's state, with a question for each name.
func makeSnapshot(services, endpoints int) (*model.Snapshot, []question, error) {
	b := model.NewBuilder(model.Config{Self: "node"})
	vip := netip.MustParsePrefix(serviceCIDR).Addr()
	number := uint32(0)
	var questions []question
	for i := range services {
		vip = vip.Next()
		name := model.Name{Namespace: "default", Name: fmt.Sprintf("service-%05d", i)}
		b.SetService(model.ServiceSpec{Name: name, ClusterIPs: []netip.Addr{vip}, Ports: []model.Port{{Protocol: model.TCP, Port: servicePort}}})
		slice := model.Slice{Name: name, Service: name.Name, Ports: []model.Port{{Protocol: model.TCP, Port: targetPort}}}
		for range endpoints {
			number++
			slice.Endpoints = append(slice.Endpoints, model.Endpoint{Addr: endpoint(number), Node: remoteNode, Ready: true, Serving: true})
		}
		b.SetSlice(slice)
		q, err := newQuestion(name.Name+below, typeA, rcodeSuccess, vip)
		if err != nil {
			return nil, nil, err
		}
		questions = append(questions, q)
	}
	return b.Build(), questions, nil
}

// askLoopback asks once, and a few times more for a packet that was lost.
func askLoopback(to netip.AddrPort, q *question) (err error) {
	for range 3 {
		var msg []byte
		if msg, err = exchangeDNS(to, q.packet, time.Second); err == nil {
			if err = q.check(msg); err == nil {
				return nil
			}
		}
	}
	return fmt.Errorf("ask for %s: %w", q.name, err)
}
