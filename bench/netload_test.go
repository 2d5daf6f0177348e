// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// TestCarry runs every client against the server, on an address of loopback's own.
func TestCarry(t *testing.T) {
	const addr = "127.0.77.1"
	failed := make(chan error, 1)
	go func() { failed <- sink([]string{addr}) }() // for as long as the tests run
	for begin := time.Now(); ; {
		conn, err := net.Dial("tcp", fmt.Sprint(addr, ":", targetPort))
		if err == nil {
			conn.Close()
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal(err)
		}
		select {
		case err := <-failed:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	for _, what := range []string{"stream", "ping", "udp"} {
		var out bytes.Buffer
		if err := carry([]string{"-what", what, "-to", addr, "-warm", "10ms", "-count", "100ms"}, &out); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		var r carried
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.PerSecond <= 0 || what != "stream" && (r.P50 <= 0 || r.P99 < r.P50) {
			t.Errorf("%s: %s, %v", what, &out, err)
		}
	}
	for _, args := range [][]string{{"-what", "pigeon", "-to", addr}, {"-to", "somewhere"}, {"-what", "ping", "-to", "127.0.77.2"}} {
		if err := carry(args, io.Discard); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
	for _, args := range [][]string{nil, {"somewhere"}, {addr}} { // which has its ports in use
		if err := sink(args); err == nil {
			t.Errorf("sink %v: no error", args)
		}
	}
}
