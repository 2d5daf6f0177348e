// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"
)

// limit is how long a change may wait for the kernel before the node counts as unhealthy: twice kube-proxy's syncPeriod.
const limit = time.Minute

// Progress says how far programming has come: when the kernel last had all that was asked for (zero: not yet), and since
// when a change has been waiting (zero: none is).
type Progress func() (lastUpdated, pendingSince time.Time)

// Options of a Proxy. Only Progress is required.
type Options struct {
	Progress Progress
	// Eligible reports whether load balancers may use the node: it exists, and is neither being deleted nor about to be. nil: always.
	Eligible func() bool
	// Healthz and Livez are told the status code of each answer; nil: nobody is.
	Healthz, Livez func(code int)
	// Listen opens the port; nil: in the process's network namespace.
	Listen Listen
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Logger hears when the port cannot be opened; nil: nobody does.
	Logger *slog.Logger
}

// Proxy is the health of this node's service proxy. Its methods may be called concurrently.
type Proxy struct {
	o    Options
	port *Port
}

// New returns the health of a proxy that makes such progress.
func New(o Options) *Proxy {
	if o.Eligible == nil {
		o.Eligible = func() bool { return true }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Proxy{o: o, port: NewPort("health is not served", o.Listen, o.Logger)}
}

// proxyAnswer is the body of /healthz and /livez, its fields in kube-proxy's order.
type proxyAnswer struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"` // /healthz only
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyAnswer `json:"status,omitempty"`
}

type familyAnswer struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// Healthy reports whether no change has been waiting for too long. Until the first programming it is true, as an agent that starts must not
// take the node, which the kernel goes on serving, out of its load balancers.
func (p *Proxy) Healthy() bool { return p.state().Healthy }

func (p *Proxy) state() proxyAnswer {
	updated, pending := p.o.Progress()
	a := proxyAnswer{LastUpdated: updated, CurrentTime: p.o.Now()}
	a.Healthy = updated.IsZero() || pending.IsZero() || a.CurrentTime.Sub(pending) < limit
	if !updated.IsZero() {
		both := familyAnswer{updated, a.Healthy} // they are programmed together
		a.Status = map[string]familyAnswer{"IPv4": both, "IPv6": both}
	}
	return a
}

// Handler serves /healthz and /livez.
func (p *Proxy) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		a := p.state()
		eligible := p.o.Eligible()
		a.NodeEligible = &eligible
		p.reply(w, a, a.Healthy && eligible, p.o.Healthz)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		a := p.state()
		p.reply(w, a, a.Healthy, p.o.Livez)
	})
	return mux
}

func (p *Proxy) reply(w http.ResponseWriter, a proxyAnswer, good bool, count func(code int)) {
	code := http.StatusServiceUnavailable
	if good {
		// A node without changes is up to date however long ago the last one was, and there are askers who judge by the age.
		code, a.LastUpdated = http.StatusOK, p.o.Now()
	}
	if count != nil {
		count(code)
	}
	body, err := json.Marshal(a)
	if err != nil { // a clock beyond the year 9999
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, code, body)
}

func writeJSON(w http.ResponseWriter, code int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

// Serve answers on addr until ctx ends. While the port cannot be opened, or was lost, it tries again and Problem says why.
func (p *Proxy) Serve(ctx context.Context, addr string) { p.port.Serve(ctx, addr, p.Handler()) }

// Problem says why /healthz and /livez are not served now; empty: they are, or Serve was not called.
func (p *Proxy) Problem() string { return p.port.Problem() }
