//go:build ignore
// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

// The short way of TCP from pod to pod: past netfilter and the stack of the node. docs/design/0010-pods-past-netfilter.md has the reasons.
//
// It is asked where packets enter a node: on the node's end of each pod's veth pair, and on the links to other nodes. It takes what the long way would only
// hand on, and leaves everything else to it, each packet anew:
//
//   - IPv4 without options and in one piece, or IPv6 without extension headers; TCP;
//   - from a pod's own address, or from a link and a pod's range; to a pod's range;
//   - of a connection that no NAT has: those to Services are left to the node where they are translated, both ways;
//   - no first packet to an address at which something answers for a Service: a pod that is ending, whose new connections may be passed on;
//   - small enough for its way, which is the one that the routes say at this moment, and leads to a pod here, out of a link or into the tunnel.
//
// A connection that is opened through the tunnel is told the way's MTU, as the long way does.

#include "kernel.h"

#define htons(x) __builtin_bswap16(x)

enum { ETH_HLEN = 14, IPV4 = 0x0800, IPV6 = 0x86dd, TCP = 6, AF_INET = 2, AF_INET6 = 10 };
enum { SYN = 2, ACK = 16, TCP_HLEN = 20, TCP_CHECK = 16 };

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

struct tcp {
	__u16 sport, dport;
	__u32 seq, ack;
	__u8 offset, flags;
};

// An address of either family: an IPv4 one as ::ffff:a.b.c.d.
struct addr {
	__u32 word[4];
};

struct range {
	__u32 bits;
	struct addr addr;
};

// Where a device leads.
enum { POD = 1, LINK = 2, TUNNEL = 3 };

// What is to be done with the first packet of a connection to an address: the lower half of what the map ranges has of it. The upper half is the MTU of the
// way there through the tunnel, in bytes: when the kernel forwards it goes by the device's, which is as large as can be.
enum { HAND_ON = 1, ASK_SERVICES = 2, WHAT = 0xffff, MTU = 16 };

// Pods' addresses.
struct {
	uint(type, LPM_TRIE);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 20);
	type_of(key, struct range);
	type_of(value, __u32);
} ranges SEC(".maps");

// The addresses of this node's pods, and each one's device.
struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 16);
	type_of(key, struct addr);
	type_of(value, __u32);
} pods SEC(".maps");

// The devices that this program is on.
struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 16);
	type_of(key, __u32);
	type_of(value, __u32);
} devices SEC(".maps");

// How many packets went the short way: a packet that is to be segmented is one.
struct {
	uint(type, PERCPU_ARRAY);
	uint(max_entries, 1);
	type_of(key, __u32);
	type_of(value, __u64);
} forwarded SEC(".maps");

static inline_always void *headers(struct packet *p, __u32 len)
{
	void *data = (void *)(long)p->data;
	return data + len <= (void *)(long)p->data_end ? data : 0;
}

static inline_always struct addr mapped(__u32 a)
{
	struct addr m = {{0, 0, htons(0xffff) << 16, a}};
	return m;
}

static inline_always struct addr copied(const __u32 *a)
{
	struct addr c = {{a[0], a[1], a[2], a[3]}};
	return c;
}

static inline_always __u32 range_of(const struct addr *a)
{
	struct range k = {.bits = 128, .addr = *a};
	__u32 *v = map_lookup(&ranges, &k);
	return v ? *v : 0;
}

// May the packet's source be what it says?
static inline_always int genuine(struct packet *p, __u32 from, const struct addr *src)
{
	__u32 *device;
	if (from != POD)
		return range_of(src) != 0;
	device = map_lookup(&pods, src);
	return device && *device == p->ifindex;
}

// Does NAT change the packet's connection, or is that not known?
static inline_always int translated(struct packet *p, struct bpf_sock_tuple *tuple, __u32 size)
{
	struct bpf_ct_opts o = {.netns = HERE, .proto = TCP};
	struct nf_conn *ct = bpf_skb_ct_lookup(p, tuple, size, &o, sizeof o);
	unsigned long status;
	if (!ct)
		return o.error != -ENOENT;
	status = ct->status;
	bpf_ct_release(ct);
	return status & NAT;
}

