// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// retryAfter is the pause before a port that could not be opened is tried again.
	retryAfter = 5 * time.Second
	// headerTimeout bounds how long an asker may take for its question.
	headerTimeout = 10 * time.Second
)

// Listen opens a port, as net.Listen does.
type Listen func(ctx context.Context, network, addr string) (net.Listener, error)

// Port is an address at which something is served that the node can do without: whatever is the matter with it, everything else goes on.
type Port struct {
	without string
	listen  Listen
	log     *slog.Logger

	mu      sync.Mutex
	problem string
}

// NewPort names what is missing while the port cannot be opened, as the beginning of a sentence. Without listen it is opened in the process's
// network namespace; without log nobody hears of it.
func NewPort(without string, listen Listen, log *slog.Logger) *Port {
	if listen == nil {
		listen = new(net.ListenConfig).Listen
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Port{without: without, listen: listen, log: log}
}

// Serve answers on addr until ctx ends. While the port cannot be opened, or was lost, it tries again and Problem says why.
func (p *Port) Serve(ctx context.Context, addr string, h http.Handler) {
	for {
		l, err := p.listen(ctx, "tcp", addr)
		if err == nil {
			p.report("")
			srv := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout}
			stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
			err = srv.Serve(l)
			stop()
			if !errors.Is(err, http.ErrServerClosed) {
				_ = srv.Close()
			}
		}
		if ctx.Err() != nil {
			return
		}
		p.report(p.without + ": " + err.Error())
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryAfter):
		}
	}
}

func (p *Port) report(problem string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if problem != "" && problem != p.problem {
		p.log.Warn(problem)
	}
	p.problem = problem
}

// Problem says why nothing is served now; empty: it is, or Serve was not called.
func (p *Port) Problem() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.problem
}
