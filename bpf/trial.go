// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bpf

import "log/slog"

// mostFailures bounds how long it takes until what does not work is tried again: two to the power of it, in occasions.
const mostFailures = 10

// Trial keeps whether something works that nothing depends on, and when it is tried again: on one occasion in two, then in four, and so on. Its zero value works.
type Trial struct {
	off    string
	failed int // in a row
	pause  int // for how many occasions it is not tried again
}

// Off is why it does not work; empty: it does.
func (t *Trial) Off() string { return t.off }

// Due reports whether it is to be tried: it works, or this is an occasion to try it again and it has paused for long enough.
func (t *Trial) Due(occasion bool) bool {
	if t.off == "" {
		return true
	}
	if occasion {
		t.pause--
	}
	return occasion && t.pause <= 0
}

// End takes in how it went, and says so in log if that is news. what is its name, lost what happens without it.
func (t *Trial) End(err error, log *slog.Logger, what, lost string) {
	before := t.off
	if err != nil {
		t.off, t.failed = err.Error(), min(t.failed+1, mostFailures)
		t.pause = 1 << t.failed
	} else {
		t.off, t.failed = "", 0
	}
	switch {
	case t.off == before:
	case t.off != "":
		log.Warn(what+" is off: "+lost, "err", t.off)
	default:
		log.Info(what + " works again")
	}
}