// The packet's length on its way: that of the largest segment, if it is to be segmented.
static inline_always __u16 longest(struct packet *p, __u16 len, __u32 ip, const struct tcp *t)
{
	return p->gso_size ? ip + (t->offset >> 4) * 4 + p->gso_size : len;
}

// Where to, by the routes of this moment? 0: that is for the long way to say.
static inline_always __u32 route(struct packet *p, struct bpf_fib_lookup *f)
{
	__u32 *to;
	f->l4_protocol = TCP;
	f->ifindex = p->ifindex;
	if (fib_lookup(p, f, sizeof *f, SKIP_NEIGH))
		return 0;
	to = map_lookup(&devices, &f->ifindex);
	return to ? *to : 0;
}

// Has TCP's first packet ask for segments that fit the way, if it asks for larger ones. tcp is where the header begins, ip the length of the one before.
static inline_always void fit(struct packet *p, __u32 mtu, __u32 tcp, __u32 ip)
{
	enum { END = 0, NOP = 1, MSS = 2, OPTIONS = 40 };
	__u16 most = mtu - ip - TCP_HLEN, asked;
	__u32 at = TCP_HLEN, end;
	__u8 option[4], offset;
	if (load_bytes(p, tcp + 12, &offset, sizeof offset))
		return;
	end = (offset >> 4) * 4;
	for (int i = 0; i < OPTIONS; i++) {
		if (at + sizeof option > end || load_bytes(p, tcp + at, option, sizeof option) || option[0] == END)
			return;
		if (option[0] == MSS && option[1] == sizeof option) {
			asked = option[2] << 8 | option[3];
			if (asked <= most)
				return;
			asked = htons(asked);
			most = htons(most);
			store_bytes(p, tcp + at + 2, &most, sizeof most, 0);
			l4_csum_replace(p, tcp + TCP_CHECK, asked, most, sizeof most);
			return;
		}
		if (option[0] != NOP && option[1] < 2)
			return;
		at += option[0] == NOP ? 1 : option[1];
	}
}

static inline_always int send(struct bpf_fib_lookup *f, __u32 to)
{
	struct bpf_redir_neigh n = {.family = f->family};
	__u32 zero = 0;
	__u64 *count = map_lookup(&forwarded, &zero);
	if (count)
		(*count)++;
	if (to == POD)
		return redirect_peer(f->ifindex, 0);
	n.hop[0] = f->dst[0];
	if (f->family == AF_INET6) {
		n.hop[1] = f->dst[1];
		n.hop[2] = f->dst[2];
		n.hop[3] = f->dst[3];
	}
	return redirect_neigh(f->ifindex, &n, sizeof n, 0);
}

// Is the connection one that this way may have, of a packet that came from such a device? Then this is what there is to know of where it goes to.
static inline_always __u32 ours(struct packet *p, __u32 from, const struct addr *src, const struct addr *dst, const struct tcp *t)
{
	__u32 there = range_of(dst);
	if (!there || ((there & WHAT) == ASK_SERVICES && (t->flags & (SYN | ACK)) == SYN))
		return 0;
	return genuine(p, from, src) ? there : 0;
}

static inline_always int forward4(struct packet *p, __u32 from)
{
	const __u32 len = ETH_HLEN + sizeof(struct ipv4) + sizeof(struct tcp);
	struct bpf_fib_lookup f = {.family = AF_INET};
	struct bpf_sock_tuple tuple;
	struct addr src, dst;
	struct ipv4 *ip;
	struct tcp *t;
	__u32 to, there, sum;
	void *data = headers(p, len);
	if (!data)
		return NEXT;
	ip = data + ETH_HLEN;
	t = (void *)(ip + 1);
	if (ip->version_ihl != 0x45 || ip->proto != TCP || ip->frag & htons(0x3fff) || ip->ttl < 2)
		return NEXT;
	src = mapped(ip->src);
	dst = mapped(ip->dst);
	there = ours(p, from, &src, &dst, t);
	if (!there)
		return NEXT;
	tuple.ipv4.src = ip->src;
	tuple.ipv4.dst = ip->dst;
	tuple.ipv4.sport = t->sport;
	tuple.ipv4.dport = t->dport;
	f.tos = ip->tos;
	f.tot_len = longest(p, htons(ip->len), sizeof *ip, t);
	f.src[0] = ip->src;
	f.dst[0] = ip->dst;
	f.sport = t->sport;
	f.dport = t->dport;
	if (translated(p, &tuple, sizeof tuple.ipv4))
		return NEXT;
	to = route(p, &f);
	if (!to || (from != POD && to != POD))
		return NEXT;
	// One hop less, which the checksum knows (RFC 1141).
	sum = ip->check + htons(0x0100);
	ip->check = sum + (sum >= 0xffff);
	ip->ttl--;
	if (to == TUNNEL && there >> MTU && t->flags & SYN)
		fit(p, there >> MTU, ETH_HLEN + sizeof *ip, sizeof *ip);
	return send(&f, to);
}

