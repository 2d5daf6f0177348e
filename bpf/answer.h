//go:build ignore
// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

// Pods' questions to the DNS, answered where they enter the node, with what the DNS has answered before. docs/design/0011-answers-in-the-kernel.md has the reasons.
//
// It takes what is asked over UDP, at port 53, in the plainest way: a query of class IN without flags but RD, AD and CD, with or without EDNS, and that without options. What it
// does not know, or knows only from a state that has changed since, it leaves to the DNS, which then tells it.

#include "packet.h"

enum { DNS_PORT = 53, DNS_HLEN = 12, UDP_HLEN = 8, OPT_LEN = 11, CLASS_IN = 1, TYPE_OPT = 41, HOPS = 64 };
enum { RD = 1, AD = 0x20, CD = 0x10 }; // of two octets
enum { WITH_EDNS = 1, WITH_DO = 2, WITH_CD = 4, WITH_AD = 8 };
enum { NXDOMAIN = 3 };
enum { MAX_NAME = 104, MAX_REST = 280 }; // so that an entry of the map takes 512 bytes, the kernel's own with it

// What was asked, and where.
struct question {
	struct addr at;
	__u16 type;
	__u8 size; // of the name
	__u8 form;
	__u32 like; // whose question it is, as askers tells them apart; 0 for anybody's
	__u64 name[MAX_NAME / 8]; // in wire form and lower case, with zeros behind it
};

// What is behind the question in its answer, and what becomes of the header.
//
// It holds as long as the state that it was made from: while slots[ALL] and its own slot have the numbers that they had then; and until a time of the kernel's clock, if that is
// not 0. A state's number is in it too, if it denies something: at an offset, unless that is 0.
//
// The kernel uses the memory of an entry that was replaced for another one at once, also while a program reads it. So the program reads a copy of its own, and the seal says
// whether that is whole and the question's.
struct answer {
	__u64 seal, until;
	__u32 all, number, slot;
	__u16 kind, size, serial;
	__u16 sum;            // of the rest, as the Internet's checksum has it
	__u8 records, record; // how many of the first may be in any order, and the bytes of each
	__u8 header[8];       // the flags, with neither RD nor CD; and how many records there are of each section, without the question
	__u8 sample;          // if not 0, one in so many is left to the DNS, which counts it for all
	__u8 unused;
	__u8 rest[MAX_REST];
};

struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 15);
	type_of(key, struct question);
	type_of(value, struct answer);
} answers SEC(".maps");

// Numbers that answers depend on. The first are about everything, the number of the state as it is said to clients, and what is about any Service; the others are Services'.
enum { ALL, SERIAL, SLOTS = 1 << 14 };

struct {
	uint(type, ARRAY);
	uint(map_flags, MMAPABLE);
	uint(max_entries, SLOTS);
	type_of(key, __u32);
	type_of(value, __u64);
} slots SEC(".maps");

// Pods that some questions are answered for otherwise than for all, by which of them are answered alike.
struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 16);
	type_of(key, struct addr);
	type_of(value, __u32);
} askers SEC(".maps");

// How many questions were answered, by the kinds that they are told apart by.
struct count {
	__u64 answers, asked, said; // and the bytes of the questions and the answers
};

struct {
	uint(type, PERCPU_ARRAY);
	uint(max_entries, 1024);
	type_of(key, __u32);
	type_of(value, struct count);
} counts SEC(".maps");

// Where a question is read into, and its answer put together.
struct draft {
	struct question question;
	struct answer answer;
	__u8 room[MAX_REST]; // that a part of the rest of whatever length ends in, for the kernel to be sure
};

enum { SEAL_AT = sizeof(struct question) / 8, SEALED = (sizeof(struct question) + sizeof(struct answer)) / 8 };

struct {
	uint(type, PERCPU_ARRAY);
	uint(max_entries, 1);
	type_of(key, __u32);
	type_of(value, struct draft);
} drafts SEC(".maps");

struct udp {
	__u16 sport, dport, len, check;
};

struct header {
	__u16 id;
	__u8 flags[2];
	__u16 questions, answers, authority, additional;
};

