// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/model"
)

// Fate is what may become of the first packet of a connection whose client has not been here before.
type Fate struct {
	// Ways are all the things that may happen, sorted, each once: an endpoint "10.244.1.5:8080", or one of the words below.
	Ways []string
	// Affinity is how long the client keeps its endpoint; zero: no longer than the connection.
	Affinity time.Duration
}

// The ways that are no endpoint.
const (
	refused   = "refused"
	noAnswer  = "no answer"
	untouched = "untouched"
)

// String lists the ways.
func (f Fate) String() string {
	const most = 6
	s := strings.Join(f.Ways, ", ")
	if n := len(f.Ways); n > most {
		s = fmt.Sprintf("%s, … %d in all", strings.Join(f.Ways[:most], ", "), n)
	}
	if f.Affinity > 0 {
		s += fmt.Sprintf(" with affinity for %s", f.Affinity)
	}
	return s
}

func (f Fate) equal(o Fate) bool { return slices.Equal(f.Ways, o.Ways) && f.Affinity == o.Affinity }

// meant is the fate that the specification gives a packet.
func meant(v model.Verdict) Fate {
	switch v.Action {
	case model.Forward:
		f := Fate{Affinity: v.Affinity}
		for _, b := range v.Candidates {
			f.Ways = append(f.Ways, b.AddrPort().String())
		}
		slices.Sort(f.Ways)
		f.Ways = slices.Compact(f.Ways)
		return f
	case model.Reject:
		return Fate{Ways: []string{refused}}
	case model.Drop:
		return Fate{Ways: []string{noAnswer}}
	}
	return Fate{Ways: []string{untouched}}
}

// trip is a packet on its way through somebody's rules.
type trip struct {
	model.Packet
	// to is where it goes by now, and translated whether that was changed.
	to         netip.AddrPort
	translated bool
	mark       uint32
	affinity   time.Duration
	// choose draws a number under n.
	choose func(n int) int
}

// end is how a trip ends, if the rules decide it.
type end string

// mostRuns bounds how often a packet is taken through rules. A Service has fewer endpoints.
const mostRuns = 100_000

// follow takes a packet through rules as often as it takes to see everything that they may draw, and says what may become of it.
func follow(p model.Packet, through func(*trip) (end, error)) (Fate, error) {
	var f Fate
	seen := make(map[string]struct{})
	var drawn, of []int
	for runs := 0; ; runs++ {
		if runs == mostRuns {
			return f, fmt.Errorf("the rules draw among more than %d ways", mostRuns)
		}
		next := 0
		t := &trip{Packet: p, to: p.Dst, choose: func(n int) int {
			if next == len(drawn) {
				drawn, of = append(drawn, 0), append(of, n)
			}
			next++
			return drawn[next-1]
		}}
		e, err := through(t)
		if err != nil {
			return f, err
		}
		way := string(e)
		switch {
		case way != "":
		case t.translated:
			way = t.to.String()
		default:
			way = untouched
		}
		seen[way] = struct{}{}
		if t.translated {
			f.Affinity = max(f.Affinity, t.affinity)
		}
		// The next draw: the last number that can still grow does.
		i := len(drawn) - 1
		for ; i >= 0 && drawn[i]+1 == of[i]; i-- {
		}
		if i < 0 {
			break
		}
		drawn[i]++
		drawn, of = drawn[:i+1], of[:i+1]
	}
	for way := range seen {
		f.Ways = append(f.Ways, way)
	}
	slices.Sort(f.Ways)
	return f, nil
}
