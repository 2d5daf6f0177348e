// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"log/slog"
	"net/netip"
	"time"
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

// Options are the settings of a [Server]. Only Domains are necessary.
type Options struct {
	// Domains are what the cluster's names are below, such as "cluster.local". All have the same names; reverse names lead to those of the first.
	Domains []string
	// Reverse are the address ranges whose reverse names are answered here: the cluster's Services and pods. Reverse names of
	// other addresses are none of this server's business and are forwarded.
	Reverse []netip.Prefix
	// Upstreams answer for all names outside the cluster, in this order of preference. With none, those names are refused.
	Upstreams []netip.AddrPort
	// Clients are the ranges of sources that may ask, besides loopback, the cluster's nodes and the pod ranges of the nodes
	// known: usually the whole cluster's pod ranges. Others are refused.
	Clients []netip.Prefix

	// TTL of positive answers, whole seconds; default 5 s.
	TTL time.Duration
	// NegativeTTL is how long clients may remember that something does not exist, whole seconds; the default of 0 means
	// not at all, so that a name is never "not found" any longer than it does not exist.
	NegativeTTL time.Duration
	// Pods says which names of pods there are.
	Pods PodNames

	// Wait bounds how long a query waits for what it asks for to be programmed; default 500 ms.
	Wait time.Duration
	// Settle is how long after its arrival a Service without any EndpointSlice is taken for one whose slices are on their way
	// (Services and slices are separate watches), so that queries for it wait; default 2 s.
	Settle time.Duration
	// MaxWaiting bounds the number of waiting queries; further ones get SERVFAIL at once. Default 10,000.
	MaxWaiting int

	// UpstreamTimeout is how long one upstream may take before the next one is asked; default 1.5 s.
	UpstreamTimeout time.Duration
	// CacheSize bounds the number of answers of upstreams that are kept; default 10,000, negative for none.
	CacheSize int

	// UDPSockets is the number of sockets for each address, among which the kernel spreads the clients; default GOMAXPROCS.
	UDPSockets int
	// MaxConns bounds the TCP connections open at a time; the default is 1,000. MaxConnsOfOne bounds those of one client; the default is 100.
	MaxConns, MaxConnsOfOne int
	// IdleTimeout is how long a TCP connection may stay open without a query; default 10 s.
	IdleTimeout time.Duration

	// Logger gets a line for each change of an upstream's health and for errors of the sockets; default none.
	Logger *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.TTL, 5*time.Second)
	def(&o.Wait, 500*time.Millisecond)
	def(&o.Settle, 2*time.Second)
	def(&o.UpstreamTimeout, 1500*time.Millisecond)
	def(&o.IdleTimeout, 10*time.Second)
	if o.MaxWaiting == 0 {
		o.MaxWaiting = 10_000
	}
	if o.CacheSize == 0 {
		o.CacheSize = 10_000
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
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}
