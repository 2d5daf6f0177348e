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
//   - of a connection that no NAT changes, or that is established and to a cluster IP: on the node that translates it the packet is changed as conntrack's entry says;
//   - no first packet to an address at which something answers for a Service: a pod that is ending, whose new connections may be passed on;
//   - small enough for the device that it leaves by.
//
// A connection that is opened through the tunnel is told the way's MTU, as the long way does.

#include "answer.h"

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16, TCP_HLEN = 20, TCP_CHECK = 16 };

struct tcp {
	__u16 sport, dport;
	__u32 seq, ack;
	__u8 offset, flags;
};

struct range {
	__u32 bits;
	struct addr addr;
};

// What there is to know of an address: bits.
enum {
	ASK_SERVICES = 1, // something answers there for a Service, so the rules have to see the first packet of a connection
	TUNNEL = 2,       // the way leads through the tunnel
	SERVICES = 4,     // Services have their virtual addresses there
};

// A way to pods of another node. Without a device there is none. The MTU, in bytes, is of use only through the tunnel, whose device takes any size.
struct way {
	__u32 what, mtu, ifindex, family;
	struct addr hop; // the next hop, in its own family's form
};

// Where pods' addresses come from, and the way there; and where Services' do.
struct {
	uint(type, LPM_TRIE);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 20);
	type_of(key, struct range);
	type_of(value, struct way);
} ranges SEC(".maps");

// For how long conntrack is to keep a connection that is established without a packet of it, in milliseconds.
struct times {
	__u32 idle, unacknowledged; // by whether the last packet was data
};

struct {
	uint(type, ARRAY);
	uint(max_entries, 1);
	type_of(key, __u32);
	type_of(value, struct times);
} established SEC(".maps");

// How many packets went the short way: a packet that is to be segmented is one.
struct {
	uint(type, PERCPU_ARRAY);
	uint(max_entries, 1);
	type_of(key, __u32);
	type_of(value, __u64);
} forwarded SEC(".maps");

// What NAT is to do to a packet: nothing, give it another source or another destination, or something that is left to the long way.
enum nat { NOTHING, SOURCE, DESTINATION, OTHER };

// A packet that may go the short way, if its addresses may.
struct segment {
	struct addr src, dst;
	__u16 sport, dport;
	__u32 ip; // bytes of the IP header
	__u8 is4;
	__u8 flags; // TCP's
	__u8 data;  // has it any?
	enum nat nat;
	struct addr addr; // what it is to have for its source or destination, by nat
	__u16 port;
};

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
	s->src.word[3] = ip->src;
	s->dst.word[3] = ip->dst;
	s->sport = t->sport;
	s->dport = t->dport;
	s->ip = sizeof *ip;
	s->flags = t->flags;
	s->data = htons(ip->len) != sizeof *ip + (t->offset >> 4) * 4;
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
	if (!is_version6(ip) || ip->next != TCP || ip->hops < 2)
		return 0;
	__builtin_memcpy(&s->src, ip->src, sizeof s->src);
	__builtin_memcpy(&s->dst, ip->dst, sizeof s->dst);
	s->sport = t->sport;
	s->dport = t->dport;
	s->ip = sizeof *ip;
	s->flags = t->flags;
	s->data = htons(ip->len) != (t->offset >> 4) * 4;
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

