// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package meter counts what CoreDNS counts of a DNS server as a whole, under its names and with its buckets, so that its dashboards and alerts go
// on working: the sizes of messages, DNSSEC questions, how long changes take to be answered, and panics.
//
// The invariant: what a query calls costs a few additions, takes no lock and allocates nothing; what is counted is read when a scrape comes.
//
// The way in is [New], then [Meter.Socket] once for each address and transport, [Socket.Observe] for each query, and [Meter.Collectors].
package meter
