// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package status is what an agent says of itself, and the local socket that it says it on.
//
// The socket is a unix socket that only root may connect to. It speaks HTTP, so that curl can read it: see [Handler] for the
// paths. The invariant: what is reported was acknowledged by the kernel or read from it, never merely intended; what is
// pending or broken is reported as that.
//
// The ways in are [Serve] for an agent and [Client] for who asks.
package status

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Report is the state of one node's agent.
type Report struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	PID     int    `json:"pid"`
	// PIDNamespace is what the process ids are numbers in, as /proc/self/ns/pid has it: it tells the agents of two containers apart.
	PIDNamespace string `json:"pidNamespace,omitempty"`
	// Holder is the process that keeps the agent's sockets open and starts the agent again; 0: there is none.
	Holder  int       `json:"holder,omitempty"`
	Started time.Time `json:"started"`
	// Server is the API server's address.
	Server string `json:"apiServer"`
	// Waiting names the watches that were not complete yet.
	Waiting []string `json:"waiting,omitempty"`
	// KeptOf is when the state was written to disk that everything works from, because the API server does not answer; zero: it is the API server's.
	KeptOf   time.Time `json:"keptOf,omitzero"`
	Progress Progress  `json:"progress"`

	Services  int `json:"services"`
	Endpoints int `json:"endpoints"`
	Nodes     int `json:"nodes"`
	Pods      int `json:"pods"`

	// Quarantined are the Services that the kernel refused, each with the reason.
	Quarantined []string `json:"quarantined,omitempty"`
	// Disputed are the frontends that a Service, or a pod for a host port, asks for and another one has.
	Disputed []string `json:"disputed,omitempty"`
	// Flawed are objects of the API server of which something cannot be used, and what; the rest of each is.
	Flawed []string `json:"flawed,omitempty"`
	// PassingOn are addresses and ports of pods that are ending, whose new connections this node sends on to other endpoints.
	PassingOn []string `json:"passingOn,omitempty"`
	// Left are the node's roles that other programs have: "service proxy", "cluster DNS", "pod network".
	Left []string `json:"left,omitempty"`
	// Off says what is not working or not switched on, and why, a sentence each.
	Off []string `json:"off,omitempty"`

	DNS        DNS        `json:"dns"`
	Dataplane  Dataplane  `json:"dataplane"`
	PodNetwork PodNetwork `json:"podNetwork"`
}

// PodNetwork is how other nodes' pods are reached.
type PodNetwork struct {
	// Tunnel is the setting: auto, always or never; Port is the tunnel's UDP port.
	Tunnel string `json:"tunnel"`
	Port   uint16 `json:"port"`
	// Linked are the nodes reached by a plain route over a link that they share with this one, Tunnelled those reached through the tunnel. A node whose
	// families differ counts in both.
	Linked    int `json:"linked"`
	Tunnelled int `json:"tunnelled"`
	// Dropped are packets that came to the tunnel's port and were not from the node that they said, since the tunnel's table was made.
	Dropped uint64 `json:"droppedForged"`
	// FastPath is how pods reach pods past netfilter; nil: it is not asked for.
	FastPath *FastPath `json:"fastPath,omitempty"`
	// SocketLB is how pods' connections are led at their sockets; nil: it is not asked for.
	SocketLB *SocketLB `json:"socketLB,omitempty"`
}

// SocketLB is the way of pods' TCP connections to Services that lead to an endpoint from when they are made.
type SocketLB struct {
	// Pods is of how many pods they are, and Services how many addresses and ports of Services they may be to.
	Pods     int `json:"pods"`
	Services int `json:"services"`
	// Connections is how many there were since it was loaded, at the agent's start as a rule.
	Connections uint64 `json:"connections"`
}

// FastPath is the way of TCP from pod to pod, and between pods and Services, past netfilter; and of pods' questions to the DNS.
type FastPath struct {
	// Pods and Links are how many pods and links to other nodes it leads from.
	Pods  int `json:"pods"`
	Links int `json:"links"`
	// Packets is how many went by it since it was loaded, at the agent's start as a rule; one that is to be segmented is one.
	Packets uint64 `json:"packets"`
	// Answers is how many questions of pods to the cluster's DNS it has answered since then.
	Answers uint64 `json:"answers"`
}

