// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead/fairlead/testnet"
)

// TestMain lets the test's program be the programs in the pods.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "load" || os.Args[1] == "answer" || os.Args[1] == "storm") {
		main()
		return
	}
	os.Exit(m.Run())
}

// testHost is a host for the time of the test.
func testHost(t *testing.T) *host {
	t.Helper()
	testnet.MustRoot(t)
	h, err := newHost()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.close)
	return h
}

// testRig is a node without rules, with a client, and a server on every endpoint address.
func testRig(t *testing.T) *rig {
	t.Helper()
	testnet.MustRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRig(programs{bench: self}, t.TempDir(), nil, "test", 13)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

// A client counts what it does, and its times are of connections that were there: of the last address of the range too.
func TestLoad(t *testing.T) {
	r := testRig(t)
	targets := []netip.AddrPort{netip.AddrPortFrom(endpoint(1), targetPort), netip.MustParseAddrPort("10.191.255.254:8080")}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := awaitForwarding(ctx, r.client, targets, r.server.gone); err != nil {
		t.Fatal(err)
	}
	if err := verifyForwarding(r.client, targets); err != nil {
		t.Fatal(err)
	}
	for _, workers := range []string{"1", "3"} {
		got := testLoad(t, r, workers, targets...)
		for got.Connections == 0 && got.Errors == 0 { // the machine had no time for it
			got = testLoad(t, r, workers, targets...)
		}
		if got.Errors != 0 || got.ConnectP50 <= 0 || got.ConnectP50 > got.ConnectP99 || got.CPU <= 0 || got.perSecond() <= 0 {
			t.Errorf("%s workers: %+v", workers, got)
		}
	}
	refused := testLoad(t, r, "1", netip.AddrPortFrom(endpoint(1), 1))
	for refused.Connections == 0 && refused.Errors == 0 {
		refused = testLoad(t, r, "1", netip.AddrPortFrom(endpoint(1), 1))
	}
	if refused.Connections != 0 || refused.Errors == 0 || !strings.Contains(refused.FirstError, "refused") {
		t.Errorf("where nobody listens: %+v", refused)
	}
}

func testLoad(t *testing.T, r *rig, workers string, targets ...netip.AddrPort) (got loadResult) {
	t.Helper()
	var to []string
	for _, a := range targets {
		to = append(to, a.String())
	}
	out, err := output(t.Context(), r.client, clientCPU, os.Args[0], "load", "-workers", workers, "-warm", "10ms", "-count", "100ms", "-to", strings.Join(to, ","))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// An address without a route is not taken for one that forwards, and the end of the contender ends the wait.
func TestAwaitForwarding(t *testing.T) {
	r := testRig(t)
	nowhere := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:80")}
	if err := verifyForwarding(r.client, nowhere); err == nil {
		t.Error("an address that nothing has was verified")
	}
	over := errors.New("over")
	if _, err := awaitForwarding(t.Context(), r.client, nowhere, func() error { return over }); !errors.Is(err, over) {
		t.Errorf("await: %v, want that it is over", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := awaitForwarding(ctx, r.client, nowhere, func() error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("await: %v, want canceled", err)
	}
}

// A server that is told to end refuses at once, while it lives on; the client that goes on sees it and counts it.
func TestStorm(t *testing.T) {
	h := testHost(t)
	const on = "127.0.0.1:80"
	dir := t.TempDir()
	server, err := start(h, anyCPU, dir, "answer", os.Args[0], "answer", "-on", on, "-linger", "1h")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.cmd.Process.Kill(); <-server.done }()
	try := func() error { return h.Do(func() error { _, err := ask(on, 0); return err }) }
	if err := server.until(t.Context(), 30*time.Second, time.Millisecond, try); err != nil {
		t.Fatal(err)
	}
	client, err := start(h, anyCPU, dir, "storm", os.Args[0], "storm", "-to", on, "-rate", "500")
	if err != nil {
		t.Fatal(err)
	}
	_ = server.cmd.Process.Signal(syscall.SIGTERM)
	err = server.until(t.Context(), 30*time.Second, time.Millisecond, func() error {
		if err := try(); err == nil {
			return errors.New("still answers")
		} else if reason(err) != "refused" {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// From here on it is the client alone whose attempts fail.
	before := failedAttempts(t, h)
	err = client.until(t.Context(), 30*time.Second, time.Millisecond, func() error {
		if failedAttempts(t, h) < before+5 {
			return errors.New("the client was not refused yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	client.stop()
	var got stormResult
	if err := json.Unmarshal([]byte(tail(client.log)), &got); err != nil {
		t.Fatalf("%v in %s", err, tail(client.log))
	}
	if got.Failed["refused"] < 5 || got.failures() > got.Connections {
		t.Errorf("%+v, want some refused", got)
	}
}

// failedAttempts is how many connections of a host were refused, by the kernel's count.
func failedAttempts(t *testing.T, h *host) (n int) {
	t.Helper()
	err := h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if fields[0] != "Tcp:" {
				continue
			}
			if names == nil {
				names = fields
				continue
			}
			n, err = strconv.Atoi(fields[slices.Index(names, "AttemptFails")])
			return err
		}
		return errors.New("no TCP counters")
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
