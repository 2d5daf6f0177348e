// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/shortcut"
)

// PodNames says whether pods have names made from their addresses, such as 10-244-1-5.shop.pod.cluster.local.
type PodNames uint8

// The ways to treat names of pods.
const (
	// PodsDisabled is the default: no such name exists.
	PodsDisabled PodNames = iota
	// PodsVerified answers for this node's pods and for the endpoints of headless Services, if the namespace is right.
	PodsVerified
	// PodsInsecure answers for every address and namespace, as the specification's deprecated section 2.6 says.
	PodsInsecure
)

// Options are the settings of a [Server]. Only Blocks are necessary.
type Options struct {
	// Blocks are what is answered. Those of a running server can be changed by [Server.Reload].
	Blocks []Block
	// Reverse are the address ranges whose reverse names are answered, in blocks whose cluster has the reverse zone: the cluster's Services and pods.
	// Reverse names of other addresses are none of this server's business and are forwarded.
	Reverse []netip.Prefix
	// Clients are who may ask, besides loopback, the cluster's nodes and the pod ranges of the nodes known. Others are refused.
	Clients client.Options
	// Asking is what is done about who asks: completion of names, limits, the log of queries.
	Asking client.Settings
	// NegativeTTL is how long clients may remember that something does not exist, whole seconds; the default of 0 means
	// not at all, so that a name is never "not found" any longer than it does not exist.
	NegativeTTL time.Duration
	// Version and Node are what questions of class CHAOS are answered with.
	Version, Node string

	// Wait bounds how long a query waits for what it asks for to be programmed; default 500 ms.
	Wait time.Duration
	// Settle is how long after its arrival a Service without any EndpointSlice is taken for one whose slices are on their way
	// (Services and slices are separate watches), so that queries for it wait; default 2 s.
	Settle time.Duration
	// MaxWaiting bounds the number of waiting queries; further ones get SERVFAIL at once. Default 10,000.
	MaxWaiting int

	// UpstreamTimeout is how long one upstream may take before the next one is asked; default 1.5 s.
	UpstreamTimeout time.Duration
	// Self are the addresses of the cluster's DNS, which lead to this server: an upstream among them would be a loop. What comes to another address is
	// asked by nodes on which they lead elsewhere for the moment.
	Self []netip.AddrPort

	// UDPSockets is the number of sockets for each address, among which the kernel spreads the clients; default GOMAXPROCS.
	UDPSockets int
	// MaxConns bounds the TCP connections open at a time; the default is 1,000. MaxConnsOfOne bounds those of one client; the default is 100.
	MaxConns, MaxConnsOfOne int
	// IdleTimeout is how long a TCP connection may stay open without a query; default 10 s.
	IdleTimeout time.Duration

	// Shortcut is where the kernel has answers, if it is to answer this node's pods by itself; nil: it is not.
	Shortcut *shortcut.Answers

	// Logger gets a line for each change of an upstream's health, for queries that are to be logged, and for errors of the sockets; default none.
	Logger *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time

	forwarding *forward.Metrics // of all blocks, from one reload to the next
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Wait, 500*time.Millisecond)
	def(&o.Settle, 2*time.Second)
	def(&o.UpstreamTimeout, 1500*time.Millisecond)
	def(&o.IdleTimeout, 10*time.Second)
	if o.MaxWaiting == 0 {
		o.MaxWaiting = 10_000
	}
	if o.MaxConns == 0 {
		o.MaxConns = 1_000
	}
	if o.MaxConnsOfOne == 0 {
		o.MaxConnsOfOne = 100
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Asking.Logger == nil {
		o.Asking.Logger = o.Logger
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}