// Progress is how far the agent's loop has come.
type Progress struct {
	// Arrived and Acknowledged are generations; they are equal when nothing is pending.
	Arrived      uint64    `json:"arrived"`
	Acknowledged uint64    `json:"acknowledged"`
	At           time.Time `json:"acknowledgedAt"`
	// Took is how long the last acknowledged snapshot needed from its arrival to its publication, in seconds.
	Took     float64 `json:"tookSeconds"`
	Applies  uint64  `json:"applies"`
	Failures uint64  `json:"failures"`
	// Error is why the newest snapshot is not acknowledged; empty if it is.
	Error string `json:"error,omitempty"`
}

// DNS counts since the agent's start.
type DNS struct {
	Queries uint64 `json:"queries"`
	// Waits are the queries that waited for the kernel, and TimedOut those that waited in vain.
	Waits    uint64 `json:"waits"`
	TimedOut uint64 `json:"timedOut"`
	// Addresses are those the agent answers on.
	Addresses []string `json:"addresses"`
	// Upstreams are the resolvers that other names are forwarded to.
	Upstreams []Upstream `json:"upstreams,omitempty"`
	// Top are the clients that ask most.
	Top []Asker `json:"top,omitempty"`
}

// Upstream is a resolver that names are forwarded to.
type Upstream struct {
	// Zone is the name below which it is asked for, Addr its address, with tls:// before it if it is asked over TLS.
	Zone string `json:"zone"`
	Addr string `json:"addr"`
	// State is "up", "down" or "loop", and Why says why it is not up.
	State    string `json:"state"`
	Why      string `json:"why,omitempty"`
	Answered uint64 `json:"answered"`
	Failed   uint64 `json:"failed"`
	// Spoofs are messages in its name that were not the answer to a question.
	Spoofs uint64 `json:"suspectedSpoofs"`
}

// Asker is a client of the DNS, and how much it asked since the agent's start.
type Asker struct {
	// Name is the pod's, NAMESPACE/NAME, or an address.
	Name    string `json:"client"`
	Queries uint64 `json:"queries"`
	// Denials are those answered with NXDOMAIN, Upstream those for which an upstream was asked.
	Denials  uint64 `json:"denials"`
	Upstream uint64 `json:"upstream"`
}

// Dataplane counts since the agent's start.
type Dataplane struct {
	// Transactions and Elements are what was written to the kernel: netlink transactions, and map and set elements in them.
	Transactions uint64 `json:"transactions"`
	Elements     uint64 `json:"elements"`
	// Conntrack is the number of stale connection tracking entries removed.
	Conntrack uint64 `json:"conntrackRemoved"`
	// Drift is how many times another program had changed the table, and it was mended.
	Drift uint64 `json:"drift"`
	// NoLocal and NotAllowed are packets that got no answer since the table was made: at a traffic policy Local without an endpoint here, and
	// from clients in none of a Service's source ranges.
	NoLocal    uint64 `json:"droppedNoLocalEndpoint"`
	NotAllowed uint64 `json:"droppedNotInSourceRanges"`
	// RefusedOnce are connections to Services that an endpoint refused and that were tried once more, since the table was made.
	RefusedOnce uint64 `json:"refusedOnce"`
}

// Ready says in a sentence why the node cannot deliver yet; empty if it can.
func (r *Report) Ready() string {
	switch {
	case len(r.Waiting) > 0 && r.KeptOf.IsZero():
		return fmt.Sprintf("waiting for the API server at %s to list %s", r.Server, strings.Join(r.Waiting, ", "))
	case r.Progress.Acknowledged == 0 && r.Progress.Error != "":
		return "nothing is programmed: " + r.Progress.Error
	case r.Progress.Acknowledged == 0:
		return "the first snapshot is being programmed"
	}
	return ""
}

