// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"crypto/x509"
	"net/netip"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/dns/forward"
	"github.com/fairlead/fairlead/dns/rules"
)

// TestBlockString: everything that can be set is printed, and nothing else is.
func TestBlockString(t *testing.T) {
	upstream := func(addr, name string, tls bool) forward.Upstream {
		return forward.Upstream{Addr: netip.MustParseAddrPort(addr), ServerName: name, TLS: tls}
	}
	for _, r := range []struct {
		block Block
		want  string
	}{
		{Block{Zones: []string{"."}, Port: 53}, ". port 53\n"},
		{Block{
			Zones: []string{"cluster.local.", "10.in-addr.arpa."}, Port: 54,
			Bind:    []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			Cluster: &Cluster{Zones: []string{"cluster.local."}, TTL: 5 * time.Second},
			Rules: rules.Rules{
				Rewrites: []rules.Rewrite{rules.NameRewrite{On: rules.On{Pattern: "a"}, To: "b"}},
				Hosts:    &rules.Hosts{Zones: []string{"."}, TTL: 5, Inline: rules.ParseHosts("10.0.0.1 a")},
			},
			Forward: []forward.Pool{{Zone: ".", Upstreams: []forward.Upstream{upstream("10.0.0.2:53", "", false)}}},
		}, `cluster.local. 10.in-addr.arpa. port 54 on 10.0.0.1 on fd00::1
  cluster cluster.local., pods disabled, ttl 5s
  rewrite name exact "a" "b"
  hosts . ttl 5s
    10.0.0.1 a
  forward . to 10.0.0.2:53, random
  cache
`},
		{Block{
			Zones: []string{"."}, Port: 53,
			Cluster: &Cluster{Zones: []string{"a.", "b."}, Fallthrough: []string{"b."}, Pods: PodsVerified, EndpointPodNames: true, IgnoreEmpty: true, Namespaces: []string{"x", "y"}},
			Forward: []forward.Pool{{
				Zone: "c.", Except: []string{"d.c.", "e.c."}, Policy: forward.Sequential, ForceTCP: true, Roots: x509.NewCertPool(), MaxFails: -1, HealthCheck: time.Second,
				HealthDomain: "h.", Expire: time.Minute, MaxConcurrent: 7, NextOn: []int{mdns.RcodeNameError, mdns.RcodeRefused},
				Upstreams: []forward.Upstream{upstream("10.0.0.2:853", "name", true), upstream("[fd00::2]:853", "", true)},
			}},
			Caching: forward.Caching{Size: 1000, MaxTTL: time.Hour, MinTTL: time.Second, MaxDenial: time.Minute, ServeStale: time.Hour, PrefetchHits: 2, PrefetchPercent: 10},
			Log:     []Log{{Zone: ".", Success: true, Denial: true, Error: true}}, Errors: true, Loadbalance: true, Autopath: true,
		}, `. port 53
  cluster a. b., pods verified, ttl 0s, fall through b., endpoints named after pods, empty services denied, only namespaces x y
  forward c. to tls://10.0.0.2:853%name tls://[fd00::2]:853, sequential, except d.c. e.c., over tcp, own certificate authorities, never down, probe every 1s h., idle for 1m0s, at most 7, next on NXDOMAIN REFUSED
  cache, 1000 octets, answers 1s to 1h0m0s, denials 0s to 1m0s, stale for 1h0m0s, prefetch after 2 at 10%
  log ., success, denial, error
  log errors, shuffle addresses, complete by the pod's search list
`},
		{Block{
			Zones: []string{"."}, Port: 53, Caching: forward.Caching{Size: -1},
			Forward: []forward.Pool{{Zone: ".", Policy: forward.RoundRobin, Upstreams: []forward.Upstream{upstream("10.0.0.2:53", "", false)}}},
		}, ". port 53\n  forward . to 10.0.0.2:53, round_robin\n  cache, off\n"},
	} {
		if got := r.block.String(); got != r.want {
			t.Errorf("got\n%s, want\n%s", got, r.want)
		}
	}
	for p, want := range map[PodNames]string{PodsDisabled: "disabled", PodsVerified: "verified", PodsInsecure: "insecure"} {
		if p.String() != want {
			t.Errorf("%s, want %s", p, want)
		}
	}
}
