// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/forward"
)

// resolvConf is where the machine's own resolvers are.
const resolvConf = "/etc/resolv.conf"

// stanza is one forward: of several, the first that fits a name is asked.
type stanza struct {
	at     token
	from   string
	except []string
	pool   forward.Pool
	self   bool // it is to this DNS
}

func (b *builder) readForward(d *directive) error {
	s := stanza{at: d.name}
	p := &s.pool
	serverName := ""
	b.options(d, map[string]func([]string) error{
		"except": func(args []string) error {
			zones, err := names(args)
			s.except = append(s.except, zones...)
			return errors.Join(err, expect(args, 1, -1))
		},
		"policy": func(args []string) error {
			policies := map[string]forward.Policy{"random": forward.Random, "round_robin": forward.RoundRobin, "sequential": forward.Sequential}
			if len(args) == 1 {
				policy, ok := policies[args[0]]
				if p.Policy = policy; ok {
					return nil
				}
			}
			return errors.New("expected random, round_robin or sequential")
		},
		"max_fails": func(args []string) error {
			err := count(&p.MaxFails)(args)
			if err == nil && p.MaxFails == 0 {
				p.MaxFails = -1 // never
			}
			return err
		},
		"max_concurrent": func(args []string) error {
			err := count(&p.MaxConcurrent)(args)
			if err == nil && p.MaxConcurrent == 0 {
				p.MaxConcurrent = 1_000_000 // no bound
			}
			return err
		},
		"expire": span(&p.Expire),
		"health_check": func(args []string) error {
			if err := expect(args, 1, -1); err != nil {
				return err
			}
			if err := span(&p.HealthCheck)(args[:1]); err != nil {
				return err
			}
			if p.HealthCheck == 0 {
				p.MaxFails = -1 // without probes no upstream is ever taken for down
			}
			for args = args[1:]; len(args) > 0; args = args[1:] {
				switch {
				case args[0] == "no_rec":
				case args[0] == "domain" && len(args) > 1:
					zones, err := names(args[1:2])
					if err != nil {
						return err
					}
					p.HealthDomain = zones[0]
					args = args[1:]
				default:
					return fmt.Errorf("expected no_rec or domain and a name, not %q", args[0])
				}
			}
			return nil
		},
		"force_tcp":  on(&p.ForceTCP),
		"prefer_udp": func(args []string) error { return expect(args, 0, 0) },
		"tls": func(args []string) error {
			if len(args) > 1 {
				return errors.New("upstreams are not shown a certificate; give that of their authority alone, or none")
			}
			if len(args) == 0 {
				return nil
			}
			text, err := b.read(b.locate(d, args[0]))
			if err != nil {
				return err
			}
			if p.Roots = x509.NewCertPool(); !p.Roots.AppendCertsFromPEM(text) {
				return fmt.Errorf("%s has no certificate", args[0])
			}
			return nil
		},
		"tls_servername": func(args []string) error {
			if err := expect(args, 1, 1); err != nil {
				return err
			}
			serverName = args[0]
			return nil
		},
		"failover": func(args []string) error {
			for _, a := range args {
				n, ok := mdns.StringToRcode[strings.ToUpper(a)]
				if !ok || n == mdns.RcodeSuccess {
					return fmt.Errorf("%q is not a response code of a failure", a)
				}
				p.NextOn = append(p.NextOn, n)
			}
			return expect(args, 1, -1)
		},
	})
	if err := expect(d.args, 2, -1); err != nil {
		return err
	}
	zones, err := names(d.args[:1])
	if err != nil {
		return err
	}
	if s.from = zones[0]; len(zones) > 1 {
		d.differs(Differently, "as by CoreDNS, only "+s.from+" is forwarded; name each reverse zone")
	}
	others := false
	for _, to := range d.args[1:] {
		upstreams, self, err := b.upstreams(d, to)
		if err != nil {
			return err
		}
		s.self = s.self || self
		others = others || !self
		for _, u := range upstreams {
			if u.TLS && serverName != "" {
				if u.ServerName != "" {
					return fmt.Errorf("%s and tls_servername both name the server", to)
				}
				u.ServerName = serverName
			}
			if !slices.Contains(p.Upstreams, u) {
				p.Upstreams = append(p.Upstreams, u)
			}
		}
	}
	if s.self && others {
		return errors.New("names go either to the cluster's DNS, which is this one, or elsewhere")
	}
	b.stanzas = append(b.stanzas, s)
	return nil
}

