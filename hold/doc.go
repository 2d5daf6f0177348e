// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package hold keeps a program's sockets open beyond the life of the process that answers them.
//
// A small parent, the holder, has a copy of every descriptor that its child, the agent, has told it to keep. A socket lives until the last
// copy is closed; so when the agent ends, in whatever way, what is sent to its sockets waits in the kernel, and the holder starts the next agent with
// the same sockets. To replace an agent, the next one is started beside it, gets ready while the old one answers, and takes over.
//
// The invariants: of several agents only one may write to the kernel ([Held.Write]) and only one may answer ([Held.Answer]) at a time; a newer one
// is preferred once it asks. Sockets are held for at most [Patience] while nobody answers, so that where the kernel asks whether somebody has a
// socket open (docs/design/0002-dns-by-the-socket.md) it is not told a lie for longer. The agent does not outlive its holder: the kernel kills it.
//
// The holder decides nothing about failing: when nobody has answered for [Patience] and the agent has ended, or when nothing is held, it ends with the
// agent's exit code, and whoever started it sees what it would have seen without a holder.
//
// The ways in are importing the package, for the holder: its init recognises the command line `agent` and never returns. It runs that early, and has few
// imports, because a program's packages are initialised one after another and a holder should not pay for what it never uses, see package pause of lab.
// [Inherited] is for the agent.
//
// # Signals
//
// A holder passes SIGTERM and SIGINT on, having said that no other agent follows ([Held.Last]), and ends when its agent has. SIGHUP replaces the
// agent by the program that is now at the same path, and when the new agent answers and the program is another one, the holder replaces itself too, in
// the same process.
//
// # The conversation
//
// Holder and agent talk over a sequenced-packet socket, a word a message, see the constants in link.go. A second holder's agent that wants to take over
// (a new container beside the old one) talks to the first holder in the same words, over a socket in the file system that the first agent had it keep under the
// name [Door].
package hold
