// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	mdns "github.com/miekg/dns"

	"github.com/fairlead/fairlead/model"
)

func TestParseMode(t *testing.T) {
	for s, want := range map[string]Mode{"off": Off, "count": CountOnly, "on": On} {
		if m, err := ParseMode(s); err != nil || m != want || m.String() != s {
			t.Errorf("%q: %v, %v", s, m, err)
		}
	}
	for _, s := range []string{"", "On", "yes"} {
		if _, err := ParseMode(s); err == nil || err.Error() != fmt.Sprintf("%q is neither off, count nor on", s) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if (Settings{}).Completion != CountOnly || (Settings{}).AAAA != CountOnly {
		t.Error("counting is the default")
	}
}

// TestSuppress: only AAAA of names outside, only for pods that are known to have no IPv6, and only if asked to; counting changes nothing.
func TestSuppress(t *testing.T) {
	four, six := &Pod{}, &Pod{IPv6: true}
	for _, tt := range []struct {
		client  Client
		qtype   uint16
		outside bool
		want    bool
	}{
		{Client{OwnPod, four}, mdns.TypeAAAA, true, true},
		{Client{OwnPod, four}, mdns.TypeAAAA, false, false},
		{Client{OwnPod, four}, mdns.TypeA, true, false},
		{Client{OwnPod, four}, mdns.TypeANY, true, false},
		{Client{OwnPod, six}, mdns.TypeAAAA, true, false},
		{Client{OwnPod, six}, mdns.TypeA, true, false},
		{Client{Kind: OtherPod}, mdns.TypeAAAA, true, false},
		{Client{Kind: Node}, mdns.TypeAAAA, true, false},
		{Client{}, mdns.TypeAAAA, true, false},
	} {
		for _, m := range []Mode{Off, CountOnly, On} {
			c := New(Settings{AAAA: m})
			if tt.outside && c.Suppresses(tt.client, tt.qtype) != (tt.want && m == On) || c.suppressed.Load() != 0 {
				t.Errorf("%+v, %s: looking ahead says otherwise, or counts", tt, m)
			}
			got, n := c.Suppress(tt.client, tt.qtype, tt.outside), c.suppressed.Load()
			if got != (tt.want && m == On) || n != 0 != (tt.want && m != Off) {
				t.Errorf("%+v, %s: suppressed %t, counted %d", tt, m, got, n)
			}
		}
	}
}

func TestCountCompletion(t *testing.T) {
	c := New(Settings{Completion: On})
	if c.Completion() != On {
		t.Error("the mode is lost")
	}
	CountCompletion(c, 1, Completion[int]{Outcome: Outcome{Records: true}, Saved: 3}, true)
	CountCompletion(c, 1, Completion[int]{Saved: 1}, true)
	CountCompletion(c, 1, Completion[int]{Outcome: Outcome{Rcode: mdns.RcodeServerFailure}, Saved: 3}, true)
	CountCompletion(c, 1, Completion[int]{}, false)
	if got := [4]uint64{c.completed.Load(), c.failed.Load(), c.kept.Load(), c.saved.Load()}; got != [4]uint64{2, 1, 1, 4} {
		t.Error(got)
	}
}

// TestTopOfPods: a pod's numbers are exact, and follow the pod through snapshots.
func TestTopOfPods(t *testing.T) {
	c := New(Settings{})
	b := model.NewBuilder(model.Config{Self: "n1"})
	table := NewTable(Options{Domain: domain})
	ask := func(pod string, n int, rcode int, upstream bool) {
		a := netip.MustParseAddr(pod)
		for range n {
			c.Count(table.Lookup(a), a, rcode, upstream)
		}
	}
	for i, n := range []string{"web", "db", "idle"} {
		b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: n}, Addrs: addrs(fmt.Sprintf("10.244.1.%d", i+1))})
	}
	table = table.Next(b.Build())
	ask("10.244.1.1", 5, mdns.RcodeSuccess, true)
	ask("10.244.1.2", 3, mdns.RcodeNameError, false)
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, Addrs: addrs("10.244.1.1"), Terminating: true})
	table = table.Next(b.Build())
	ask("10.244.1.1", 2, mdns.RcodeServerFailure, false)
	ask("192.0.2.7", 4, mdns.RcodeNameError, true)
	for m, want := range map[Measure]string{
		Queries:  "[{shop/web 7 0 5 0} {192.0.2.7 4 4 4 0} {shop/db 3 3 0 0}]",
		Denials:  "[{192.0.2.7 4 4 4 0} {shop/db 3 3 0 0}]",
		Upstream: "[{shop/web 7 0 5 0} {192.0.2.7 4 4 4 0}]",
	} {
		if got := fmt.Sprint(c.Top(table, 10, m)); got != want {
			t.Errorf("by %s\ngot  %s\nwant %s", m, got, want)
		}
	}
	if got := c.Top(table, 1, Queries); len(got) != 1 || got[0].Name != "shop/web" {
		t.Errorf("the first is %v", got)
	}
	b.DeletePod(model.Name{Namespace: "shop", Name: "web"})
	table = table.Next(b.Build())
	b.SetPod(model.Pod{Name: model.Name{Namespace: "shop", Name: "web"}, Addrs: addrs("10.244.1.1")})
	table = table.Next(b.Build())
	ask("10.244.1.1", 1, mdns.RcodeSuccess, false)
	if got := fmt.Sprint(c.Top(table, 9, Queries)); !strings.Contains(got, "{shop/web 1 0 0 0}") {
		t.Errorf("a pod that came again counts as another: %s", got)
	}
}

