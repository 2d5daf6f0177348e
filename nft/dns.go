// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/model"
)

// DNSTables is how the names of the tables of [Target.AnswerDNS] begin. Each belongs to an agent's connection, whose number follows.
const DNSTables = Table + "-dns-"

// TableOwner is NFT_TABLE_F_OWNER (Linux 5.12): the table ends with the socket that made it, and nobody else can change it.
const TableOwner = 2

// AnswerDNS says that this process has its sockets open at the cluster DNS's virtual addresses, or that it is about to close them.
//
// For pods' questions the rules see for themselves whether there is a socket. For questions of the node's own processes
// they cannot: where such a packet is rewritten, the kernel knows the sender's socket and not the receiver's. What it does know is
// whether this process lives. So while it answers, a second, tiny table keeps those packets from being tracked and rewritten;
// it belongs to the Target's connection to the kernel and vanishes with it, however the process ends. From then on the questions
// go to other nodes.
func (t *Target) AnswerDNS(on bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.answering = on
	if t.last == nil {
		return nil
	}
	if err := t.connect(); err != nil {
		return err
	}
	return t.answerHere(t.last)
}

// answerHere makes the owned table agree with the snapshot.
func (t *Target) answerHere(snap *model.Snapshot) error {
	var want []frontend
	for _, a := range snap.DNS {
		for _, p := range []model.Protocol{model.UDP, model.TCP} {
			if t.answering && answersDNS(snap, a, p) {
				want = append(want, frontend{Addr: a, Protocol: p, Port: model.DNSPort})
			}
		}
	}
	if slices.Equal(want, t.answered) {
		return nil
	}
	// Others' tables of this kind may be there: an agent that is being replaced has one until it ends.
	name := fmt.Sprint(DNSTables, t.conn.port)
	b := newBatch()
	if len(t.answered) > 0 {
		deleteTable(b, name)
	}
	if len(want) > 0 {
		addTable(b, name, TableOwner, "")
		const output = "output"
		declareChain(b, name, chain{name: output, base: &base{"filter", unix.NF_INET_LOCAL_OUT, -300}})
		// It sees every packet that the node itself sends, so it looks at one port and no more.
		addRule(b, name, output, rule{"no question", join(loadPort(reg0, destPort), notEqual(reg0, 0, model.DNSPort), &expr.Verdict{Kind: expr.VerdictAccept})})
		for _, k := range want {
			addRule(b, name, output, rule{"this node answers", notrackTo(k)})
		}
	}
	if err := t.commit(b, 0); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // too old a kernel: the node's own processes ask other nodes
		}
		return fmt.Errorf("keep this node's questions here: %w", err)
	}
	t.answered = want
	return nil
}

func notrackTo(k frontend) []any {
	f := familyOf(k.Addr)
	return join(f.only(), proto(k.Protocol), f.load(reg0, f.daddr), equal(reg0, k.Addr.AsSlice()...), &expr.Notrack{})
}