// The octets of eight that are upper case letters, in lower case.
static inline_always __u64 lower(__u64 w)
{
	const __u64 each = 0x0101010101010101ULL, low = w & 0x7f * each;
	const __u64 from_a = low + (0x80 - 'A') * each, over_z = low + (0x7f - 'Z') * each;
	return w | (~w & (from_a ^ over_z) & 0x80 * each) >> 2;
}

static inline_always __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// Reads the first three headers: who asks in src, and the question's place; 0: it is none.
static inline_always __u32 read_question(struct packet *p, struct addr *src, struct question *q, __u16 *size)
{
	const int is4 = p->protocol == htons(IPV4);
	const __u32 ip_len = is4 ? sizeof(struct ipv4) : sizeof(struct ipv6), at = ETH_HLEN + ip_len + UDP_HLEN;
	struct udp *u;
	void *data;
	__u16 len;
	if (p->vlan_present || p->pkt_type != PACKET_HOST || p->gso_size)
		return 0;
	if (is4) {
		struct ipv4 *ip;
		data = headers(p, ETH_HLEN + sizeof *ip + sizeof *u);
		if (!data)
			return 0;
		ip = data + ETH_HLEN;
		u = (void *)(ip + 1);
		if (ip->version_ihl != 0x45 || ip->proto != UDP || ip->frag & htons(0x3fff) || u->dport != htons(DNS_PORT))
			return 0;
		len = htons(ip->len) - sizeof *ip;
		__builtin_memset(q, 0, sizeof *q);
		src->word[2] = q->at.word[2] = htons(0xffff) << 16;
		src->word[3] = ip->src;
		q->at.word[3] = ip->dst;
	} else {
		struct ipv6 *ip;
		if (p->protocol != htons(IPV6))
			return 0;
		data = headers(p, ETH_HLEN + sizeof *ip + sizeof *u);
		if (!data)
			return 0;
		ip = data + ETH_HLEN;
		u = (void *)(ip + 1);
		if (!is_version6(ip) || ip->next != UDP || u->dport != htons(DNS_PORT))
			return 0;
		len = htons(ip->len);
		__builtin_memset(q, 0, sizeof *q);
		__builtin_memcpy(src, ip->src, sizeof *src);
		__builtin_memcpy(&q->at, ip->dst, sizeof q->at);
	}
	if (htons(u->len) != len || p->len != at - UDP_HLEN + len)
		return 0;
	*size = len - UDP_HLEN;
	return at;
}

// Writes what follows the question, the first records from any of them on.
static inline_always int write_records(struct packet *p, __u32 at, struct answer *a)
{
	const __u32 total = a->records * a->record;
	__u32 first = a->records ? random() % a->records * a->record : 0, part = total - first;
	if (total) {
		if (first > MAX_REST || part - 1 >= MAX_REST || store_bytes(p, at, a->rest + first, part, 0))
			return 0;
		at += part;
		if (first && store_bytes(p, at, a->rest, first, 0))
			return 0;
		at += first;
	}
	part = a->size - total;
	return !part || (total <= MAX_REST && part - 1 < MAX_REST && !store_bytes(p, at, a->rest + total, part, 0));
}

