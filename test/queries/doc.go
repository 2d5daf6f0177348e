// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package queries is the table of DNS questions and answers that every judge of the cluster's DNS has to agree with: the pure
// answerer, the server over the wire, dig, and the resolvers of real pods.
//
// queries.txt holds the rows, in groups that share a world; worlds/NAME.txt holds the worlds, in the form in which
// [model.Snapshot.String] prints them. A row is one line:
//
//	NAME TYPE | RCODE FLAGS | ANSWER ; ANSWER | ADDITIONAL ; ADDITIONAL
//
// RCODE is NODATA for NOERROR without what was asked for. An answer is a type and its data in zone-file form, after an owner if that is not the name asked for. The order of records has no
// meaning. An SOA record comes with NXDOMAIN and NODATA, and only with them. Lines that begin with "=" start a group: the world, then settings. "#" starts a comment that names the section of the specification a group is about.
//
// The invariant is that a row needs nothing but itself and its group: a bug report becomes one line.
package queries
