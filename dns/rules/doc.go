// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package rules is what a server does with questions beside its zones and its forwarding: it rewrites them, and it answers some from
// templates and from lists of hosts.
//
// The rules are CoreDNS's plugins rewrite, template and hosts, to the letter where their answers can be told apart by a client, and in
// their order: a question is rewritten first, and what has become of it is offered to the templates, then to the hosts, then to the
// zones. [Rules] are values, written down by whoever reads a configuration; [New] makes a [Set] of them, which never changes and may be
// used by any number of goroutines.
//
// The invariant is that [Set.Concerns] is exact and free: where it says no, neither [Set.Rewrite] nor [Set.Answer] would do a thing, and it
// says so without allocating, so that a server asks it of every question and calls the others for the few that are concerned.
package rules
