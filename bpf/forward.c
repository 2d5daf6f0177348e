//go:build ignore
// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

// The short way of TCP from pod to pod: past netfilter and the stack of the node. docs/design/0010-pods-past-netfilter.md has the reasons.
//
// It is asked where packets enter a node: on the node's end of each pod's veth pair, and on the links to other nodes. It takes what the long way would only
// hand on, and leaves everything else to it, each packet anew:
//
//   - IPv4 without options and in one piece, or IPv6 without extension headers; TCP;
//   - to this node's link address, from a pod's own address or from a link and another node's range, to a pod here or another node's range;
//   - of a connection that no NAT has: those to Services are left to the node where they are translated, both ways;
//   - no first packet to an address at which something answers for a Service: a pod that is ending, whose new connections may be passed on;
//   - small enough for the device that it leaves by.
//
// A connection that is opened through the tunnel is told the way's MTU, as the long way does.

#include "kernel.h"

#define htons(x) __builtin_bswap16(x)

enum { ETH_HLEN = 14, IPV4 = 0x0800, IPV6 = 0x86dd, TCP = 6, PACKET_HOST = 0 };
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

// What there is to know of an address: bits.
enum {
	ASK_SERVICES = 1, // something answers there for a Service, so the rules have to see the first packet of a connection
	TUNNEL = 2,       // the way leads through the tunnel
};

// A way to pods of another node. Without a device there is none. The MTU, in bytes, is of use only through the tunnel, whose device takes any size.
struct way {
	__u32 what, mtu, ifindex, family;
	struct addr hop; // the next hop, in its own family's form
};

// A pod of this node.
struct pod {
	__u32 what, ifindex;
};

// Where pods' addresses come from, and the way there.
struct {
	uint(type, LPM_TRIE);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 20);
	type_of(key, struct range);
	type_of(value, struct way);
} ranges SEC(".maps");

// The addresses of this node's pods.
struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 16);
	type_of(key, struct addr);
	type_of(value, struct pod);
} pods SEC(".maps");

// How many packets went the short way: a packet that is to be segmented is one.
struct {
	uint(type, PERCPU_ARRAY);
	uint(max_entries, 1);
	type_of(key, __u32);
	type_of(value, __u64);
} forwarded SEC(".maps");

// A packet that may go the short way, if its addresses may.
struct segment {
	struct addr src, dst;
	struct bpf_sock_tuple tuple;
	__u32 ip; // bytes of the IP header
	__u8 is4;
	__u8 flags; // TCP's
};

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

static inline_always int read4(struct packet *p, struct segment *s)
{
	struct ipv4 *ip;
	struct tcp *t;
	const __u32 len = ETH_HLEN + sizeof *ip + sizeof *t;
	void *data = headers(p, len);
	if (!data)
		return 0;
	ip = data + ETH_HLEN;
	t = (void *)(ip + 1);
	if (ip->version_ihl != 0x45 || ip->proto != TCP || ip->frag & htons(0x3fff) || ip->ttl < 2)
		return 0;
	s->is4 = 1;
	s->src.word[2] = s->dst.word[2] = htons(0xffff) << 16;
	s->src.word[3] = s->tuple.ipv4.src = ip->src;
	s->dst.word[3] = s->tuple.ipv4.dst = ip->dst;
	s->tuple.ipv4.sport = t->sport;
	s->tuple.ipv4.dport = t->dport;
	s->ip = sizeof *ip;
	s->flags = t->flags;
	return 1;
}

static inline_always int read6(struct packet *p, struct segment *s)
{
	struct ipv6 *ip;
	struct tcp *t;
	const __u32 len = ETH_HLEN + sizeof *ip + sizeof *t;
	void *data = headers(p, len);
	if (!data)
		return 0;
	ip = data + ETH_HLEN;
	t = (void *)(ip + 1);
	if (ip->next != TCP || ip->hops < 2)
		return 0;
	__builtin_memcpy(&s->src, ip->src, sizeof s->src);
	__builtin_memcpy(&s->dst, ip->dst, sizeof s->dst);
	__builtin_memcpy(s->tuple.ipv6.src, ip->src, sizeof ip->src);
	__builtin_memcpy(s->tuple.ipv6.dst, ip->dst, sizeof ip->dst);
	s->tuple.ipv6.sport = t->sport;
	s->tuple.ipv6.dport = t->dport;
	s->ip = sizeof *ip;
	s->flags = t->flags;
	return 1;
}

static inline_always int read(struct packet *p, struct segment *s)
{
	if (p->vlan_present || p->pkt_type != PACKET_HOST)
		return 0;
	if (p->protocol == htons(IPV4))
		return read4(p, s);
	return p->protocol == htons(IPV6) && read6(p, s);
}

static inline_always struct way *way_to(const struct addr *a)
{
	struct range k = {.bits = 128, .addr = *a};
	return map_lookup(&ranges, &k);
}

