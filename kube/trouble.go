// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"slices"
	"time"
)

// trouble is what keeps something from being heard of, and since when.
type trouble struct {
	text  string
	since time.Time
}

// The subjects of troubles beside the resources that are watched.
const (
	theServer = "API server"
	theClock  = "clock"
)

// trouble takes in what is wrong with a subject, or that nothing is. The first sentence about it is logged, and that it is over; what it is at
// the moment, Troubles says.
func (s *Source) trouble(subject, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, troubled := s.troubles[subject]
	switch {
	case text == "" && troubled:
		delete(s.troubles, subject)
		s.log.Info("this is over", "about", subject, "was", was.text, "after", time.Since(was.since).Round(time.Millisecond))
	case text == "" || was.text == text:
	case troubled:
		s.troubles[subject] = trouble{text, was.since}
	default:
		s.troubles[subject] = trouble{text, time.Now()}
		s.log.Warn("hears nothing new; what is known goes on", "about", subject, "why", text)
	}
}

// connection takes in how the API servers can be reached.
func (s *Source) connection() {
	away, skew := s.client.servers.problems()
	if away != "" {
		away = "no API server can be reached: " + away
	}
	s.trouble(theServer, away)
	s.trouble(theClock, skew)
}

// Troubles says what keeps the node from hearing what is new, a sentence each, in order.
func (s *Source) Troubles() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := make([]string, 0, len(s.troubles))
	for _, t := range s.troubles {
		lines = append(lines, fmt.Sprintf("%s (since %s)", t.text, t.since.UTC().Format(time.RFC3339)))
	}
	slices.Sort(lines)
	return lines
}
