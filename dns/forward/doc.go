// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package forward asks upstream resolvers for the names that are not the cluster's, and remembers what they say.
//
// The invariant: what comes out belongs to the question. From an upstream's message only the chain of aliases from the name that was asked, the
// records at its end, and what proves or denies them are kept; where a chain leads into names that another pool is for, that pool is asked for
// the rest; and an answer is remembered under its own question only.
//
// The way in is [New], then [Forwarder.Append], which answers from the cache without allocation, and [Forwarder.Ask] for what that has not. At
// a reload a new Forwarder takes over with [Forwarder.Adopt], and the old one ends with [Forwarder.Close].
//
// # Forged answers (RFC 5452)
//
// A forger has to guess the port, the id and the case of the name (0x20). Questions over UDP are spread at random over eight sockets per upstream,
// each connected to it, so that the kernel keeps out whatever comes from elsewhere and a port that is open does not show to those who look for it. A
// socket is replaced, port and all, after 256 questions or two seconds: a connect costs as much as the exchange itself, and that way
// many share it. Ids and cases come from the kernel's random numbers. Messages that fit no question are passed over and counted; a question
// that sees eight of them is asked over TCP.
//
// An answer in another case than the question's is not believed: the question goes over TCP, where nobody from outside can answer. If the case is
// changed there too, it is the upstream that does it. It is told once in the log, and asked in lower case from then on; the same
// happens after three such answers over UDP if TCP cannot decide.
//
// # Failures
//
// An upstream that owes two answers in a row is asked after all others, and probed until it answers; there is a line in the log once a probe failed. When
// all are down they are asked anyhow. A question that nobody could answer is remembered as that (RFC 9520) for a second and, with each failure in a
// row, for twice as long; but it ends, after that second, when an upstream recovers. With serve-stale, an answer past its time is better than
// none (RFC 8767).
//
// An upstream that sends questions back here would have them go round and round. One that is known for this server's own address is refused by New;
// the others are asked once, at their first question and whenever they recover, for a name made up for the purpose. If that question comes in, the
// upstream is left out, the log and [Forwarder.Status] say what to do, and it is tried again every half minute.
package forward
