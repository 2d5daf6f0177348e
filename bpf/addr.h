//go:build ignore
// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

// What all programs say addresses and ports with.

#include "kernel.h"

#define htons(x) __builtin_bswap16(x)

enum { TCP = 6, UDP = 17 };

// An address of either family: an IPv4 one as ::ffff:a.b.c.d.
struct addr {
	__u32 word[4];
};
