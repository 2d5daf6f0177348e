// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package corefile reads the configuration of a CoreDNS that Fairlead takes the place of.
//
// A Corefile is read as CoreDNS 1.14 reads it and becomes one [dns.Block] for each server block and port. Each of its directives and options
// has a [Fate]: it is honoured, honoured in another way, without effect here, or refused; docs/corefile.md lists them. The invariant is
// that nothing is passed over in silence: each line of the file has a [Note], and what would make an answer wrong is refused, with file and
// line, all at once, and with what to do instead. A configuration with one refusal is not used at all.
//
// The ways in are [Parse] for a text, [Load] for a file or a mounted ConfigMap, and [Watch], which goes on reading when a file changes. The world
// enters by [Env] alone.
package corefile