static inline_always int forward6(struct packet *p, __u32 from)
{
	const __u32 len = ETH_HLEN + sizeof(struct ipv6) + sizeof(struct tcp);
	struct bpf_fib_lookup f = {.family = AF_INET6};
	struct bpf_sock_tuple tuple;
	struct addr src, dst;
	struct ipv6 *ip;
	struct tcp *t;
	__u32 to, there;
	__u8 hops, opening;
	void *data = headers(p, len);
	if (!data)
		return NEXT;
	ip = data + ETH_HLEN;
	t = (void *)(ip + 1);
	if (ip->next != TCP || ip->hops < 2)
		return NEXT;
	src = copied(ip->src);
	dst = copied(ip->dst);
	there = ours(p, from, &src, &dst, t);
	if (!there)
		return NEXT;
	__builtin_memcpy(tuple.ipv6.src, src.word, sizeof tuple.ipv6.src);
	__builtin_memcpy(tuple.ipv6.dst, dst.word, sizeof tuple.ipv6.dst);
	tuple.ipv6.sport = t->sport;
	tuple.ipv6.dport = t->dport;
	f.tos = ip->flow & ~htons(0xf000); // without the version
	f.tot_len = longest(p, htons(ip->len) + sizeof *ip, sizeof *ip, t);
	__builtin_memcpy(f.src, src.word, sizeof f.src);
	__builtin_memcpy(f.dst, dst.word, sizeof f.dst);
	f.sport = t->sport;
	f.dport = t->dport;
	hops = ip->hops - 1;
	if (translated(p, &tuple, sizeof tuple.ipv6))
		return NEXT;
	to = route(p, &f);
	if (!to || (from != POD && to != POD))
		return NEXT;
	opening = t->flags & SYN;
	// There is no checksum in the header, but one that the network card made may be over it.
	if (store_bytes(p, ETH_HLEN + __builtin_offsetof(struct ipv6, hops), &hops, sizeof hops, RECOMPUTE_CSUM))
		return NEXT;
	if (to == TUNNEL && there >> MTU && opening)
		fit(p, there >> MTU, ETH_HLEN + sizeof *ip, sizeof *ip);
	return send(&f, to);
}

SEC("tcx/ingress")
int fairlead_pods(struct packet *p)
{
	__u32 ifindex = p->ifindex, *from;
	if (p->vlan_present)
		return NEXT;
	from = map_lookup(&devices, &ifindex);
	if (!from)
		return NEXT;
	if (p->protocol == htons(IPV4)) {
		if (!headers(p, ETH_HLEN + sizeof(struct ipv4) + sizeof(struct tcp)))
			pull_data(p, ETH_HLEN + sizeof(struct ipv4) + sizeof(struct tcp));
		return forward4(p, *from);
	}
	if (p->protocol == htons(IPV6)) {
		if (!headers(p, ETH_HLEN + sizeof(struct ipv6) + sizeof(struct tcp)))
			pull_data(p, ETH_HLEN + sizeof(struct ipv6) + sizeof(struct tcp));
		return forward6(p, *from);
	}
	return NEXT;
}

// What it calls of connection tracking is for programs under the licence of the kernel, under which this file may be used too.
char _license[] SEC("license") = "GPL v2";
