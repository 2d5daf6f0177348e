// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/status"
	"github.com/fairlead/fairlead/test/kubernetes/bed"
)

// TestWalkThroughTunnels is TestWalk with the nodes joined by VXLAN, as if they shared no link.
func TestWalkThroughTunnels(t *testing.T) {
	w := enter(t, bed.Options{Nodes: 3, AgentArgs: []string{"--tunnel=always"}})
	walk(t, w)
	for _, n := range w.Nodes {
		if sent := tunnelPackets(n); sent < 100 {
			t.Errorf("%s sent %d packets through the tunnel", n.Name, sent)
		}
	}
}

// TestWalkOnTheFastPath is TestWalk with TCP going past netfilter, from pod to pod and between pods and Services, and questions to the DNS answered in the kernel.
func TestWalkOnTheFastPath(t *testing.T) {
	w := enter(t, bed.Options{Nodes: 3, AgentArgs: []string{"--pod-fast-path"}})
	walk(t, w)
	for _, n := range w.Nodes {
		text, err := n.Output(interrupted, own+"/fairlead", "status", "--json", "--socket", "/var/lib/fairlead/agent/agent.sock")
		if err != nil {
			t.Fatal(err)
		}
		if fast, err := fastPath(text); err != nil || fast.Pods < 2 || fast.Links < 2 || fast.Packets < 100 || fast.Answers < 10 {
			t.Errorf("%s: %+v, %v", n.Name, fast, err)
		}
	}
}

// TestWalkAtTheSocket is TestWalk with pods' connections to Services led at their sockets, which then go past netfilter whole.
func TestWalkAtTheSocket(t *testing.T) {
	w := enter(t, bed.Options{Nodes: 3, AgentArgs: []string{"--pod-fast-path", "--pod-socket-lb"}})
	walk(t, w)
	for _, n := range w.Nodes {
		text, err := n.Output(interrupted, own+"/fairlead", "status", "--json", "--socket", "/var/lib/fairlead/agent/agent.sock")
		if err != nil {
			t.Fatal(err)
		}
		if led, err := socketLB(text); err != nil || led.Pods < 1 || led.Services < 2 || led.Connections < 6 {
			t.Errorf("%s: %+v, %v", n.Name, led, err)
		}
	}
}

// parseReport reads what "status --json" says of one agent.
func parseReport(text string) (*status.Report, error) {
	var reports []*status.Report
	if err := json.Unmarshal([]byte(text), &reports); err != nil || len(reports) != 1 {
		return nil, fmt.Errorf("parse status: %w: %s", err, text)
	}
	return reports[0], nil
}

// fastPath reads an agent's status of its pods' fast path, which is to have nothing to complain of.
func fastPath(text string) (status.FastPath, error) {
	r, err := parseReport(text)
	if err != nil || r.PodNetwork.FastPath == nil {
		return status.FastPath{}, fmt.Errorf("no fast path: %w: %s", err, text)
	}
	for _, s := range r.Off {
		if strings.Contains(s, "fast path") {
			return *r.PodNetwork.FastPath, errors.New(s)
		}
	}
	return *r.PodNetwork.FastPath, nil
}

// socketLB reads an agent's status of connections that are led at the socket, which is to have nothing to complain of.
func socketLB(text string) (status.SocketLB, error) {
	r, err := parseReport(text)
	if err != nil || r.PodNetwork.SocketLB == nil {
		return status.SocketLB{}, fmt.Errorf("nothing is led at the socket: %w: %s", err, text)
	}
	for _, s := range r.Off {
		if strings.Contains(s, "led at") {
			return *r.PodNetwork.SocketLB, errors.New(s)
		}
	}
	return *r.PodNetwork.SocketLB, nil
}

// tunnelPackets is how many packets a node has sent through its tunnel; 0 if it has none.
func tunnelPackets(n *bed.Node) int {
	text, err := n.Output(interrupted, "cat", "/sys/class/net/"+nodenet.Device+"/statistics/tx_packets")
	sent, parseErr := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || parseErr != nil {
		return 0
	}
	return sent
}