// upstreams are those that an argument names, or that it is the cluster's own DNS.
func (b *builder) upstreams(d *directive, to string) ([]forward.Upstream, bool, error) {
	switch to {
	case "__PILLAR__CLUSTER__DNS__":
		return nil, true, b.argument(d, "the cluster's DNS", to)
	case "__PILLAR__UPSTREAM__SERVERS__":
		to = resolvConf
	}
	scheme, host, ok := strings.Cut(to, "://")
	if !ok {
		scheme, host = "dns", to
	}
	u := forward.Upstream{TLS: scheme == "tls"}
	port := uint16(53)
	if u.TLS {
		port = 853
		// The name of the server stands where a zone would: 1.1.1.1%name, [2606::1]:853%name or 1.1.1.1%name:853.
		if addr, name, ok := cutLast(host, '%'); ok {
			name, p, ported := strings.Cut(name, ":")
			u.ServerName = strings.TrimSuffix(name, "]")
			if host = addr; strings.HasPrefix(addr, "[") && !strings.Contains(addr, "]") {
				host += "]"
			}
			if ported {
				host += ":" + p
			}
		}
	} else if scheme != "dns" {
		return nil, false, b.argument(d, "other schemes", to)
	}
	if a, err := netip.ParseAddrPort(host); err == nil {
		u.Addr = a
	} else if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		u.Addr = netip.AddrPortFrom(a, port)
	} else if ok {
		return nil, false, b.argument(d, "HOSTNAME", to)
	} else {
		upstreams, err := b.resolvers(d, to)
		return upstreams, false, err
	}
	u.Addr = netip.AddrPortFrom(u.Addr.Addr().Unmap(), u.Addr.Port())
	if a := u.Addr.Addr(); a.IsUnspecified() || a.IsMulticast() || u.Addr.Port() == 0 {
		return nil, false, fmt.Errorf("%s: no resolver can be there", to)
	}
	if slices.Contains(b.env.ClusterDNS, u.Addr.Addr()) && u.Addr.Port() == 53 {
		return nil, true, b.argument(d, "the cluster's DNS", to)
	}
	return []forward.Upstream{u}, false, nil
}

