// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

// linesPerSecond bounds the log whatever is asked for: a node's log is for all of its programs.
const linesPerSecond = 200

// LogSettings says which queries are logged. The zero LogSettings logs none.
type LogSettings struct {
	// Errors logs those that failed: all response codes but NOERROR and NXDOMAIN.
	Errors bool
	// Every logs one in so many, drawn by lot; 1 is all of them, 0 none.
	Every uint32
}

// ParseLog reads "off", "errors", "sample:N" or "all".
func ParseLog(s string) (LogSettings, error) {
	switch s {
	case "off":
		return LogSettings{}, nil
	case "errors":
		return LogSettings{Errors: true}, nil
	case "all":
		return LogSettings{Every: 1}, nil
	}
	if text, ok := strings.CutPrefix(s, "sample:"); ok {
		if n, err := strconv.ParseUint(text, 10, 32); err == nil && n > 0 {
			return LogSettings{Every: uint32(n)}, nil
		}
	}
	return LogSettings{}, fmt.Errorf("%q is neither off, errors, sample:N (one in N) nor all", s)
}

// String is the settings as [ParseLog] reads them.
func (s LogSettings) String() string {
	switch {
	case s.Every > 1:
		return fmt.Sprintf("sample:%d", s.Every)
	case s.Every == 1:
		return "all"
	case s.Errors:
		return "errors"
	}
	return "off"
}

// Source is where an answer comes from.
type Source uint8

// The sources.
const (
	// FromHere is neither of the others: what is refused or no query at all.
	FromHere Source = iota
	// FromCluster is the cluster's own zones.
	FromCluster
	// FromCache is an upstream's answer given before.
	FromCache
	// FromUpstream is an upstream's answer.
	FromUpstream
)

// String is the source as it is logged.
func (s Source) String() string { return [...]string{"here", "cluster", "cache", "upstream"}[s] }

// Entry is a query that was answered.
type Entry struct {
	Client Client
	Addr   netip.Addr
	// Name and Type are what was asked.
	Name  string
	Type  uint16
	Rcode int
	Took  time.Duration
	From  Source
}

type queryLog struct {
	settings LogSettings
	logger   *slog.Logger
	bucket   bucket
	pace     pace
	leftOut  atomic.Uint64
}

func (l *queryLog) init(s LogSettings, logger *slog.Logger) {
	l.settings, l.logger, l.pace = s, logger, newPace(Rate{PerSecond: linesPerSecond})
	if logger == nil {
		l.settings = LogSettings{}
	}
}

// Logs reports whether a query with this response code is to be logged. With sampling it draws a lot: it is to be asked once for each query, and
// before there is an [Entry].
func (c *Clients) Logs(rcode int) bool {
	l := &c.log
	switch {
	case l.settings.Every > 1:
		return rand.Uint32N(l.settings.Every) == 0
	case l.settings.Every == 1:
		return true
	}
	return l.settings.Errors && rcode != mdns.RcodeSuccess && rcode != mdns.RcodeNameError
}

// Samples reports whether any query may be logged, whatever its response code.
func (c *Clients) Samples() bool { return c.log.settings.Every > 0 }

// Log writes a line about a query, unless there were too many already; the next line says how many those were. now is as in [Clients.Admit].
func (c *Clients) Log(now int64, e Entry) {
	l := &c.log
	if l.logger == nil {
		return
	}
	if !l.bucket.take(l.pace, now) {
		l.leftOut.Add(1)
		return
	}
	who := slog.String("addr", e.Addr.String())
	if e.Client.Pod != nil {
		who = slog.String("pod", e.Client.Pod.Name.String())
	}
	attrs := []slog.Attr{who, slog.String("name", e.Name), slog.String("type", mdns.Type(e.Type).String()),
		slog.String("rcode", rcodeName(e.Rcode)), slog.Duration("took", e.Took), slog.String("from", e.From.String())}
	if n := l.leftOut.Swap(0); n > 0 {
		attrs = append(attrs, slog.Uint64("left_out", n))
	}
	l.logger.LogAttrs(context.Background(), slog.LevelInfo, "query", attrs...)
}

func rcodeName(rcode int) string {
	if s, ok := mdns.RcodeToString[rcode]; ok {
		return s
	}
	return strconv.Itoa(rcode)
}
