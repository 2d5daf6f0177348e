// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead/fairlead/status"
)

// standIn answers on an agent's socket what a test wants.
type standIn struct {
	namespace atomic.Value // of the process that answers
	reason    atomic.Value // why it is not ready; empty: it is
	asked     chan struct{}
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v1/status" {
		_ = json.NewEncoder(w).Encode(&status.Report{PIDNamespace: s.namespace.Load().(string)})
		select {
		case s.asked <- struct{}{}:
		default:
		}
		return
	}
	if why := s.reason.Load().(string); why != "" {
		http.Error(w, why, http.StatusGatewayTimeout)
	}
}

func startStandIn(t *testing.T, namespace, reason string) (*standIn, *status.Client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &standIn{asked: make(chan struct{}, 1)}
	s.namespace.Store(namespace)
	s.reason.Store(reason)
	srv := &http.Server{Handler: s}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return s, status.Dial(path)
}

// TestReadyOtherContainer: another container's agent is ready, which says nothing about ours; once ours answers, ready returns.
func TestReadyOtherContainer(t *testing.T) {
	s, client := startStandIn(t, "pid:[1]", "")
	done := make(chan error, 1)
	go func() { done <- waitReady(t.Context(), client, "pid:[2]") }()
	for range 3 {
		<-s.asked
	}
	select {
	case err := <-done:
		t.Fatalf("the other one's answer counted: %v", err)
	default:
	}
	s.namespace.Store("pid:[2]")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestReadyReasons: when the time is over, the last reason is told.
func TestReadyReasons(t *testing.T) {
	_, other := startStandIn(t, "pid:[1]", "")
	_, waiting := startStandIn(t, "pid:[2]", "waiting for the API server")
	nobody := status.Dial(filepath.Join(t.TempDir(), "agent.sock"))
	for _, c := range []struct {
		name, want string
		client     *status.Client
	}{
		{"another container's", "outside of this container", other},
		{"not ready", "waiting for the API server", waiting},
		{"nobody", "no agent runs at", nobody},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			err := askReady(ctx, c.client, "pid:[2]")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			cancel()
			if err := waitReady(ctx, c.client, "pid:[2]"); err == nil || !strings.HasPrefix(err.Error(), "not ready: ") {
				t.Errorf("after the time is over: %v", err)
			}
		})
	}
}
