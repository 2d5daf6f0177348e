// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package adopt compares what would be done here with what kube-proxy and CoreDNS do, and says how to take over from them.
//
// Its invariant: nothing is written, neither to the kernel nor to the API server, and no packet of anybody is touched. kube-proxy is judged by
// what it has programmed in this network namespace: its rules are read ([ReadKubeProxy]) and followed for packets of every kind of client, as the kernel would,
// and [model.Snapshot.Lookup] says of the same packets what they have to come to. CoreDNS is judged by what it answers, and [dns.View] says what
// would be answered instead.
//
// What differs is a [Difference]. One that docs/services.md or docs/dns.md has is meant; any other is worth a look before something is switched over.
// States change while they are compared, so a difference counts when it lasts.
//
// The way in is [CheckProxy], [CheckDNS] and [MakePlan].
package adopt
