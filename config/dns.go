// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/dns/forward"
)

// The ports of DNS and of DNS over TLS (RFC 7858).
const (
	dnsPort = 53
	tlsPort = 853
)

// reverseZones are those of all addresses: which of them are the cluster's, its ranges say.
var reverseZones = []string{"in-addr.arpa.", "ip6.arpa."}

// block is what the flags say about DNS: one block for all names.
func (f *Flags) block(a *Agent, fail func(flag, format string, args ...any)) dns.Block {
	b := dns.Block{Zones: []string{"."}, Cluster: &dns.Cluster{TTL: dns.DefaultTTL}, Loadbalance: true}
	for _, d := range a.ClusterDomains {
		b.Cluster.Zones = append(b.Cluster.Zones, strings.ToLower(d)+".")
	}
	b.Cluster.Zones = append(b.Cluster.Zones, reverseZones...)
	switch f.dnsPods {
	case "disabled":
	case "verified":
		b.Cluster.Pods = dns.PodsVerified
	case "insecure":
		b.Cluster.Pods = dns.PodsInsecure
	default:
		fail("dns-pods", "%q is neither disabled, verified nor insecure", f.dnsPods)
	}
	for _, s := range f.upstreams {
		zone, upstream, err := parseUpstream(s)
		if err != nil {
			fail("upstream", "%v", err)
			continue
		}
		i := slices.IndexFunc(b.Forward, func(p forward.Pool) bool { return p.Zone == zone })
		if i < 0 {
			i = len(b.Forward)
			b.Forward = append(b.Forward, forward.Pool{Zone: zone, Policy: forward.Sequential})
		}
		b.Forward[i].Upstreams = append(b.Forward[i].Upstreams, upstream)
	}
	return b
}

// parseUpstream reads [ZONE=][tls://]ADDR[:PORT][#NAME].
func parseUpstream(s string) (zone string, u forward.Upstream, err error) {
	zone = "."
	rest := s
	if name, after, ok := strings.Cut(s, "="); ok {
		zone, rest = mdns.CanonicalName(name), after
		if _, ok := mdns.IsDomainName(zone); !ok || name == "" {
			return "", u, fmt.Errorf("%q: %q is no domain name", s, name)
		}
	}
	port := uint16(dnsPort)
	if after, ok := strings.CutPrefix(rest, "tls://"); ok {
		u.TLS, port = true, tlsPort
		rest, u.ServerName, _ = strings.Cut(after, "#")
	}
	if u.Addr, err = netip.ParseAddrPort(rest); err != nil {
		var addr netip.Addr
		addr, err = netip.ParseAddr(rest)
		u.Addr = netip.AddrPortFrom(addr, port)
	}
	if err != nil || u.Addr.Port() == 0 {
		return "", u, fmt.Errorf("%q is neither an address nor ADDR:PORT, of which either may have tls:// before it and #NAME behind it, and ZONE= before all", s)
	}
	return zone, u, nil
}

// asking reads what the DNS does about who asks.
func (f *Flags) asking(a *Agent, fail func(flag, format string, args ...any)) {
	a.Clients = ranges(f.dnsClients, "dns-clients", fail)
	for _, s := range f.nodeSearch {
		if _, ok := mdns.IsDomainName(s); !ok || s == "" {
			fail("dns-node-search", "%q is no domain name", s)
			continue
		}
		a.NodeSearch = append(a.NodeSearch, strings.TrimSuffix(s, "."))
	}
	var err error
	if a.Asking.Completion, err = client.ParseMode(f.completion); err != nil {
		fail("dns-search-completion", "%v", err)
	}
	if a.Asking.AAAA, err = client.ParseMode(f.aaaa); err != nil {
		fail("dns-suppress-aaaa", "%v", err)
	}
	if a.Asking.Rate, err = client.ParseRate(f.clientRate); err != nil {
		fail("dns-client-rate", "%v", err)
	}
	if a.Asking.Log, err = client.ParseLog(f.dnsLog); err != nil {
		fail("dns-log", "%v", err)
	}
}
