// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Asks Node's resolvers: lookup is the C library's, the others are c-ares. Lines come and go as for resolve.c.
import { promises as dns } from 'node:dns';
import { createInterface } from 'node:readline';

const kinds = {
	host: async (name) => (await dns.lookup(name, { all: true })).map((a) => a.address),
	a: (name) => dns.resolve4(name),
	aaaa: (name) => dns.resolve6(name),
	srv: async (name) => (await dns.resolveSrv(name)).map((s) => `${s.priority},${s.weight},${s.port},${s.name}`),
	ptr: (name) => dns.reverse(name),
	txt: async (name) => (await dns.resolveTxt(name)).map((t) => t.join('')),
	cname: (name) => dns.resolveCname(name),
};

for await (const line of createInterface({ input: process.stdin })) {
	const [kind, name] = line.split(' ');
	try {
		const found = (await kinds[kind](name)).map((f) => f.replace(/\.$/, '')).sort();
		console.log([...new Set(found)].join(' ') || 'none');
	} catch (err) {
		const none = err.code === 'ENOTFOUND' || err.code === 'ENODATA';
		console.log(none ? 'none' : 'failed');
		if (!none) console.error(`${line}: ${err.code}`);
	}
}
