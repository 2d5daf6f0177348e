//go:build ignore
// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

// What the programs know of packets, and of the pods that they come from.

#include "addr.h"

enum { ETH_HLEN = 14, IPV4 = 0x0800, IPV6 = 0x86dd, PACKET_HOST = 0 };

struct ipv4 {
	__u8 version_ihl, tos;
	__u16 len, id, frag;
	__u8 ttl, proto;
	__u16 check;
	__u32 src, dst;
};

struct ipv6 {
	__u32 flow;
	__u16 len;
	__u8 next, hops;
	__u32 src[4], dst[4];
};

static inline_always int is_version6(const struct ipv6 *ip)
{
	return (*(const __u8 *)ip & 0xf0) == 0x60;
}

// A pod of this node, and how many questions of it were answered here, how many of them with NXDOMAIN.
struct pod {
	__u32 what, ifindex;
	__u64 asked, denied;
};

// The addresses of this node's pods.
struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 16);
	type_of(key, struct addr);
	type_of(value, struct pod);
} pods SEC(".maps");

// The first bytes of a packet, which may have to be brought together; 0: it has fewer.
static inline_always void *headers(struct packet *p, __u32 len)
{
	void *data = (void *)(long)p->data;
	if (data + len <= (void *)(long)p->data_end)
		return data;
	pull_data(p, len);
	data = (void *)(long)p->data;
	return data + len <= (void *)(long)p->data_end ? data : 0;
}