// Does it open a connection?
static inline_always int opens(const struct segment *s)
{
	return (s->flags & (SYN | ACK)) == SYN;
}

// Is the packet small enough for a device at this moment? Not for one that is gone: an address that a pod had has to refuse at once.
static inline_always int fits(struct packet *p, __u32 ifindex)
{
	__u32 mtu = 0;
	return !check_mtu(p, ifindex, &mtu, 0, CHECK_SEGMENTS);
}

// Does NAT change the packet's connection, or is that not known?
static inline_always int translated(struct packet *p, struct segment *s)
{
	struct bpf_ct_opts o = {.netns = HERE, .proto = TCP};
	__u32 size = s->is4 ? sizeof s->tuple.ipv4 : sizeof s->tuple.ipv6;
	struct nf_conn *ct = bpf_skb_ct_lookup(p, &s->tuple, size, &o, sizeof o);
	unsigned long status;
	if (!ct)
		return o.error != -ENOENT;
	status = ct->status;
	bpf_ct_release(ct);
	return status & NAT;
}

// Counts the packet, and takes one hop from it.
static inline_always int pass(struct packet *p, const struct segment *s)
{
	__u32 zero = 0;
	__u64 *count = map_lookup(&forwarded, &zero);
	void *data;
	if (count)
		(*count)++;
	if (s->is4) {
		struct ipv4 *ip;
		__u32 sum;
		data = headers(p, ETH_HLEN + sizeof *ip);
		if (!data)
			return 0;
		ip = data + ETH_HLEN;
		sum = ip->check + htons(0x0100); // RFC 1141
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	} else {
		struct ipv6 *ip;
		const __u32 at = ETH_HLEN + __builtin_offsetof(struct ipv6, hops);
		__u8 hops;
		data = headers(p, ETH_HLEN + sizeof *ip);
		if (!data)
			return 0;
		ip = data + ETH_HLEN;
		hops = ip->hops - 1;
		// There is no checksum in the header, but one that the network card made may be over it.
		return !store_bytes(p, at, &hops, sizeof hops, RECOMPUTE_CSUM);
	}
	return 1;
}

// Has TCP's first packet ask for segments that fit the way, if it asks for larger ones.
static inline_always void fit(struct packet *p, const struct segment *s, __u32 mtu)
{
	enum { END = 0, NOP = 1, MSS = 2, OPTIONS = 40 };
	const __u32 tcp = ETH_HLEN + s->ip;
	__u16 most = mtu - s->ip - TCP_HLEN, asked;
	__u32 at = TCP_HLEN, end;
	__u8 option[4], offset;
	if (load_bytes(p, tcp + __builtin_offsetof(struct tcp, offset), &offset, sizeof offset))
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

// Into a pod of this node.
static inline_always int deliver(struct packet *p, struct segment *s, const struct pod *to)
{
	if (!fits(p, to->ifindex) || (opens(s) && to->what & ASK_SERVICES) || translated(p, s) || !pass(p, s))
		return NEXT;
	return redirect_peer(to->ifindex, 0);
}

// To another node.
static inline_always int forward(struct packet *p, struct segment *s, const struct way *to)
{
	struct bpf_redir_neigh n = {.family = to->family};
	if (!fits(p, to->ifindex) || (opens(s) && to->what & ASK_SERVICES) || translated(p, s) || !pass(p, s))
		return NEXT;
	if (s->flags & SYN && to->what & TUNNEL)
		fit(p, s, to->mtu);
	__builtin_memcpy(n.hop, &to->hop, sizeof n.hop);
	return redirect_neigh(to->ifindex, &n, sizeof n, 0);
}

static inline_always int of_pod(struct packet *p, struct segment *s)
{
	struct pod *pod = map_lookup(&pods, &s->src);
	struct way *way;
	if (!pod || pod->ifindex != p->ifindex)
		return NEXT;
	pod = map_lookup(&pods, &s->dst);
	if (pod)
		return deliver(p, s, pod);
	way = way_to(&s->dst);
	return way && way->ifindex ? forward(p, s, way) : NEXT;
}

static inline_always int of_node(struct packet *p, struct segment *s)
{
	struct pod *pod = map_lookup(&pods, &s->dst);
	struct way *back;
	if (!pod)
		return NEXT;
	back = way_to(&s->src);
	return back && back->ifindex ? deliver(p, s, pod) : NEXT;
}

SEC("tcx/ingress")
int from_pod(struct packet *p)
{
	struct segment s = {};
	return read(p, &s) ? of_pod(p, &s) : NEXT;
}

SEC("tcx/ingress")
int from_node(struct packet *p)
{
	struct segment s = {};
	return read(p, &s) ? of_node(p, &s) : NEXT;
}

// What it calls of connection tracking is for programs under the licence of the kernel, under which this file may be used too.
char _license[] SEC("license") = "GPL v2";
