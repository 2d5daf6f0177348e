// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/test/queries"
)

// addTable begins with the questions of the table.
func addTable(f *testing.F) {
	groups, err := queries.Groups()
	if err != nil {
		f.Fatal(err)
	}
	for _, g := range groups {
		for _, r := range g.Rows {
			m := new(mdns.Msg).SetQuestion(r.Name, mdns.StringToType[r.Type])
			if r.Line%2 == 0 {
				m.SetEdns0(uint16(r.Line*10), r.Line%4 == 0)
			}
			if b, err := m.Pack(); err == nil {
				f.Add(b)
			}
		}
	}
}

// Whatever comes in, what goes out is silence or a message that parses, belongs to the query, and is no longer than the client
// and, for a stranger, decency allow.
func FuzzHandle(f *testing.F) {
	addTable(f)
	s := dual(f, func(o *Options) { o.Blocks[0].Cluster.Pods = PodsInsecure })
	stranger := netip.MustParseAddr("192.0.2.1")
	f.Fuzz(func(t *testing.T, req []byte) {
		for _, proto := range []string{"udp", "tcp"} {
			resp := s.respond(proto, loopback, req)
			if resp == nil {
				if len(req) >= headerSize && req[2]&0x80 == 0 {
					t.Error("silence")
				}
				continue
			}
			describe(t, req, resp)
			if limit := limitOf(req, proto); len(resp) > limit {
				t.Errorf("%s: %d octets, only %d are allowed\n%s", proto, len(resp), limit, hex.Dump(req))
			}
		}
		if resp := s.respond("udp", stranger, req); 2*len(resp) > 3*len(req) {
			t.Errorf("%d octets for a stranger's %d", len(resp), len(req))
		}
	})
}

// limitOf is how long an answer may be.
func limitOf(req []byte, proto string) int {
	if proto == "tcp" {
		return mdns.MaxMsgSize
	}
	m := new(mdns.Msg)
	if err := m.Unpack(req); err != nil {
		return headerSize
	}
	for _, rr := range m.Extra {
		if opt, ok := rr.(*mdns.OPT); ok {
			return min(max(int(opt.UDPSize()), mdns.MinMsgSize), maxUDP)
		}
	}
	return mdns.MinMsgSize
}

// A name is taken apart without harm, in the same way whatever its case, and an address's names lead back to it.
func FuzzName(f *testing.F) {
	groups, err := queries.Groups()
	if err != nil {
		f.Fatal(err)
	}
	for _, g := range groups {
		for _, r := range g.Rows {
			f.Add(r.Name)
		}
	}
	f.Add("10-244-1-5.shop.pod.cluster.local.")
	z, err := newZone(&Cluster{Zones: allZones("cluster.local"), Pods: PodsInsecure}, Options{Reverse: []netip.Prefix{
		netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("10.244.0.64/27"), netip.MustParsePrefix("fd00:96::/111")}}.withDefaults())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if _, ok := mdns.IsDomainName(name); !ok || !mdns.IsFqdn(name) {
			return
		}
		buf := make([]byte, 255)
		n, err := mdns.PackDomainName(name, buf, 0, nil, false)
		if err != nil {
			return
		}
		// As a server gets it, with escapes for what needs them only.
		name, _, err = mdns.UnpackDomainName(buf[:n], 0)
		if err != nil {
			t.Fatal(err)
		}
		p := z.parse(name)
		if q := z.parse(strings.ToUpper(name)); p != q {
			t.Errorf("%q: %+v, in upper case %+v", name, p, q)
		}
		inside := mdns.IsSubDomain(z.domains[0].name, name) || p.addr.IsValid()
		if inside && p.kind == kindOutside || p.kind != kindOutside && !mdns.IsSubDomain(p.origin, name) {
			t.Errorf("%q is in zone %q, says %+v", name, z.domains[0].name, p)
		}
		switch p.kind {
		case kindAddress:
			if got := reverseName(netip.PrefixFrom(p.addr, p.addr.BitLen())); got != strings.ToLower(name) || !contains(z.reverse, p.addr) {
				t.Errorf("%q is %v, whose name is %q", name, p.addr, got)
			}
		case kindPod:
			if got := dash(p.addr) + "." + p.name.Namespace + ".pod." + z.domains[0].name; got != strings.ToLower(name) {
				t.Errorf("%q is %v, whose name is %q", name, p.addr, got)
			}
		}
	})
}
