// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package checkpoint keeps what a node knows of its cluster in a file, so that an agent which starts without an API server
// works from what was known last.
//
// The invariant: a file is whole or it is not used. It is written beside the one that is there, synced, and renamed over it; its
// checksum is compared before the first object is taken out of it. What is read is equal, field by field, to what was written, so that the lists of
// the API server, when they come, show exactly what has changed since. Objects are streamed both ways: neither writing nor reading holds a second copy
// of the state in memory.
//
// What a reboot ends is not taken out of a file of before it, see [Read].
//
// The ways in are [Write] and [Read]. docs/design/0009-the-state-on-disk.md has the format and the reasons.
package checkpoint
