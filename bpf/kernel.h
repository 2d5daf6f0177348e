//go:build ignore
// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

// What the programs use of the kernel's interface to them (include/uapi/linux/bpf.h), so that they compile the same on every machine, whatever headers it has.
// None of it ever changes: it is the kernel's ABI; but for the functions of connection tracking, which the loader looks up in the kernel's own types, and compares.

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define inline_always inline __attribute__((always_inline))
#define never_inline __attribute__((noinline))

// A map's definition is in the types of its members, which the loader reads (BTF).
#define uint(name, value) int(*name)[value]
#define type_of(name, type) type *name

enum { HASH = 1, ARRAY = 2, PERCPU_ARRAY = 6, LPM_TRIE = 11, SK_STORAGE = 24 };
enum { NO_PREALLOC = 1, MMAPABLE = 1 << 10 };

// struct __sk_buff, as far as it is used.
struct packet {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority, ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid,
		data, data_end, napi_id, family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
	__u64 flow_keys, tstamp;
	__u32 wire_len, gso_segs;
	__u64 sk;
	__u32 gso_size;
};

// struct bpf_sock_addr: an address that a process gives to the kernel for a socket, or is given.
struct sock_addr {
	__u32 user_family, user_ip4, user_ip6[4], user_port, family, type, protocol, msg_src_ip4, msg_src_ip6[4];
	__u64 sk;
};

struct bpf_redir_neigh {
	__u32 family, hop[4];
};

struct bpf_sock_tuple {
	union {
		struct {
			__u32 src, dst;
			__u16 sport, dport;
		} ipv4;
		struct {
			__u32 src[4], dst[4];
			__u16 sport, dport;
		} ipv6;
	};
};

struct bpf_ct_opts {
	__s32 netns, error;
	__u8 proto, dir, reserved[2];
};

// The kernel's own, of which only this is looked at; where it is, the loader finds out.
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

union nf_inet_addr {
	__u32 all[4]; // an IPv4 one in the first, and nothing in the others
};

union nf_conntrack_man_proto {
	__u16 all;
};

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
};

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			__u16 all;
		} u;
	} dst;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct ip_ct_tcp {
	__u8 state;
};

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
};

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	union nf_conntrack_proto proto;
};

#pragma clang attribute pop

enum { HERE = -1 }; // netns: that of the packet's device
enum { ORIGINAL, REPLY };
enum { SYN_SENT = 1, ESTABLISHED = 3, TIME_WAIT = 7, CLOSE = 8 }; // TCP_CONNTRACK_*
enum { ENOENT = 2 };

// Bits of status, IPS_*.
enum { ASSURED = 1 << 2, SRC_NAT = 1 << 4, DST_NAT = 1 << 5, SEQ_ADJUST = 1 << 6, DYING = 1 << 9, HELPER = 1 << 13, OFFLOAD = 1 << 14 };

struct nf_conn *bpf_skb_ct_lookup(struct packet *, struct bpf_sock_tuple *, __u32 size, struct bpf_ct_opts *, __u32 opts_size) SEC(".ksyms");
int bpf_ct_change_timeout(struct nf_conn *, __u32 ms) SEC(".ksyms");
void bpf_ct_release(struct nf_conn *) SEC(".ksyms");

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const store_bytes)(struct packet *, __u32 at, const void *from, __u32 len, __u64 flags) = (void *)9;
static long (*const l3_csum_replace)(struct packet *, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)10;
static long (*const l4_csum_replace)(struct packet *, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)11;
static __u64 (*const monotonic)(void) = (void *)5; // CLOCK_MONOTONIC, in nanoseconds
static __u32 (*const random)(void) = (void *)7;
static long (*const load_bytes)(const struct packet *, __u32 at, void *to, __u32 len) = (void *)26;
static __s32 (*const csum_diff)(const void *from, __u32 from_len, const void *to, __u32 to_len, __u32 seed) = (void *)28;
static long (*const change_tail)(struct packet *, __u32 len, __u64 flags) = (void *)38;
static long (*const pull_data)(struct packet *, __u32 len) = (void *)39;
static void *(*const sk_storage_get)(void *map, void *sk, const void *initial, __u64 flags) = (void *)107;
static long (*const sk_storage_delete)(void *map, void *sk) = (void *)108;
static __u64 (*const netns_cookie)(void *) = (void *)122;
static long (*const redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *, __s32 size, __u64 flags) = (void *)152;
static long (*const redirect_peer)(__u32 ifindex, __u64 flags) = (void *)155;
static long (*const check_mtu)(struct packet *, __u32 ifindex, __u32 *mtu, __s32 more, __u64 flags) = (void *)163;

enum { CREATE = 1 };           // sk_storage_get
enum { RECOMPUTE_CSUM = 1 };   // store_bytes
enum { PSEUDO_HDR = 1 << 4 };  // l4_csum_replace: of what the checksum is over, but the segment does not have
enum { MANGLED_0 = 1 << 5 };   // l4_csum_replace: 0 says that there is no checksum (UDP)
enum { CHECK_SEGMENTS = 1 };   // check_mtu: of a packet that is to be segmented, the segments
enum { NEXT = -1, DROP = 2 };  // TCX_NEXT: what is to happen without this program; TCX_DROP
