// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package shortcut keeps answers of the DNS in the kernel, where a program answers this node's pods as soon as their questions enter the node
// (bpf/answer.h), past the node's stack and the agent.
//
// Only what the DNS has answered is there, and of that only what everybody would be answered, or pods that are answered alike ([Answers.SetAlike]), for as long as nothing
// changes that it was made from, and until a time. The invariant: an answer that is in the kernel holds, or its [Basis] or its time is over, and then the program leaves the question
// to the DNS.
//
// So what changes an answer says so by [Answers.Changed] once questions are answered by the new state; whoever adds one gets its basis by [Answers.Basis] first, and looks
// afterwards whether the state is still the one that it answered from. Then the basis was of that state, or is gone.
//
// The way in is [New], then [Answers.Load] by whoever loads the program. All may be called concurrently.
package shortcut