// resolvers are those that a file in the manner of resolv.conf lists.
func (b *builder) resolvers(d *directive, name string) ([]forward.Upstream, error) {
	text, err := b.read(b.locate(d, name))
	switch {
	case err != nil && strings.Contains(name, "/"):
		return nil, err
	case err != nil:
		return nil, b.argument(d, "HOSTNAME", name)
	}
	conf, err := mdns.ClientConfigFromReader(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var out []forward.Upstream
	for _, s := range conf.Servers {
		if a, err := netip.ParseAddr(s); err == nil && !a.IsUnspecified() && !a.IsMulticast() {
			out = append(out, forward.Upstream{Addr: netip.AddrPortFrom(a.Unmap(), 53)})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s names no resolver", name)
	}
	return out, nil
}

// pools makes of the forwards, of which the first that fits a name is asked, pools, of which the longest is. Between the names that they
// begin and end at nothing changes, so that each of those names is decided for what is below it.
func (b *builder) pools() {
	b.answerHere()
	first := func(name string) *stanza {
		for i := range b.stanzas {
			s := &b.stanzas[i]
			if within(name, s.from) && !allWithin([]string{name}, s.except) {
				return s
			}
		}
		return nil
	}
	var cuts []string
	for _, s := range b.stanzas {
		for _, name := range append([]string{s.from}, s.except...) {
			if !slices.Contains(cuts, name) {
				cuts = append(cuts, name)
			}
		}
	}
	slices.SortStableFunc(cuts, func(a, b string) int { return mdns.CountLabel(a) - mdns.CountLabel(b) })
	pools := map[string]int{} // by name, in the block; -1 where there is none
	var owners []*stanza      // of the pools
	for _, name := range cuts {
		above := -1
		for end, stop := mdns.NextLabel(name, 0); ; end, stop = mdns.NextLabel(name, end) {
			parent := "."
			if !stop {
				parent = name[end:]
			}
			if i, ok := pools[parent]; ok && name != "." {
				above = i
				break
			}
			if stop {
				break
			}
		}
		s := first(name)
		switch {
		case s == nil && above >= 0:
			p := &b.block.Forward[above]
			p.Except = append(p.Except, name)
			pools[name] = -1
		case s == nil:
			pools[name] = -1
		case above >= 0 && owners[above] == s:
			pools[name] = above
		default:
			pool := s.pool
			pool.Zone = name
			pools[name] = len(b.block.Forward)
			b.block.Forward = append(b.block.Forward, pool)
			owners = append(owners, s)
		}
	}
	for i := range b.stanzas {
		if s := &b.stanzas[i]; !slices.Contains(owners, s) {
			b.note(s.at, "forward "+s.from, NoEffect, "the forwards in front of it have all its names")
		}
	}
}

// answerHere makes of forwards to the cluster's DNS the cluster's zones.
func (b *builder) answerHere() {
	var rest []stanza
	for _, s := range b.stanzas {
		if !s.self {
			rest = append(rest, s)
			continue
		}
		zones := []string{s.from}
		if s.from == "." {
			zones = b.zones
		}
		if b.block.Cluster != nil || slices.Contains(zones, ".") {
			b.note(s.at, "forward "+s.from, Refused, "the cluster's DNS is this one: that would be a loop; name the resolvers outside the cluster")
			continue
		}
		c := &dns.Cluster{Zones: zones, Pods: dns.PodsInsecure, TTL: 30 * time.Second}
		for _, z := range zones {
			if !isReverse(z) {
				continue
			}
			// Of a reverse zone only the cluster's own addresses are the cluster's.
			c.Fallthrough = append(c.Fallthrough, z)
			d := &directive{name: s.at}
			upstreams, err := b.resolvers(d, resolvConf)
			if err != nil {
				b.note(s.at, "forward "+z, NoEffect, fmt.Sprintf("for addresses outside the cluster: %v", err))
				continue
			}
			rest = append(rest, stanza{at: s.at, from: z, pool: forward.Pool{Upstreams: upstreams}})
		}
		b.block.Cluster = c
	}
	b.stanzas = rest
}

// readCache reads how long answers are kept. Which zones are the cluster's is known by then.
func (b *builder) readCache(d *directive) error {
	b.cached = true
	// What CoreDNS has if nothing is said, as far as it is not what a cache has here.
	c := forward.Caching{MinTTL: 5 * time.Second, MinDenial: 5 * time.Second}
	// The numbers of answers and denials; 0 and 0: not said.
	var answers, denials int
	args := d.args
	if len(args) > 0 {
		if n, err := strconv.Atoi(args[0]); err == nil {
			if n <= 0 {
				return fmt.Errorf("a TTL of %d s is not above 0", n)
			}
			c.MaxTTL, c.MaxDenial = time.Duration(n)*time.Second, time.Duration(n)*time.Second
			args = args[1:]
		}
	}
	kind := func(capacity *int, most, least *time.Duration) func([]string) error {
		return func(args []string) error {
			if err := expect(args, 1, 3); err != nil {
				return err
			}
			var n [3]int
			for i, a := range args {
				var err error
				if n[i], err = strconv.Atoi(a); err != nil || n[i] < 0 || n[i] == 0 && i == 1 {
					return fmt.Errorf("%q is not a number above 0", a)
				}
			}
			*capacity = n[0]
			if len(args) > 1 {
				*most = time.Duration(n[1]) * time.Second
			}
			if len(args) > 2 {
				*least = time.Duration(n[2]) * time.Second
			}
			return nil
		}
	}
	zones, zonesErr := b.namesOrZones(args)
	b.options(d, map[string]func([]string) error{
		"success": kind(&answers, &c.MaxTTL, &c.MinTTL),
		"denial":  kind(&denials, &c.MaxDenial, &c.MinDenial),
		"prefetch": func(args []string) error {
			if err := expect(args, 1, 3); err != nil {
				return err
			}
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 0 {
				return fmt.Errorf("%q is not a number of questions", args[0])
			}
			percent := 10
			if len(args) > 1 {
				if _, err := positive(args[1]); err != nil {
					return err
				}
			}
			if len(args) > 2 {
				text, ok := strings.CutSuffix(args[2], "%")
				if percent, err = strconv.Atoi(text); err != nil || !ok || percent < 10 || percent > 90 {
					return fmt.Errorf("%q is not a percentage from 10%% to 90%%", args[2])
				}
			}
			if c.PrefetchHits = n; n > 0 {
				c.PrefetchPercent = percent
			}
			return nil
		},
		"serve_stale": func(args []string) error {
			if err := expect(args, 0, 5); err != nil {
				return err
			}
			c.ServeStale, c.StaleAtOnce = time.Hour, len(args) < 2 || strings.EqualFold(args[1], "immediate")
			if len(args) > 0 {
				var err error
				if c.ServeStale, err = positive(args[0]); err != nil {
					return err
				}
			}
			if len(args) > 1 && !strings.EqualFold(args[1], "immediate") && !strings.EqualFold(args[1], "verify") {
				return fmt.Errorf("%q is neither immediate nor verify", args[1])
			}
			for _, a := range args[min(2, len(args)):] {
				if _, err := positive(a); err != nil {
					return err
				}
			}
			return nil
		},
		"servfail": func(args []string) error {
			if err := expect(args, 1, 1); err != nil {
				return err
			}
			t, err := positive(args[0])
			if err == nil && t > 5*time.Minute {
				err = errors.New("failures may be kept for 5m at most (RFC 2308)")
			}
			if err == nil {
				c.MaxFailure = max(t, time.Second)
			}
			return err
		},
		"disable": func(args []string) error {
			if err := expect(args, 1, -1); err != nil {
				return err
			}
			if args[0] != "success" && args[0] != "denial" {
				return fmt.Errorf("%q is neither success nor denial", args[0])
			}
			zones := []string{"."}
			if len(args) > 1 {
				var err error
				if zones, err = names(args[1:]); err != nil {
					return err
				}
			}
			switch {
			case b.ofCluster(zones) || len(b.block.Forward) == 0:
			case allWithin(b.zones, zones):
				b.disable[args[0]] = true
			default:
				return errors.New("a part of the zones that are forwarded cannot be left out of the cache; put them into a server block of their own without cache")
			}
			return nil
		},
		"keepttl": func(args []string) error { return expect(args, 0, 0) },
	})
	// As with CoreDNS, the longest time wins over the shortest.
	c.MinTTL = min(c.MinTTL, cmp.Or(c.MaxTTL, time.Hour))
	c.MinDenial = min(c.MinDenial, cmp.Or(c.MaxDenial, 30*time.Minute))
	if answers+denials > 0 {
		const usual = 9984 // of the kind of which nothing is said
		c.Size = (cmp.Or(answers, usual) + cmp.Or(denials, usual)) * 512
	}
	if zonesErr != nil {
		return zonesErr
	}
	switch {
	case allWithin(b.zones, zones) || len(b.block.Forward) == 0:
	case b.ofCluster(zones):
		b.cached = false
	default:
		return errors.New("a part of the zones that are forwarded cannot be cached alone; put them into a server block of their own")
	}
	if len(args) > 0 {
		if err := b.argument(d, "ZONES", strings.Join(args, " ")); err != nil {
			return err
		}
	}
	if b.block.Caching = c; len(b.disable) == 1 {
		return errors.New("success and denial can only be disabled both")
	}
	if len(b.disable) == 2 {
		b.cached = false
	}
	return nil
}

// ofCluster reports whether zones are the cluster's, of which nothing is cached.
func (b *builder) ofCluster(zones []string) bool {
	return b.block.Cluster != nil && allWithin(zones, b.block.Cluster.Zones)
}

// finishCache settles what is kept where that was not said.
func (b *builder) finishCache() {
	switch {
	case len(b.block.Forward) == 0:
		b.block.Caching = forward.Caching{}
	case !b.cached:
		b.block.Caching = forward.Caching{Size: -1}
	}
}

// count reads a number that is not negative.
func count(to *int) func([]string) error {
	return func(args []string) error {
		if len(args) == 1 {
			if n, err := strconv.Atoi(args[0]); err == nil && n >= 0 {
				*to = n
				return nil
			}
		}
		return errors.New("expected a number")
	}
}

// span reads a duration that is not negative.
func span(to *time.Duration) func([]string) error {
	return func(args []string) (err error) {
		if err := expect(args, 1, 1); err != nil {
			return err
		}
		*to, err = positive(args[0])
		return err
	}
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	if i := strings.LastIndexByte(s, sep); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}
