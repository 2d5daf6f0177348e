// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"time"

	"github.com/spf13/pflag"
)

// Conntrack are limits of the kernel's connection tracking, with kube-proxy's meaning and defaults. Zero leaves what is there.
type Conntrack struct {
	// MaxPerCore and Min say how many connections can be tracked at least: so many for each processor, a million at most, but never less than Min.
	MaxPerCore, Min int
	// Established and CloseWait are how long a silent TCP connection is remembered that is open, and that only the other side has closed.
	Established, CloseWait time.Duration
	// UDP and UDPStream are the same for UDP: for a question alone, and once there was an answer and more.
	UDP, UDPStream time.Duration
	// Liberal has segments outside the window of their connection counted as the connection's.
	Liberal bool
}

func (c *Conntrack) addFlags(fs *pflag.FlagSet) {
	fs.IntVar(&c.MaxPerCore, "conntrack-max-per-core", 32768, "`connections` that the kernel can track for each processor; 0 leaves its limit")
	fs.IntVar(&c.Min, "conntrack-min", 131072, "`connections` that it can track at least, whatever the processors")
	fs.DurationVar(&c.Established, "conntrack-tcp-timeout-established", 24*time.Hour, "how long a silent TCP connection is remembered; 0 leaves the kernel's")
	fs.DurationVar(&c.CloseWait, "conntrack-tcp-timeout-close-wait", time.Hour, "how long one is that only the other side has closed; 0 leaves the kernel's")
	fs.DurationVar(&c.UDP, "conntrack-udp-timeout", 0, "how long an unanswered UDP flow is remembered; 0 leaves the kernel's")
	fs.DurationVar(&c.UDPStream, "conntrack-udp-timeout-stream", 0, "how long an answered UDP flow is; 0 leaves the kernel's")
	fs.BoolVar(&c.Liberal, "conntrack-tcp-be-liberal", false, "count TCP segments outside the window as their connection's")
}

func (c Conntrack) check(fail func(flag, format string, args ...any)) Conntrack {
	number := func(flag string, n int) {
		if n < 0 {
			fail(flag, "%d is less than nothing", n)
		}
	}
	number("conntrack-max-per-core", c.MaxPerCore)
	number("conntrack-min", c.Min)
	seconds := func(flag string, d time.Duration) {
		if d < 0 || d%time.Second != 0 {
			fail(flag, "%s is no number of seconds", d)
		}
	}
	seconds("conntrack-tcp-timeout-established", c.Established)
	seconds("conntrack-tcp-timeout-close-wait", c.CloseWait)
	seconds("conntrack-udp-timeout", c.UDP)
	seconds("conntrack-udp-timeout-stream", c.UDPStream)
	return c
}

// Max is how many connections can be tracked with so many processors; 0: as many as now.
func (c Conntrack) Max(cores int) int {
	if c.MaxPerCore == 0 {
		return 0
	}
	const most = 1 << 20 // each takes some 300 octets of the kernel's memory
	if n := c.MaxPerCore * cores; n < most {
		return max(n, c.Min)
	}
	return most
}
