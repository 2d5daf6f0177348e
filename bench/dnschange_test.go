// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// It is asked again and again, until the answer is right, also behind late and foreign ones.
func TestAskUntilRight(t *testing.T) {
	q := mustQuestion(t, "one.local", typeA, rcodeSuccess, "10.0.0.1")
	none := mustQuestion(t, "one.local", typeA, rcodeNotFound)
	right, wrong := answerTo(t, q, nil), answerTo(t, none, nil)
	var asked atomic.Int64
	to := testServer(t, func(msg []byte) []byte {
		from := right
		switch asked.Add(1) {
		case 1, 2:
			from = wrong
		case 3: // the answer to an earlier question, and no other
			from, msg[1] = wrong, 1
		}
		out := slices.Clone(from)
		copy(out, msg[:2])
		return out
	})
	conn, err := net.Dial("udp4", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	took, n, err := askUntilRight(t.Context(), conn, q, askGrowing)
	if err != nil || n != 4 || took < replyLimit {
		t.Errorf("after %v and %d questions: %v, want the fourth, and the third to have been waited for", took, n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := askUntilRight(ctx, conn, none, askGrowing); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
}

// The goal is against the CoreDNS that does not keep answers, and about a pod that becomes ready.
func TestReportLearned(t *testing.T) {
	s := testSuite()
	round := func(ms float64) learned {
		return learned{took: map[string][]float64{newService: {ms, ms}, newEndpoint: {ms, 2 * ms}, podReady: {ms, 3 * ms}}, atOnce: 0.5}
	}
	own := []learned{round(1), round(2)}
	s.reportLearned(own, coreDNS.name, []learned{round(100), round(200)})
	s.reportLearned(own, coreDNSCached.name, []learned{round(1000), round(2000)})
	goals := 0
	for _, f := range s.figures {
		if f.Goal == "" {
			continue
		}
		if goals++; f.Rival != coreDNS.name || !strings.HasPrefix(f.Figure, podReady) || !strings.HasSuffix(f.Figure, "p99") || !*f.Met || f.Ratio != 100 {
			t.Errorf("%+v", f)
		}
	}
	if goals != 1 || len(s.figures) != 2*(2*len(nameChanges)+1) {
		t.Errorf("%d goals in %d figures", goals, len(s.figures))
	}
}
