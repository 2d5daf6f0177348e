// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
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
	// MaxFails is how many answers in a row an upstream owes before it counts as down, and is asked after all others; 0 is the default of 2,
	// negative: it never does.
	MaxFails int
	// HealthCheck is how often an upstream that is down is probed; 0 is the default of 500 ms. One that is up is not probed: its answers tell.
	HealthCheck time.Duration
	// HealthDomain is what the probe asks for; empty: ".".
	HealthDomain string
	// Expire is how long an idle connection is kept; 0 is the default of 10 s.
	Expire time.Duration
	// MaxConcurrent bounds the questions on their way, of which equal ones are one; further ones are refused. 0 is the default of 1,000.
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
	// MaxFailure bounds how long a failure to answer a question is remembered (RFC 9520): a second after the first one, twice as long after each
	// further one in a row. 0 is the default of 30 s, so that what was mended is seen in half a minute; at most 5 minutes.
	MaxFailure time.Duration
	// ServeStale is how long after its time an answer is still given while it is asked for anew without success (RFC 8767); 0: not at all.
	ServeStale time.Duration
	// StaleAtOnce gives the old answer before it was asked for anew, without waiting whether that succeeds, as CoreDNS does by default. Without it
	// a client waits up to 1.8 s for the new one.
	StaleAtOnce bool
	// PrefetchHits is how many questions for a name, while one answer to it is kept, make it popular; what is popular is asked for anew when
	// PrefetchPercent of its time is left (0 is the default of 10). 0: nothing is.
	PrefetchHits, PrefetchPercent int
}

// Options are the settings of a [Forwarder].
type Options struct {
	// Pools are what is forwarded; names of none are refused.
	Pools   []Pool
	Caching Caching
	// Timeout is how long one upstream may take before the next one is asked; 0 is the default of 1.5 s. All of them together have 4.5 s.
	Timeout time.Duration
	// Rotate has the addresses of an answer from the cache begin at another one each time, as CoreDNS's loadbalance does.
	Rotate bool
	// Self are the addresses that this server itself listens on: an upstream among them would be a loop.
	Self []netip.AddrPort
	// Zones are the names that the forwarder is for, by which its metrics are told from those of others.
	Zones string
	// Metrics are what it counts together with others; nil: alone, and unseen.
	Metrics *Metrics
	// Logger gets a line for each change of an upstream's health; nil: none.
	Logger *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// withDefaults has the defaults filled in, on copies of what the caller holds.
func (o Options) withDefaults() Options {
	o.Pools = slices.Clone(o.Pools)
	for i := range o.Pools {
		p := &o.Pools[i]
		p.MaxFails = cmp.Or(p.MaxFails, 2)
		p.HealthCheck = cmp.Or(p.HealthCheck, 500*time.Millisecond)
		p.HealthDomain = cmp.Or(p.HealthDomain, ".")
		p.Expire = cmp.Or(p.Expire, 10*time.Second)
		p.MaxConcurrent = cmp.Or(p.MaxConcurrent, 1000)
	}
	c := &o.Caching
	c.Size = cmp.Or(c.Size, 4<<20)
	c.MaxTTL = cmp.Or(c.MaxTTL, time.Hour)
	c.MaxDenial = cmp.Or(c.MaxDenial, 30*time.Minute)
	c.MaxFailure = cmp.Or(c.MaxFailure, 30*time.Second)
	c.PrefetchPercent = cmp.Or(c.PrefetchPercent, 10)
	o.Timeout = cmp.Or(o.Timeout, 1500*time.Millisecond)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// check refuses what cannot work, with a sentence that names it.
func (o Options) check() error {
	c := o.Caching
	for _, d := range []time.Duration{c.MaxTTL, c.MinTTL, c.MaxDenial, c.MinDenial, c.MaxFailure, c.ServeStale, o.Timeout} {
		if d < 0 {
			return fmt.Errorf("duration %s: want 0 or more", d)
		}
	}
	switch {
	case c.MinTTL > c.MaxTTL || c.MinDenial > c.MaxDenial:
		return errors.New("an answer's shortest time is longer than its longest one")
	case c.MaxFailure > 5*time.Minute:
		return fmt.Errorf("failures kept for %s: at most 5m (RFC 9520)", c.MaxFailure)
	case c.PrefetchHits < 0 || c.PrefetchPercent < 0 || c.PrefetchPercent > 100:
		return errors.New("prefetch: want 0 or more questions, and 0 to 100 %")
	}
	zones := make(map[string]bool)
	for _, p := range o.Pools {
		if zones[p.Zone] {
			return fmt.Errorf("zone %q is forwarded twice", p.Zone)
		}
		zones[p.Zone] = true
		if err := p.check(o.Self); err != nil {
			return fmt.Errorf("forward %q: %w", p.Zone, err)
		}
	}
	return nil
}

func (p Pool) check(self []netip.AddrPort) error {
	for _, name := range append([]string{p.Zone, p.HealthDomain}, p.Except...) {
		if _, ok := mdns.IsDomainName(name); !ok || !mdns.IsFqdn(name) || strings.ToLower(name) != name {
			return fmt.Errorf("name %q: want one in lower case with a dot at its end", name)
		}
	}
	switch {
	case len(p.Upstreams) == 0:
		return errors.New("want at least one upstream")
	case p.Policy > Sequential:
		return fmt.Errorf("policy %d is none", p.Policy)
	case p.HealthCheck < 0 || p.Expire < 0 || p.MaxConcurrent < 0:
		return errors.New("want no negative durations and bounds")
	}
	for i, u := range p.Upstreams {
		a := netip.AddrPortFrom(u.Addr.Addr().Unmap(), u.Addr.Port())
		switch {
		case !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast():
			return fmt.Errorf("upstream %s: want an address and a port", u.Addr)
		case u.ServerName != "" && !u.TLS:
			return fmt.Errorf("upstream %s: a server name is for TLS only", u.Addr)
		case slices.ContainsFunc(self, func(s netip.AddrPort) bool {
			own := s.Addr().Unmap()
			return s.Port() == a.Port() && (own == a.Addr() || own.IsUnspecified() && a.Addr().IsLoopback())
		}):
			return fmt.Errorf("upstream %s is this server itself: name the resolver that it stands before", u.Addr)
		case slices.Contains(p.Upstreams[:i], u):
			return fmt.Errorf("upstream %s is named twice", u.Addr)
		}
	}
	return nil
}
