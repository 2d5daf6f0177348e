// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"
)

// Policy says which upstream of a pool is asked first. Those that do not answer are asked last under each.
type Policy uint8

// The policies, by CoreDNS's names: random, round_robin, sequential.
const (
	Random Policy = iota
	RoundRobin
	Sequential
)

// Upstream is a resolver that names are forwarded to.
type Upstream struct {
	Addr netip.AddrPort
	// TLS has it asked over DNS over TLS (RFC 7858).
	TLS bool
	// ServerName is what its certificate must be for, if TLS; empty: its address.
	ServerName string
}

// Pool is what is done with the names below one.
type Pool struct {
	// Zone is the name below which the pool answers, with trailing dot, in lower case; "." is all names. The longest one that fits answers.
	Zone string
	// Except are names below Zone that are not forwarded, and refused.
	Except []string
	// Upstreams are in the order of preference of Sequential. At least one.
	Upstreams []Upstream
	Policy    Policy
	// ForceTCP asks over TCP even what came over UDP.
	ForceTCP bool
	// Roots are whose certificates are trusted, if TLS; nil: the system's.
	Roots *x509.CertPool
	// MaxFails is how many answers in a row an upstream owes before it counts as down; 0 is the default of 2, negative: it never does.
	MaxFails int
	// HealthCheck is how often an upstream that is down is probed; 0 is the default of 500 ms.
	HealthCheck time.Duration
	// HealthDomain is what the probe asks for; empty: ".".
	HealthDomain string
	// Expire is how long an idle connection is kept; 0 is the default of 10 s.
	Expire time.Duration
	// MaxConcurrent bounds the questions on their way; further ones are refused. 0 is the default of 1,000.
	MaxConcurrent int
	// NextOn are the response codes of an upstream after which the next one is asked, beside SERVFAIL, REFUSED and NOTIMP.
	NextOn []int
}

// Caching says how long answers of upstreams are kept.
type Caching struct {
	// Size bounds the memory of the cache in octets; 0 is the default of 4 MiB, negative: nothing is kept.
	Size int
	// MaxTTL and MinTTL bound how long an answer is kept, MaxDenial and MinDenial how long a denial is (RFC 2308). Zero maxima are the defaults
	// of an hour and of half an hour.
	MaxTTL, MinTTL       time.Duration
	MaxDenial, MinDenial time.Duration
	// ServeStale is how long after its time an answer is still given while it is asked for anew without success (RFC 8767); 0: not at all.
	ServeStale time.Duration
	// PrefetchHits is how many questions for a name make it popular; what is popular is asked for anew when PrefetchPercent of its time is
	// left. 0: nothing is.
	PrefetchHits, PrefetchPercent int
}

// Options are the settings of a [Forwarder].
type Options struct {
	// Pools are what is forwarded; names of none are refused.
	Pools   []Pool
	Caching Caching
	// Timeout is how long one upstream may take before the next one is asked; 0 is the default of 1.5 s.
	Timeout time.Duration
	// Self are the addresses that this server itself listens on: an upstream among them would be a loop.
	Self []netip.AddrPort
	// Logger gets a line for each change of an upstream's health; nil: none.
	Logger *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}
