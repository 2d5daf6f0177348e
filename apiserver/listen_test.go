// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// TestJoin checks that connections to any of the listeners arrive, and that
// Close ends all of them.
func TestJoin(t *testing.T) {
	local := newInProcess()
	var tcp []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		tcp = append(tcp, l)
	}
	j := join(append(tcp, local)...)
	if j.Addr() != tcp[0].Addr() {
		t.Errorf("address %v", j.Addr())
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := j.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
			serving.Go(func() { io.Copy(conn, conn); conn.Close() })
		}
	})
	dials := []func() (net.Conn, error){
		func() (net.Conn, error) { return net.Dial("tcp", tcp[0].Addr().String()) },
		func() (net.Conn, error) { return net.Dial("tcp", tcp[1].Addr().String()) },
		func() (net.Conn, error) { return local.Dial(t.Context(), "tcp", "nowhere:0") },
	}
	var clients sync.WaitGroup
	for n := range 30 {
		clients.Go(func() {
			conn, err := dials[n%3]()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			want := fmt.Sprint("hello ", n)
			if _, err := io.WriteString(conn, want); err != nil {
				t.Error(err)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	clients.Wait()
	must(t, j.Close())
	must(t, j.Close())
	serving.Wait()
	for n, dial := range dials {
		if conn, err := dial(); err == nil {
			conn.Close()
			t.Errorf("listener %d still accepts", n)
		}
	}
}

func TestInProcessGivesUp(t *testing.T) {
	local := newInProcess()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := local.Dial(ctx, "", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody accepts: %v", err)
	}
	must(t, local.Close())
	if _, err := local.Dial(t.Context(), "", ""); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := local.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if !strings.HasPrefix(local.Addr().String(), "127.0.0.1") {
		t.Errorf("address %v", local.Addr())
	}
}