// TestTalkers: of a million queries from very many addresses, Space-Saving keeps all that send much, and is never wrong by more than it says.
func TestTalkers(t *testing.T) {
	r := random(t)
	zipf := rand.NewZipf(r, 1.2, 1, 1<<20)
	c := New(Settings{})
	exact := map[netip.Addr]uint64{}
	share := map[uint64]uint64{}
	for range 300_000 {
		n := zipf.Uint64()
		a := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
		exact[a]++
		share[keyOf(a).hash()%talkerShares]++
		c.Count(Client{Kind: OtherPod}, a, mdns.RcodeSuccess, false)
	}
	got := map[netip.Addr]Talker{}
	for _, e := range c.Top(NewTable(Options{}), 1<<30, Queries) {
		a := netip.MustParseAddr(e.Name)
		got[a] = e
		if n := exact[a]; e.Queries < n || e.Queries-e.Over > n {
			t.Fatalf("%s: %d queries, over %d, in truth %d", a, e.Queries, e.Over, n)
		}
	}
	if len(got) > talkerShares*talkerPlaces {
		t.Errorf("%d clients are kept", len(got))
	}
	must := 0
	for a, n := range exact {
		if n > share[keyOf(a).hash()%talkerShares]/talkerPlaces {
			must++
			if _, ok := got[a]; !ok {
				t.Errorf("%s with %d queries is not there", a, n)
			}
		}
	}
	if must < 10 {
		t.Errorf("only %d clients ask much: the test tests little", must)
	}
	if size := unsafe.Sizeof(talkers{}); size > 64<<10 {
		t.Errorf("the table has %d octets", size)
	}
}

func TestParseLog(t *testing.T) {
	for s, want := range map[string]LogSettings{"off": {}, "errors": {Errors: true}, "all": {Every: 1}, "sample:100": {Every: 100}} {
		if l, err := ParseLog(s); err != nil || l != want || l.String() != s {
			t.Errorf("%q: %+v, %v", s, l, err)
		}
	}
	for _, s := range []string{"", "sample", "sample:", "sample:0", "sample:-1", "sample:x", "sample:4294967296", "ALL"} {
		if l, err := ParseLog(s); err == nil || l != (LogSettings{}) {
			t.Errorf("%q: %+v, %v", s, l, err)
		}
	}
}

// TestLogs: which queries are logged.
func TestLogs(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	share := func(s LogSettings, l *slog.Logger, rcode int) (n int) {
		c := New(Settings{Log: s, Logger: l})
		for range 10_000 {
			if c.Logs(rcode) {
				n++
			}
		}
		return n
	}
	for _, tt := range []struct {
		s            LogSettings
		l            *slog.Logger
		rcode        int
		least, fewer int
	}{
		{LogSettings{}, logger, mdns.RcodeServerFailure, 0, 1},
		{LogSettings{Errors: true}, logger, mdns.RcodeSuccess, 0, 1},
		{LogSettings{Errors: true}, logger, mdns.RcodeNameError, 0, 1},
		{LogSettings{Errors: true}, logger, mdns.RcodeServerFailure, 10_000, 10_001},
		{LogSettings{Errors: true}, logger, mdns.RcodeRefused, 10_000, 10_001},
		{LogSettings{Every: 1}, logger, mdns.RcodeSuccess, 10_000, 10_001},
		{LogSettings{Every: 100}, logger, mdns.RcodeSuccess, 20, 300}, // 100 expected, sigma 10
		{LogSettings{Every: 1}, nil, mdns.RcodeSuccess, 0, 1},
	} {
		if n := share(tt.s, tt.l, tt.rcode); n < tt.least || n >= tt.fewer {
			t.Errorf("%s, rcode %d: %d of 10,000", tt.s, tt.rcode, n)
		}
	}
}

// TestLog: a line says who asked what and what came of it, and no flood of queries is one of lines.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	c := New(Settings{Log: LogSettings{Every: 1}, Logger: logger})
	a := netip.MustParseAddr("10.244.1.5")
	e := Entry{Client: Client{OwnPod, &Pod{Name: model.Name{Namespace: "shop", Name: "web"}}}, Addr: a, Name: "www.example.com.", Type: mdns.TypeA,
		Took: 1500 * time.Microsecond, From: FromUpstream}
	c.Log(second, e)
	c.Log(second, Entry{Addr: a, Name: ".", Type: 4711, Rcode: 4094, From: FromHere})
	want := `level=INFO msg=query pod=shop/web name=www.example.com. type=A rcode=NOERROR took=1.5ms from=upstream
level=INFO msg=query addr=10.244.1.5 name=. type=TYPE4711 rcode=4094 took=0s from=here
`
	if out.String() != want {
		t.Errorf("got\n%s", &out)
	}
	out.Reset()
	for i := range 10_000 {
		c.Log(2*second+int64(i)*second/10_000, e)
	}
	if n := strings.Count(out.String(), "\n"); n < 2*linesPerSecond-5 || n > 2*linesPerSecond {
		t.Errorf("10,000 queries a second make %d lines in the first", n)
	}
	out.Reset()
	c.Log(20*second, e)
	c.Log(20*second, e)
	lines := strings.Split(out.String(), "\n")
	if !strings.Contains(lines[0], "left_out=") || strings.Contains(lines[1], "left_out=") {
		t.Errorf("got\n%s", &out)
	}
	New(Settings{Log: LogSettings{Every: 1}}).Log(second, e) // to nobody
}
