// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// remoteNode is the name of the node that has every endpoint.
const remoteNode = "remote"

// Processors. Where packets are timed, clients have one and everything else the other.
const (
	clientCPU = 0
	serverCPU = 1
)

// rig is a node with a client pod behind it, and beside it a host that has every endpoint address of the world and a server on all of them:
//
//	client pod ── node ── remote
//	               └── fabric of the world
type rig struct {
	name                 string
	number               int
	node, client, remote *host
	server               *process
	w                    *world
}

// podAddr is the address of the rig's client.
func (r *rig) podAddr() string { return fmt.Sprintf("10.128.%d.2", r.number) }

// nodeCIDR is the range of a node's pods, and nodeAddr its address on the fabric.
func nodeCIDR(number int) string { return fmt.Sprintf("10.128.%d.0/24", number) }
func nodeAddr(number int) string { return fmt.Sprintf("192.168.77.%d", number) }

// newRig makes a rig on the world's fabric; with no world, one that stands alone.
func newRig(programs programs, dir string, w *world, name string, number int) (_ *rig, err error) {
	r := &rig{name: name, number: number, w: w}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	for _, h := range []**host{&r.node, &r.client, &r.remote} {
		if *h, err = newHost(); err != nil {
			return nil, err
		}
	}
	if err := r.node.attach("pod0", r.client, r.podAddr()); err != nil {
		return nil, err
	}
	if w != nil {
		if err := w.join(r.node, number); err != nil {
			return nil, err
		}
	}
	return r, r.layOut(programs, dir)
}

// layOut sets up what leads from the client to the remote host, which then serves.
func (r *rig) layOut(programs programs, dir string) (err error) {
	if err := cable(r.node, "remote0", r.remote, "eth0"); err != nil {
		return err
	}
	// Conntrack keeps a connection that was reset for 10 s, and a fast client comes back with the same port sooner: with 1 s, the table stays
	// small for everybody.
	const conntrack = "net/netfilter/nf_conntrack_tcp_timeout_close"
	err = errors.Join(
		r.node.sysctls("net/ipv4/ip_forward", "1", conntrack, "1"),
		r.client.sysctls("net/ipv4/ip_local_port_range", "1024 65535"),
		r.node.addr("remote0", "192.168.78.1/24"),
		r.remote.addr("eth0", remoteIP+"/24"),
		r.remote.route(podCIDR, "192.168.78.1", "eth0"),
		r.remote.anyIP(remoteCIDR),
	)
	if err != nil {
		return fmt.Errorf("lay out %s: %w", r.name, err)
	}
	if !strings.HasPrefix(r.name, fairlead.name) { // which makes this route itself, where it has the pod network
		if err := r.node.route(remoteCIDR, remoteIP, "remote0"); err != nil {
			return err
		}
	}
	r.server, err = start(r.remote, serverCPU, dir, "server-"+r.name, programs.bench, "serve", net.JoinHostPort("0.0.0.0", strconv.Itoa(targetPort)))
	return err
}

func (r *rig) close() {
	if r == nil {
		return
	}
	r.server.stop()
	if r.w != nil {
		// The kernel takes a namespace down some time after its end, and the name of the port is needed again.
		r.w.fabric.remove(fabricPort(r.number))
	}
	r.node.close()
	r.client.close()
	r.remote.close()
}
