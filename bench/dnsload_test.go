// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func sprint(v any) string { return fmt.Sprint(v) }

// testSuite is a suite that keeps figures and prints none.
func testSuite() *suite { return &suite{chapter: dnsChapter, out: json.NewEncoder(io.Discard)} }

const perfReport = `DNS Performance Testing Tool
[Status] Testing complete (time limit)

Statistics:

  Queries sent:         60100
  Queries completed:    60000 (99.83%)
  Queries lost:         100 (0.17%)

  Response codes:       NOERROR 59990 (99.98%), SERVFAIL 10 (0.02%)
  Average packet size:  request 51, response 69
  Run time (s):         2.000100
  Queries per second:   29998.500075

  Average Latency (s):  0.000500 (min 0.000031, max 0.005000)
`

func TestParseDNSPerf(t *testing.T) {
	r, err := parseDNSPerf(perfReport, false)
	if err != nil || r.All != 60000 || r.Answers != 60000 || r.Lost != 100 || r.Wrong != 10 || r.Seconds != 2.0001 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := r.fault(); err == nil || !strings.Contains(err.Error(), "SERVFAIL") {
		t.Errorf("fault %v", err)
	}
	if r, err = parseDNSPerf(perfReport, true); err != nil || r.Wrong != 0 {
		t.Errorf("of an echo: %+v, %v", r, err)
	}
	for _, bad := range []string{
		"", strings.Replace(perfReport, "Queries lost", "Lost", 1), strings.Replace(perfReport, "60000", "many", 1),
		strings.Replace(perfReport, "59990", "x", 1), strings.Replace(perfReport, "NOERROR 59990 (99.98%)", "NOERROR", 1),
	} {
		if _, err := parseDNSPerf(bad, false); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}

// The zone file has every address of every question, and nothing that could be taken for another name.
func TestZoneFile(t *testing.T) {
	zone := string(zoneFile([]question{
		mustQuestion(t, "one"+below, typeA, rcodeSuccess, "10.96.0.1"),
		mustQuestion(t, "two"+below, typeA, rcodeSuccess, "10.160.0.1", "10.160.0.2"),
	}))
	for _, want := range []string{"$ORIGIN cluster.local.\n", "\none.default.svc A 10.96.0.1\n", "\ntwo.default.svc A 10.160.0.1\ntwo.default.svc A 10.160.0.2\n", "@ SOA "} {
		if !strings.Contains(zone, want) {
			t.Errorf("no %q in\n%s", want, zone)
		}
	}
}

// Draws are the same each time, and of all questions.
func TestDraws(t *testing.T) {
	questions := []question{mustQuestion(t, "a", typeA, 0), mustQuestion(t, "b", typeA, 0), mustQuestion(t, "c", typeA, 0)}
	names := func(n int) (out []string) {
		for _, q := range draws(questions, n) {
			out = append(out, q.name)
		}
		return out
	}
	got := names(100)
	if len(got) != 100 || !slices.Equal(got, names(100)) {
		t.Error("drawn twice, they differ")
	}
	for _, q := range questions {
		if !slices.Contains(got, q.name) {
			t.Errorf("%s is never drawn", q.name)
		}
	}
}

func TestFamily(t *testing.T) {
	parents := map[int]int{2: 1, 3: 1, 4: 3, 5: 4, 6: 9, 9: 7}
	got := family(parents, 3)
	slices.Sort(got)
	if !slices.Equal(got, []int{3, 4, 5}) {
		t.Errorf("%v", got)
	}
	if got := family(parents, 8); !slices.Equal(got, []int{8}) {
		t.Errorf("%v", got)
	}
}

// What a load costs is the processor time of who serves it, of each answer.
func TestWeigh(t *testing.T) {
	const answers = 10
	work := 20 * time.Millisecond
	got, err := weigh(os.Getpid(), func() (dnsResult, error) {
		before, err := cpuTime(os.Getpid())
		for now := before; err == nil && now-before < work; now, err = cpuTime(os.Getpid()) {
		}
		return dnsResult{All: answers, Answers: answers, Seconds: 1}, err
	})
	if err != nil || got.perAnswer < micros(work)/answers || got.busy < 0 {
		t.Errorf("%+v, %v", got, err)
	}
	fails := errors.New("fails")
	if _, err := weigh(os.Getpid(), func() (dnsResult, error) { return dnsResult{}, fails }); !errors.Is(err, fails) {
		t.Errorf("%v", err)
	}
	if _, _, err := busyTime(999); err == nil {
		t.Error("a processor that is not there is busy")
	}
}