// Turns the headers around: the packet goes back to where it came from, with so many bytes from the UDP header on, and h.
static inline_always int turn_around(struct packet *p, __u16 len, const struct header *h)
{
	void *data;
	struct udp *u;
	__u8 mac[6];
	__u16 port;
	if (p->protocol == htons(IPV4)) {
		struct ipv4 *ip;
		__u32 src;
		data = headers(p, ETH_HLEN + sizeof *ip + sizeof *u + sizeof *h);
		if (!data)
			return 0;
		ip = data + ETH_HLEN;
		u = (void *)(ip + 1);
		src = ip->src;
		ip->src = ip->dst;
		ip->dst = src;
		ip->len = htons(sizeof *ip + len);
		ip->ttl = HOPS;
		ip->check = 0;
		ip->check = ~fold((__u32)csum_diff(0, 0, ip, sizeof *ip, 0));
	} else {
		struct ipv6 *ip;
		__u32 src[4];
		data = headers(p, ETH_HLEN + sizeof *ip + sizeof *u + sizeof *h);
		if (!data)
			return 0;
		ip = data + ETH_HLEN;
		u = (void *)(ip + 1);
		__builtin_memcpy(src, ip->src, sizeof src);
		__builtin_memcpy(ip->src, ip->dst, sizeof src);
		__builtin_memcpy(ip->dst, src, sizeof src);
		ip->flow = __builtin_bswap32(6 << 28);
		ip->len = htons(len);
		ip->hops = HOPS;
	}
	__builtin_memcpy(mac, data, sizeof mac);
	__builtin_memcpy(data, data + sizeof mac, sizeof mac);
	__builtin_memcpy(data + sizeof mac, mac, sizeof mac);
	port = u->sport;
	u->sport = u->dport;
	u->dport = port;
	u->len = htons(len);
	__builtin_memcpy(u + 1, h, sizeof *h);
	return 1;
}

// Writes the answer over the question, whose UDP payload is at a place, and whose name has so many bytes; 0: it is neither one nor the other. The checksum is told what has
// changed; that ends swap places does not matter to it.
static inline_always int write_answer(struct packet *p, __u32 at, const struct header *h, __u32 name, struct answer *a, const __u8 *opt)
{
	const __u32 udp = at - UDP_HLEN, check = udp + __builtin_offsetof(struct udp, check), rest = at + DNS_HLEN + name + 4, end = rest + a->size;
	const __u16 was = htons(p->len - udp), is = htons(end - udp);
	struct header now = *h;
	__u64 sum = a->sum;
	__u32 diff;

	now.flags[0] = a->header[0] | (h->flags[0] & RD);
	now.flags[1] = a->header[1] | (h->flags[1] & CD);
	__builtin_memcpy(&now.answers, a->header + 2, 6);
	if (a->serial) {
		const __u32 key = SERIAL;
		const __u64 *serial = map_lookup(&slots, &key);
		__u32 number = serial ? __builtin_bswap32(*serial) : 0, serial_at = a->serial;
		if (serial_at > MAX_REST - sizeof number)
			return 0;
		__builtin_memcpy(a->rest + serial_at, &number, sizeof number);
		sum += serial_at & 1 ? htons(fold(number)) : fold(number);
	}
	sum += (__u16)~fold((__u32)csum_diff(0, 0, (void *)opt, OPT_LEN + 1, 0)); // which is gone
	diff = fold(sum);
	if (name & 1) // then what is behind the question begins at an odd octet
		diff = htons(diff);
	diff = csum_diff((void *)h, sizeof *h, &now, sizeof now, diff);

	return !change_tail(p, end, 0) && !l4_csum_replace(p, check, 0, diff, MANGLED_0) && !l4_csum_replace(p, check, was, is, sizeof is | MANGLED_0) &&
	       !l4_csum_replace(p, check, was, is, sizeof is | PSEUDO_HDR | MANGLED_0) && write_records(p, rest, a) && turn_around(p, end - udp, &now);
}

// Reads what is asked into the draft, and says how long the name is; 0: it is nothing to be answered here.
static inline_always __u32 read_message(struct packet *p, __u32 at, __u16 size, struct draft *d, struct header *h, __u8 *opt)
{
	struct question *q = &d->question;
	__u16 kind[2];
	__u32 name = size - DNS_HLEN - sizeof kind;
	if (load_bytes(p, at, h, sizeof *h) || h->flags[0] & ~RD || h->flags[1] & ~(AD | CD))
		return 0;
	if (h->questions != htons(1) || h->answers || h->authority || h->additional & ~htons(1))
		return 0;
	if (h->additional)
		name -= OPT_LEN;
	// The compiler is not to use what it knows of this number, or the kernel will not know it.
	asm volatile("" : "+r"(name));
	if (name < 1 || name > MAX_NAME)
		return 0;
	if (load_bytes(p, at + DNS_HLEN, q->name, name) || load_bytes(p, at + DNS_HLEN + name, kind, sizeof kind) || kind[1] != htons(CLASS_IN))
		return 0;
	q->type = kind[0];
	q->size = name;
	q->form = (h->flags[1] & CD ? WITH_CD : 0) | (h->flags[1] & AD ? WITH_AD : 0);
	if (h->additional) {
		// A record of the root, of version 0 and without options.
		if (load_bytes(p, at + DNS_HLEN + name + sizeof kind, opt, OPT_LEN) || opt[0] || opt[1] || opt[2] != TYPE_OPT || opt[5] || opt[6] || opt[7] & 0x7f ||
		    opt[8] || opt[9] || opt[10])
			return 0;
		q->form |= WITH_EDNS | (opt[7] ? WITH_DO : 0);
	}
	for (int i = 0; i < MAX_NAME / 8; i++)
		q->name[i] = lower(q->name[i]);
	return name;
}