// Print writes the report for a person to read.
func (r *Report) Print(w io.Writer) {
	state := "ready"
	if why := r.Ready(); why != "" {
		state = why
	} else if r.Progress.Arrived != r.Progress.Acknowledged {
		state = fmt.Sprintf("behind: generation %d arrived, %d acknowledged", r.Progress.Arrived, r.Progress.Acknowledged)
	}
	if !r.KeptOf.IsZero() {
		state += fmt.Sprintf(", from the state on disk of %s, the API server does not answer", r.KeptOf.UTC().Format(time.RFC3339))
	}
	fmt.Fprintf(w, "node %s: %s\n", r.Node, state)
	held := ""
	if r.Holder != 0 {
		held = fmt.Sprintf(" (held by %d)", r.Holder)
	}
	fmt.Fprintf(w, "  agent        pid %d%s, version %s, up %s, API server %s\n", r.PID, held, r.Version, time.Since(r.Started).Round(time.Second), r.Server)
	p := r.Progress
	if p.Acknowledged > 0 {
		fmt.Fprintf(w, "  generation   %d, acknowledged %s ago, took %s; %d applied, %d failed\n", p.Acknowledged,
			time.Since(p.At).Round(time.Second), time.Duration(p.Took*float64(time.Second)).Round(10*time.Microsecond), p.Applies, p.Failures)
	}
	fmt.Fprintf(w, "  programmed   %d services, %d endpoints, %d nodes, %d pods here\n", r.Services, r.Endpoints, r.Nodes, r.Pods)
	d := r.Dataplane
	fmt.Fprintf(w, "  dataplane    %d transactions, %d elements written, %d stale conntrack entries removed, drift mended %d times\n",
		d.Transactions, d.Elements, d.Conntrack, d.Drift)
	if d.NoLocal+d.NotAllowed > 0 {
		fmt.Fprintf(w, "  dropped      %d packets without an endpoint here, %d from outside a Service's source ranges\n", d.NoLocal, d.NotAllowed)
	}
	if d.RefusedOnce > 0 {
		fmt.Fprintf(w, "  refused      %d connections by an endpoint, and tried once more\n", d.RefusedOnce)
	}
	if n := r.PodNetwork; n.Tunnel != "" {
		fmt.Fprintf(w, "  pod network  other nodes: %d by a shared link, %d through the tunnel (%s, UDP port %d)", n.Linked, n.Tunnelled, n.Tunnel, n.Port)
		if n.Dropped > 0 {
			fmt.Fprintf(w, "; %d forged tunnel packets dropped", n.Dropped)
		}
		fmt.Fprintln(w)
	}
	if f := r.PodNetwork.FastPath; f != nil {
		fmt.Fprintf(w, "  fast path    from %d pods and %d links to other nodes: %d packets, %d answers of the DNS\n", f.Pods, f.Links, f.Packets, f.Answers)
	}
	if l := r.PodNetwork.SocketLB; l != nil {
		fmt.Fprintf(w, "  socket lb    of %d pods to %d addresses and ports of Services: %d connections\n", l.Pods, l.Services, l.Connections)
	}
	if len(r.DNS.Addresses) > 0 {
		fmt.Fprintf(w, "  dns          %d queries on %s; %d waited for the kernel, %d in vain\n", r.DNS.Queries,
			strings.Join(r.DNS.Addresses, ", "), r.DNS.Waits, r.DNS.TimedOut)
	}
	for _, u := range r.DNS.Upstreams {
		fmt.Fprintf(w, "  upstream     %s for %s: %s, %d answered, %d failed", u.Addr, u.Zone, u.State, u.Answered, u.Failed)
		if u.Why != "" {
			fmt.Fprintf(w, " (%s)", u.Why)
		}
		fmt.Fprintln(w)
	}
	if len(r.DNS.Top) > 0 {
		var top []string
		for _, a := range r.DNS.Top {
			top = append(top, fmt.Sprintf("%s %d", a.Name, a.Queries))
		}
		fmt.Fprintf(w, "  asks most    %s\n", strings.Join(top, ", "))
	}
	if p.Error != "" {
		fmt.Fprintf(w, "  error        %s\n", p.Error)
	}
	for _, q := range r.Quarantined {
		fmt.Fprintf(w, "  quarantined  %s\n", q)
	}
	if n := len(r.PassingOn); n > 0 {
		fmt.Fprintf(w, "  passing on   new connections for %d ports of pods that are ending: %s\n", n, strings.Join(r.PassingOn[:min(n, 3)], ", "))
	}
	for _, d := range r.Disputed {
		fmt.Fprintf(w, "  disputed     %s\n", d)
	}
	for _, f := range r.Flawed {
		fmt.Fprintf(w, "  flawed       %s\n", f)
	}
	if len(r.Left) > 0 {
		fmt.Fprintf(w, "  others do    %s\n", strings.Join(r.Left, ", "))
	}
	for _, o := range r.Off {
		fmt.Fprintf(w, "  off          %s\n", o)
	}
}
