// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"

	mdns "github.com/miekg/dns"
)

// Record is one resource record of a cluster zone, class IN. Records are comparable: two equal ones say the same.
type Record struct {
	// Name is the owner, fully qualified with a trailing dot. In an answer it is spelled as the question was.
	Name string
	// Type is one of A, AAAA, SRV, PTR, CNAME, NS, SOA, TXT, HINFO.
	Type uint16
	// TTL in seconds.
	TTL uint32
	// Addr is the value of A and AAAA.
	Addr netip.Addr
	// Target is the value of PTR, CNAME, NS and SRV, the primary server of SOA and the text of TXT and HINFO.
	Target string
	// Port is that of SRV; priority and weight are always the same.
	Port uint16
	// Serial and Minimum are those of SOA.
	Serial, Minimum uint32
}

const (
	srvPriority = 0
	srvWeight   = 100

	// The other SOA timers are for secondary servers, which do not exist.
	soaRefresh = 7200
	soaRetry   = 1800
	soaExpire  = 86400
)

// RR is the record as the miekg/dns library holds it.
func (r Record) RR() mdns.RR {
	h := mdns.RR_Header{Name: r.Name, Rrtype: r.Type, Class: mdns.ClassINET, Ttl: r.TTL}
	switch r.Type {
	case mdns.TypeA:
		return &mdns.A{Hdr: h, A: r.Addr.AsSlice()}
	case mdns.TypeAAAA:
		return &mdns.AAAA{Hdr: h, AAAA: r.Addr.AsSlice()}
	case mdns.TypeSRV:
		return &mdns.SRV{Hdr: h, Priority: srvPriority, Weight: srvWeight, Port: r.Port, Target: r.Target}
	case mdns.TypePTR:
		return &mdns.PTR{Hdr: h, Ptr: r.Target}
	case mdns.TypeCNAME:
		return &mdns.CNAME{Hdr: h, Target: r.Target}
	case mdns.TypeNS:
		return &mdns.NS{Hdr: h, Ns: r.Target}
	case mdns.TypeTXT:
		return &mdns.TXT{Hdr: h, Txt: []string{r.Target}}
	case mdns.TypeHINFO:
		return &mdns.HINFO{Hdr: h, Cpu: r.Target}
	case mdns.TypeSOA:
		return &mdns.SOA{Hdr: h, Ns: r.Target, Mbox: "hostmaster." + r.Target[len("ns.dns."):], Serial: r.Serial,
			Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: r.Minimum}
	}
	return &mdns.ANY{Hdr: h}
}

// String is the record as a line of a zone file, with single tabs.
func (r Record) String() string { return r.RR().String() }

func rrs(records []Record) []mdns.RR {
	if len(records) == 0 {
		return nil
	}
	out := make([]mdns.RR, len(records))
	for i, r := range records {
		out[i] = r.RR()
	}
	return out
}