// What makes an answer the one to a question: of all octets of both, but for the seal itself.
static inline_always __u64 seal_of(const struct draft *d)
{
	const __u64 odd = 0x9e3779b97f4a7c15ULL;
	const __u64 *w = (void *)d;
	__u64 h[4] = {1, 2, 3, 4}; // four at a time, as none waits for the other
#pragma unroll
	for (int i = 0; i < SEALED; i++)
		if (i != SEAL_AT)
			h[i & 3] = (h[i & 3] ^ w[i]) * odd;
	return ((((h[0] * odd) ^ h[1]) * odd ^ h[2]) * odd) ^ h[3];
}

// Takes the answer of the question in the draft, if there is one that holds.
static never_inline int take_answer(struct draft *d)
{
	const struct answer *found = map_lookup(&answers, &d->question);
	const __u32 all = ALL;
	const __u64 *now;
	__u32 slot;
	if (!found)
		return 0;
	__builtin_memcpy(&d->answer, found, sizeof *found);
	asm volatile("" ::: "memory");
	if (d->answer.seal != seal_of(d))
		return 0;
	now = map_lookup(&slots, &all);
	if (!now || (__u32)*now != d->answer.all)
		return 0;
	slot = d->answer.slot;
	now = map_lookup(&slots, &slot);
	if (!now || (__u32)*now != d->answer.number)
		return 0;
	return !d->answer.until || monotonic() < d->answer.until;
}

// Takes the answer that anybody is given, or that pods like the one that asks are.
static inline_always int find_answer(struct draft *d, const struct addr *src)
{
	const __u32 *like;
	if (take_answer(d))
		return !d->answer.sample || random() % d->answer.sample;
	like = map_lookup(&askers, src);
	if (!like)
		return 0;
	d->question.like = *like;
	return take_answer(d);
}

// Answers a question of a pod, if it is one that has been answered before and the answer still holds.
static never_inline int answer(struct packet *p)
{
	const __u32 zero = 0;
	struct draft *d = map_lookup(&drafts, &zero);
	struct addr src = {};
	struct header h;
	__u8 opt[12] = {};
	__u16 size = 0;
	struct pod *pod;
	struct count *c;
	__u32 at, name, key;
	if (!d)
		return NEXT;
	at = read_question(p, &src, &d->question, &size);
	if (!at)
		return NEXT;
	name = read_message(p, at, size, d, &h, opt);
	if (!name)
		return NEXT;
	pod = map_lookup(&pods, &src);
	if (!pod || pod->ifindex != p->ifindex || !find_answer(d, &src) || d->answer.size > MAX_REST)
		return NEXT;
	key = d->answer.kind;
	c = map_lookup(&counts, &key);
	if (!c)
		return NEXT;
	if (!write_answer(p, at, &h, name, &d->answer, opt))
		return DROP;
	c->answers++;
	c->asked += size;
	c->said += DNS_HLEN + name + 4 + d->answer.size;
	__sync_fetch_and_add(&pod->asked, 1);
	if ((d->answer.header[1] & 15) == NXDOMAIN)
		__sync_fetch_and_add(&pod->denied, 1);
	return redirect_peer(p->ifindex, 0);
}
