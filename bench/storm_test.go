// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
)

func TestReason(t *testing.T) {
	for _, row := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "refused"},
		{fmt.Errorf("read: %w", &net.OpError{Op: "read", Err: syscall.ECONNRESET}), "reset"},
		{fmt.Errorf("read: %w", io.EOF), "reset"},
		{&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, "unreachable"},
		{fmt.Errorf("read: %w", os.ErrDeadlineExceeded), "timeout"},
		{&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}, "timeout"},
		{errors.New("odd"), "odd"},
	} {
		if got := reason(row.err); got != row.want {
			t.Errorf("reason(%v) = %q, want %q", row.err, got, row.want)
		}
	}
}

// A server that answers is asked without error, and one that has stopped listening refuses.
func TestAsk(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		answerOne(conn)
	}()
	if took, err := ask(listener.Addr().String(), 0); err != nil || took <= 0 {
		t.Errorf("ask: %v, %v", took, err)
	}
	<-done
	listener.Close()
	if _, err := ask(listener.Addr().String(), 0); err == nil || reason(err) != "refused" {
		t.Errorf("ask one that does not listen: %v, want refused", err)
	}
}

func TestFailures(t *testing.T) {
	r := stormResult{Failed: map[string]int{"refused": 3, "timeout": 4}}
	if got := r.failures(); got != 7 {
		t.Errorf("%d failures, want 7", got)
	}
}

// No port comes again within twenty seconds at the rate of the figure.
func TestStormPort(t *testing.T) {
	last := map[int]int{}
	for n := range 150_000 {
		port := stormPort(n)
		if port < 1024 || port > 65535 {
			t.Fatalf("connection %d: port %d", n, port)
		}
		if before, ok := last[port]; ok && n-before < 20*replaceRate {
			t.Fatalf("port %d again after %d connections", port, n-before)
		}
		last[port] = n
	}
}
