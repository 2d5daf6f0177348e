// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"

	mdns "github.com/miekg/dns"
)

// Mode is whether something that spares queries is done.
type Mode uint8

// The modes.
const (
	// CountOnly does it not, but counts what it would spare. The default: whoever looks at the count knows what to gain.
	CountOnly Mode = iota
	// Off does nothing.
	Off
	// On does it.
	On
)

// String is the mode as in a flag.
func (m Mode) String() string { return [...]string{"count", "off", "on"}[m] }

// ParseMode reads "off", "count" or "on".
func ParseMode(s string) (Mode, error) {
	for m := CountOnly; m <= On; m++ {
		if s == m.String() {
			return m, nil
		}
	}
	return 0, fmt.Errorf("%q is neither off, count nor on", s)
}

// Settings are what is done about clients. The zero Settings count what completion and suppression would spare, limit no pod and log nothing.
type Settings struct {
	// Completion is whether [Complete] is used, AAAA whether [Clients.Suppress] suppresses.
	Completion, AAAA Mode
	// Rate is how many queries a pod may send. There is no limit by default: one that nobody chose would break an honest pod one day, and
	// [Clients.Top] names the others.
	Rate Rate
	Log  LogSettings
	// Logger gets the log of queries; nil: nobody.
	Logger *slog.Logger
}

// Clients is what is kept about clients from one query to the next.
type Clients struct {
	settings Settings
	limiter  limiter
	talkers  talkers
	log      queryLog

	suppressed, completed, failed, kept, saved atomic.Uint64
}

// New starts with nobody known.
func New(s Settings) *Clients {
	c := &Clients{settings: s}
	c.limiter.pods = newPace(s.Rate)
	c.log.init(s.Log, s.Logger)
	return c
}

// Admit decides whether a query is answered. now is in nanoseconds of a clock that never goes back; milliseconds late is fine.
func (c *Clients) Admit(cl Client, a netip.Addr, now int64) Verdict {
	return c.limiter.admit(cl, a, now)
}

// Limits reports whether there is a limit of what pods may ask.
func (c *Clients) Limits() bool { return c.limiter.pods.each > 0 }

// Suppress reports whether a question is to be answered with NODATA without asking anyone: it is for the IPv6 addresses of a name that is not
// the cluster's, and the pod has no address to reach them from. outside says that the name is in none of the cluster's zones.
//
// There is no such thing for A and pods that have IPv6 only: those reach IPv4 through translators (NAT64, 464XLAT), whose clients need
// the A record, or the AAAA that a DNS64 makes of it.
//
// It counts, so it is to be asked once for a question, where an upstream would be asked otherwise; [Clients.Suppresses] is for looking ahead.
func (c *Clients) Suppress(cl Client, qtype uint16, outside bool) bool {
	if !outside || c.settings.AAAA == Off || !needless(cl, qtype) {
		return false
	}
	c.suppressed.Add(1)
	return c.settings.AAAA == On
}

// Suppresses is what [Clients.Suppress] will say of a name outside, and counts nothing.
func (c *Clients) Suppresses(cl Client, qtype uint16) bool {
	return c.settings.AAAA == On && needless(cl, qtype)
}

// CountsSuppressed reports whether [Clients.Suppress] counts a question about a name outside.
func (c *Clients) CountsSuppressed(cl Client, qtype uint16) bool {
	return c.settings.AAAA != Off && needless(cl, qtype)
}

// Suppressing reports whether some pods' questions of a type are suppressed.
func (c *Clients) Suppressing(qtype uint16) bool {
	return c.settings.AAAA == On && qtype == mdns.TypeAAAA
}

// Spared is what an answer that was put together for a pod is counted as, beside what every answer is.
type Spared struct {
	// Suppressed is how many of the names that it was asked for [Clients.Suppress] has counted.
	Suppressed uint8
	// Completed says that there was a [Completion], and Saved how many names it has spared the resolver; Failed that it led to a failure; Kept that
	// there was none, and the answer stayed as it was.
	Completed, Failed, Kept bool
	Saved                   uint8
}

// Count counts n answers like one that was counted already.
func (s Spared) Count(c *Clients, n uint64) {
	c.suppressed.Add(n * uint64(s.Suppressed))
	switch {
	case s.Kept:
		c.kept.Add(n)
	case s.Failed:
		c.failed.Add(n)
	case s.Completed:
		c.completed.Add(n)
		c.saved.Add(n * uint64(s.Saved))
	}
}

// needless reports whether a question is for addresses that the client cannot reach.
func needless(cl Client, qtype uint16) bool {
	return qtype == mdns.TypeAAAA && cl.Pod != nil && !cl.Pod.IPv6
}

// Sample is of how many questions one is looked at to count what completion would spare: looking costs more than the answer.
const Sample = 64

// Completion is whether questions are completed: if [On], an NXDOMAIN to a question that [Pod.Completes] is given to [Complete]; if
// [CountOnly] one in [Sample] is, drawn by lot, but with an ask that takes the names for existing that are not the cluster's ([Outcome] with
// Records), asks nobody, and what comes out is only counted.
func (c *Clients) Completion() Mode { return c.settings.Completion }

// CountCompletion counts what [Complete] has returned, for n questions: [Sample] of them if the others were not looked at.
func CountCompletion[A any](c *Clients, n uint64, done Completion[A], ok bool) {
	SparedBy(done, ok).Count(c, n)
}

// SparedBy is what CountCompletion counts.
func SparedBy[A any](done Completion[A], ok bool) Spared {
	return Spared{Completed: ok && !done.failed(), Failed: ok && done.failed(), Kept: !ok, Saved: uint8(done.Saved)}
}
