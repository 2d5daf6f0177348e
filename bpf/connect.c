//go:build ignore
// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

// Where pods' connections to Services lead, decided when they are made: a connect() of TCP to a Service's address and port becomes one to an endpoint's. What
// leaves the pod is then for the endpoint from the first packet on, and there is nothing left to translate. docs/design/0012-services-at-the-socket.md has the reasons.
//
// The programs are asked by every process of the machine. They know the pods of this node by their network namespaces, and leave everybody else alone; and whatever
// is not in the maps is left to the rules, which know everything.

#include "addr.h"

// An address and a port, as clients give them.
struct place {
	struct addr addr;
	__u16 port, zero;
};

// A set of endpoints. Its number is never used again.
struct group {
	__u32 number, count;
};

struct seat {
	__u32 group, index; // below the group's count
};

// An endpoint that has a seat. The kernel uses the memory of an entry that is gone for another one at once, also while a program reads it: the seal says whether what
// was read is whole, and of the Service that was asked for.
struct endpoint {
	__u64 seal;
	struct place place;
	__u32 unused;
};

// What a seal is of.
struct choice {
	struct place service;
	struct seat seat;
	struct place endpoint;
} __attribute__((aligned(8)));

// What a connection was made to, and where it leads.
struct translation {
	struct place service, endpoint;
};

// The network namespaces of this node's pods, by what SO_NETNS_COOKIE says.
struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 16);
	type_of(key, __u64);
	type_of(value, __u32);
} namespaces SEC(".maps");

struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 16);
	type_of(key, struct place);
	type_of(value, struct group);
} services SEC(".maps");

struct {
	uint(type, HASH);
	uint(map_flags, NO_PREALLOC);
	uint(max_entries, 1 << 18);
	type_of(key, struct seat);
	type_of(value, struct endpoint);
} endpoints SEC(".maps");

// By socket, so that an entry ends with its connection.
struct {
	uint(type, SK_STORAGE);
	uint(map_flags, NO_PREALLOC);
	type_of(key, __s32);
	type_of(value, struct translation);
} translations SEC(".maps");

// How many connections were translated.
struct {
	uint(type, PERCPU_ARRAY);
	uint(max_entries, 1);
	type_of(key, __u32);
	type_of(value, __u64);
} translated SEC(".maps");

enum { ALLOW = 1 };

static inline_always int same(const struct place *a, const struct place *b)
{
	return a->addr.word[0] == b->addr.word[0] && a->addr.word[1] == b->addr.word[1] && a->addr.word[2] == b->addr.word[2] &&
	       a->addr.word[3] == b->addr.word[3] && a->port == b->port;
}

static inline_always __u64 seal_of(const struct choice *c)
{
	const __u64 *w = (const void *)c;
	__u64 h = 1;
#pragma unroll
	for (unsigned int i = 0; i < sizeof *c / sizeof *w; i++) {
		h = (h ^ w[i]) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 32;
	}
	return h;
}

// Chooses an endpoint of the Service that has a place, which then is the endpoint's; 0: there is none.
static inline_always int choose(struct place *at)
{
	struct choice c = {.service = *at};
	const struct group *g = map_lookup(&services, at);
	const struct endpoint *e;
	__u64 seal;
	if (!g)
		return 0;
	c.seat.group = g->number;
	c.seat.index = (__u64)random() * g->count >> 32;
	e = map_lookup(&endpoints, &c.seat);
	if (!e)
		return 0; // it has just gone
	c.endpoint = e->place;
	seal = e->seal;
	asm volatile("" ::: "memory");
	if (seal != seal_of(&c))
		return 0;
	*at = c.endpoint;
	return 1;
}

// Whether a connection is to lead elsewhere than to a place, which then is where.
static inline_always int lead(struct sock_addr *c, struct place *to)
{
	const __u32 first = 0;
	const __u64 cookie = netns_cookie(c);
	void *sk = (void *)c->sk;
	struct translation *t;
	struct place service = *to;
	__u64 *n;
	if (c->protocol != TCP || !map_lookup(&namespaces, &cookie))
		return 0;
	sk_storage_delete(&translations, sk); // a socket may be connected again, when it did not work
	if (!choose(to))
		return 0;
	t = sk_storage_get(&translations, sk, 0, CREATE);
	if (!t)
		return 0;
	t->service = service;
	t->endpoint = *to;
	n = map_lookup(&translated, &first);
	if (n)
		++*n;
	return 1;
}

// Whether a connection that leads to a place was made to another one, which then is it.
static inline_always int recall(struct sock_addr *c, struct place *peer)
{
	struct translation *t = sk_storage_get(&translations, (void *)c->sk, 0, 0);
	if (!t || !same(&t->endpoint, peer))
		return 0;
	*peer = t->service;
	return 1;
}

static inline_always struct place read4(struct sock_addr *c)
{
	return (struct place){.addr = {{0, 0, htons(0xffff) << 16, c->user_ip4}}, .port = c->user_port};
}

static inline_always void write4(struct sock_addr *c, const struct place *p)
{
	c->user_ip4 = p->addr.word[3];
	c->user_port = p->port;
}

// Of a socket of IPv6 that leads to an IPv4 address, that has the same form here as in the maps.
static inline_always struct place read6(struct sock_addr *c)
{
	return (struct place){.addr = {{c->user_ip6[0], c->user_ip6[1], c->user_ip6[2], c->user_ip6[3]}}, .port = c->user_port};
}

static inline_always void write6(struct sock_addr *c, const struct place *p)
{
	c->user_ip6[0] = p->addr.word[0];
	c->user_ip6[1] = p->addr.word[1];
	c->user_ip6[2] = p->addr.word[2];
	c->user_ip6[3] = p->addr.word[3];
	c->user_port = p->port;
}

SEC("cgroup/connect4")
int connect4(struct sock_addr *c)
{
	struct place to = read4(c);
	if (lead(c, &to))
		write4(c, &to);
	return ALLOW;
}

SEC("cgroup/connect6")
int connect6(struct sock_addr *c)
{
	struct place to = read6(c);
	if (lead(c, &to))
		write6(c, &to);
	return ALLOW;
}

SEC("cgroup/getpeername4")
int getpeername4(struct sock_addr *c)
{
	struct place peer = read4(c);
	if (recall(c, &peer))
		write4(c, &peer);
	return ALLOW;
}

SEC("cgroup/getpeername6")
int getpeername6(struct sock_addr *c)
{
	struct place peer = read6(c);
	if (recall(c, &peer))
		write6(c, &peer);
	return ALLOW;
}

char _license[] SEC("license") = "GPL v2"; // as forward.c's