static inline_always int is_services(const struct way *way)
{
	return way && way->what & SERVICES;
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

static inline_always void copy(struct addr *to, const union nf_inet_addr *from, int is4)
{
	if (is4) {
		to->word[2] = htons(0xffff) << 16;
		to->word[3] = from->all[0];
		return;
	}
	for (int i = 0; i < 4; i++)
		to->word[i] = from->all[i];
}

// Looks a connection up in conntrack, by a packet from one end to the other. What is found is to be released.
static inline_always struct nf_conn *find(struct packet *p, struct bpf_ct_opts *o, int is4, const struct addr *src, __u16 sport, const struct addr *dst, __u16 dport)
{
	struct bpf_sock_tuple t = {};
	if (is4) {
		t.ipv4.src = src->word[3];
		t.ipv4.dst = dst->word[3];
		t.ipv4.sport = sport;
		t.ipv4.dport = dport;
	} else {
		__builtin_memcpy(t.ipv6.src, src, sizeof *src);
		__builtin_memcpy(t.ipv6.dst, dst, sizeof *dst);
		t.ipv6.sport = sport;
		t.ipv6.dport = dport;
	}
	o->netns = HERE;
	o->proto = TCP;
	return bpf_skb_ct_lookup(p, &t, is4 ? sizeof t.ipv4 : sizeof t.ipv6, o, sizeof *o);
}

// Is there a connection to a Service that to its endpoint has the ends of the one that this packet opens? The pod may have opened it from the same port. One that is
// over is forgotten, as conntrack does when its port is used anew.
static inline_always int taken(struct packet *p, struct segment *s)
{
	struct bpf_ct_opts o = {};
	struct nf_conn *ct = find(p, &o, s->is4, &s->dst, s->dport, &s->src, s->sport);
	int nat;
	if (!ct)
		return o.error != -ENOENT;
	nat = !!(ct->status & (SRC_NAT | DST_NAT));
	if (nat && (ct->proto.tcp.state == TIME_WAIT || ct->proto.tcp.state == CLOSE)) {
		bpf_ct_change_timeout(ct, 0);
		nat = 0;
	}
	bpf_ct_release(ct);
	return nat;
}

// Asks conntrack what NAT is to do to the packet.
//
// A connection to a Service is conntrack's until it is established, and again from the first FIN: that is when its state changes. In between only its time has to
// be kept, as conntrack would: not as long while there is data that nobody has acknowledged. A reset ends a connection, but conntrack, which has not seen what
// came before, would take it for an attempt. So its time is set here: to a moment, since the port may be used anew, in which a connection that the reset was not
// valid for can show that it is alive. So is that of a connection without NAT of which conntrack has seen the beginning, and will not see the end.
//
// If the first packet of one to a Service is not answered but acknowledged, its endpoint has a connection of the same ends already, which the pod has opened to it
// the short way and conntrack has not seen. Then conntrack is to forget the later one and to see this packet, of the earlier one: when the first packet of the
// later one is sent again, NAT gives it another port.
static never_inline enum nat translation(struct packet *p, struct segment *s)
{
	enum { WANT = DST_NAT | ASSURED, BITS = WANT | SRC_NAT | SEQ_ADJUST | DYING | HELPER | OFFLOAD, END_MS = 1000 };
	struct bpf_ct_opts o = {};
	struct nf_conn *ct = find(p, &o, s->is4, &s->src, s->sport, &s->dst, s->dport);
	enum nat nat = OTHER;
	if (!ct)
		return o.error == -ENOENT ? NOTHING : OTHER;
	if (!(ct->status & (SRC_NAT | DST_NAT))) {
		nat = NOTHING;
		if (s->flags & (FIN | RST))
			bpf_ct_change_timeout(ct, END_MS);
	} else if ((ct->status & BITS) == WANT && ct->proto.tcp.state == ESTABLISHED && !(s->flags & (SYN | FIN))) {
		const __u32 zero = 0;
		const struct times *keep = map_lookup(&established, &zero);
		if (o.dir == ORIGINAL) {
			nat = DESTINATION;
			s->port = ct->tuplehash[REPLY].tuple.src.u.all;
			copy(&s->addr, &ct->tuplehash[REPLY].tuple.src.u3, s->is4);
		} else {
			nat = SOURCE;
			s->port = ct->tuplehash[ORIGINAL].tuple.dst.u.all;
			copy(&s->addr, &ct->tuplehash[ORIGINAL].tuple.dst.u3, s->is4);
		}
		// One direction alone would not do: conntrack would wait for what acknowledges the data that it sees, and keep the entry no longer than that.
		if (nat == SOURCE && !is_services(way_to(&s->addr)))
			nat = OTHER;
		else if (keep)
			bpf_ct_change_timeout(ct, s->flags & RST ? END_MS : s->data ? keep->unacknowledged : keep->idle);
	} else if (ct->proto.tcp.state == SYN_SENT && o.dir == REPLY && (s->flags & (SYN | RST | ACK)) == ACK) {
		bpf_ct_change_timeout(ct, 0);
	}
	bpf_ct_release(ct);
	return nat;
}

// Gives the packet another source or destination; 0: it has not become that, nor is it what it was.
static inline_always int translate(struct packet *p, const struct segment *s)
{
	const __u32 tcp = ETH_HLEN + s->ip, check = tcp + TCP_CHECK, is_dst = s->nat == DESTINATION;
	const struct addr *from = is_dst ? &s->dst : &s->src;
	const __u32 size = s->is4 ? sizeof(__u32) : sizeof(struct addr);
	const __u32 at = ETH_HLEN + s->ip - (is_dst ? 1 : 2) * size; // both headers end with the source and the destination
	const __s32 diff = csum_diff(from, sizeof *from, &s->addr, sizeof s->addr, 0);
	const __u16 port = is_dst ? s->dport : s->sport;
	// As for the hops: what is over the whole of an IPv4 packet does not change, since its header has a checksum.
	if (s->is4 ? store_bytes(p, at, &s->addr.word[3], size, 0) || l3_csum_replace(p, ETH_HLEN + __builtin_offsetof(struct ipv4, check), 0, diff, 0)
		   : store_bytes(p, at, &s->addr, size, RECOMPUTE_CSUM))
		return 0;
	return !l4_csum_replace(p, check, 0, diff, PSEUDO_HDR) && !l4_csum_replace(p, check, port, s->port, sizeof port) &&
	       !store_bytes(p, tcp + is_dst * sizeof port, &s->port, sizeof port, 0);
}

// Counts the packet, translates it if need be, and takes one hop from it; 0: it is not what it was, nor what it is to be.
static inline_always int pass(struct packet *p, const struct segment *s)
{
	__u32 zero = 0;
	__u64 *count = map_lookup(&forwarded, &zero);
	void *data;
	if (count)
		(*count)++;
	if (s->nat != NOTHING && !translate(p, s))
		return 0;
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

// Sends the packet into a pod of this node or, without one, the way to another, if it may go there.
static inline_always int hand_on(struct packet *p, struct segment *s, const struct pod *pod, const struct way *way)
{
	const __u32 ifindex = pod ? pod->ifindex : way->ifindex, what = pod ? pod->what : way->what;
	struct bpf_redir_neigh n = {};
	if (!fits(p, ifindex) || (opens(s) && (what & ASK_SERVICES || taken(p, s))))
		return NEXT;
	if (s->nat != DESTINATION) { // else this is the way to the new one
		s->nat = translation(p, s);
		if (s->nat >= DESTINATION)
			return NEXT;
	}
	if (!pass(p, s))
		return DROP;
	if (pod)
		return redirect_peer(ifindex, 0);
	if (s->flags & SYN && what & TUNNEL)
		fit(p, s, way->mtu);
	n.family = way->family;
	__builtin_memcpy(n.hop, &way->hop, sizeof n.hop);
	return redirect_neigh(ifindex, &n, sizeof n, 0);
}

static inline_always int of_pod(struct packet *p, struct segment *s)
{
	struct pod *pod = map_lookup(&pods, &s->src);
	struct way *way = 0;
	if (!pod || pod->ifindex != p->ifindex)
		return NEXT;
	pod = map_lookup(&pods, &s->dst);
	if (!pod)
		way = way_to(&s->dst);
	if (is_services(way)) {
		if (opens(s))
			return NEXT;
		s->nat = translation(p, s);
		if (s->nat != DESTINATION)
			return NEXT;
		pod = map_lookup(&pods, &s->addr);
		if (!pod)
			way = way_to(&s->addr);
	}
	return pod || (way && way->ifindex) ? hand_on(p, s, pod, way) : NEXT;
}

static inline_always int of_node(struct packet *p, struct segment *s)
{
	struct pod *pod = map_lookup(&pods, &s->dst);
	struct way *back;
	if (!pod)
		return NEXT;
	back = way_to(&s->src);
	return back && back->ifindex ? hand_on(p, s, pod, 0) : NEXT;
}

SEC("tcx/ingress")
int from_pod(struct packet *p)
{
	struct segment s = {};
	return read(p, &s) ? of_pod(p, &s) : answer(p);
}

SEC("tcx/ingress")
int from_node(struct packet *p)
{
	struct segment s = {};
	return read(p, &s) ? of_node(p, &s) : NEXT;
}

// What it calls of connection tracking is for programs under the licence of the kernel, under which this file may be used too.
char _license[] SEC("license") = "GPL v2";
