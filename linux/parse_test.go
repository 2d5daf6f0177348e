// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFilterIsFlow encodes matches and reads them as if they were entries: the
// tuples that the kernel is asked for are those that an entry would show.
func TestFilterIsFlow(t *testing.T) {
	for _, m := range []ConntrackMatch{
		{Proto: 17, OrigDst: netip.MustParseAddrPort("10.96.0.10:53"), ReplySrc: netip.MustParseAddrPort("10.244.1.5:5353")},
		{Proto: 6, OrigDst: netip.MustParseAddrPort("[fd00::1]:443"), ReplySrc: netip.MustParseAddrPort("[fd00::2]:8443")},
		{Proto: 17, ReplySrc: netip.MustParseAddrPort("[fd00::2]:1")},
		{Proto: 17, OrigDst: netip.MustParseAddrPort("10.0.0.1:0")},
		{OrigDst: netip.MustParseAddrPort("10.0.0.1:0")},
	} {
		f := parseFlow(append([]byte{m.family(), 0, 0, 0}, m.filter()...))
		if !m.matches(f) || f.origDst.Addr() != m.OrigDst.Addr() || f.replySrc.Addr() != m.ReplySrc.Addr() {
			t.Errorf("%+v: %+v", m, f)
		}
	}
}

// FuzzParseFlow wants no panic whatever the kernel says.
func FuzzParseFlow(f *testing.F) {
	m := ConntrackMatch{Proto: 17, OrigDst: netip.MustParseAddrPort("10.96.0.10:53"), ReplySrc: netip.MustParseAddrPort("10.244.1.5:5353")}
	f.Add(append([]byte{unix.AF_INET, 0, 0, 0}, m.filter()...))
	m = ConntrackMatch{Proto: 6, OrigDst: netip.MustParseAddrPort("[fd00::1]:443")}
	f.Add(append([]byte{unix.AF_INET6, 0, 0, 0}, m.filter()...))
	f.Add([]byte{2, 0, 0, 0, 3, 0, 1, 0})
	f.Add([]byte(nil))
	f.Fuzz(func(_ *testing.T, msg []byte) { parseFlow(msg) })
}
