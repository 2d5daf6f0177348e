// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/model"
)

// Check is what a Service with a healthCheckNodePort wants.
type Check struct {
	// Port is the healthCheckNodePort; with 0 there is no check.
	Port       uint16
	IPv4, IPv6 Family
}

// Family is a Service in one IP family. As with kube-proxy, each has its own answer, on the node's addresses of that family.
type Family struct {
	// Served is set if the Service has a ClusterIP of the family.
	Served bool
	// LocalEndpoints is the number of different addresses of this node's ready endpoints, whichever of the Service's ports they have. An
	// endpoint that terminates is not ready, although it may still serve.
	LocalEndpoints int
}

// family is the part of a check that an address shows.
func (c Check) family(a netip.Addr) Family {
	if a.Is4() {
		return c.IPv4
	}
	return c.IPv6
}

// Failure is a port that is not served, although it should be.
type Failure struct {
	Service model.Name
	// Addr is where it should have been opened; without an address, the Service has no say about the port at all.
	Addr netip.AddrPort
	Err  error
}

// Error is the sentence that kube-proxy's Event has, without the node's name.
func (f Failure) Error() string {
	return fmt.Sprintf("failed to start healthcheck %q on port %d: %v", f.Service, f.Addr.Port(), f.Err)
}

// Unwrap returns the cause.
func (f Failure) Unwrap() error { return f.Err }

func (f Failure) compare(o Failure) int {
	return cmp.Or(f.Service.Compare(o.Service), f.Addr.Compare(o.Addr))
}

// PortsOptions of Ports. Only Healthy is required.
type PortsOptions struct {
	// Healthy is the proxy's own health, without which no Service is: Proxy.Healthy.
	Healthy func() bool
	// Failed hears of each failure once, also of those that only a later try has; nil: nobody does. It may not call Set or Close.
	Failed func(Failure)
	// Listen opens a port; nil: in the process's network namespace.
	Listen Listen
}

// Ports are the health check node ports of this node. Its methods may be called concurrently.
type Ports struct {
	o PortsOptions
	// answers are whose the ports are and what they answer, for requests to read without the lock.
	answers atomic.Pointer[map[uint16]answers]

	mu       sync.Mutex
	addrs    []netip.Addr
	want     map[model.Name]Check
	open     map[netip.AddrPort]*server
	failures []Failure
	retry    *time.Timer
	closed   bool
	serving  sync.WaitGroup
}

// server is an open port.
type server struct {
	http     http.Server
	listener net.Listener
}

// close closes the port before it returns, also if serving has not begun, and the connections to it.
func (s *server) close() {
	_ = s.http.Close()
	_ = s.listener.Close()
}

// answers are what one port says.
type answers struct {
	service model.Name
	check   Check
}

// NewPorts returns ports of which none is open.
func NewPorts(o PortsOptions) *Ports {
	if o.Failed == nil {
		o.Failed = func(Failure) {}
	}
	if o.Listen == nil {
		o.Listen = new(net.ListenConfig).Listen
	}
	p := &Ports{o: o, open: make(map[netip.AddrPort]*server)}
	p.answers.Store(&map[uint16]answers{})
	return p
}

// Set makes these the checks, on these addresses of the node; the unspecified addresses stand for all of their family. Ports open, close and change
// their answers where they differ from the last call. It returns what cannot be served, in the order of the Services' names; that is tried again by itself.
func (p *Ports) Set(addrs []netip.Addr, checks map[model.Name]Check) []Failure {
	return p.do(func() {
		if !p.closed {
			p.addrs, p.want = slices.Clone(addrs), maps.Clone(checks)
		}
		p.sync()
	})
}

// Failures returns what cannot be served now, in the order of the Services' names.
func (p *Ports) Failures() []Failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.failures)
}

// Close closes all ports, for good.
func (p *Ports) Close() {
	p.do(func() {
		p.closed, p.addrs, p.want = true, nil, nil
		p.sync()
	})
	p.serving.Wait()
}

// do runs f with the lock, and then tells of failures that are new.
func (p *Ports) do(f func()) []Failure {
	p.mu.Lock()
	before := p.failures
	f()
	slices.SortFunc(p.failures, Failure.compare)
	p.again()
	failures := slices.Clone(p.failures)
	p.mu.Unlock()
	for _, f := range failures {
		known := slices.ContainsFunc(before, func(b Failure) bool { return b.compare(f) == 0 && b.Err.Error() == f.Err.Error() })
		if !known {
			p.o.Failed(f)
		}
	}
	return failures
}

// sync brings the open ports to what is wanted.
func (p *Ports) sync() {
	p.failures = nil
	all := p.own()
	wanted := make(map[netip.AddrPort]model.Name, len(all)*len(p.addrs))
	for port, has := range all {
		for _, a := range p.addrs {
			if a = a.Unmap(); has.check.family(a).Served {
				wanted[netip.AddrPortFrom(a, port)] = has.service
			}
		}
	}
	for at, srv := range p.open {
		if _, ok := wanted[at]; !ok {
			srv.close()
			delete(p.open, at)
		}
	}
	for at, name := range wanted {
		if p.open[at] != nil {
			continue
		}
		err := p.serve(at)
		if at.Addr().IsUnspecified() && errors.Is(err, syscall.EAFNOSUPPORT) {
			continue // this machine has no IPv6 and needs none
		}
		if err != nil {
			p.failures = append(p.failures, Failure{name, at, err})
		}
	}
}

// own decides which Service has each port. The API server gives a port to one only; should two have it all the same, the one that has
// it keeps it, or else the first by name gets it.
func (p *Ports) own() map[uint16]answers {
	all := make(map[uint16]answers, len(p.want))
	for port, had := range *p.answers.Load() {
		if c := p.want[had.service]; c.Port == port {
			all[port] = answers{had.service, c}
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(p.want), model.Name.Compare) {
		c := p.want[name]
		if c.Port == 0 {
			continue
		}
		if has, taken := all[c.Port]; taken && has.service != name {
			err := fmt.Errorf("the port is Service %s's", has.service)
			p.failures = append(p.failures, Failure{name, netip.AddrPortFrom(netip.Addr{}, c.Port), err})
			continue
		}
		all[c.Port] = answers{name, c}
	}
	p.answers.Store(&all)
	return all
}

func (p *Ports) serve(at netip.AddrPort) error {
	network := "tcp4"
	if at.Addr().Is6() {
		network = "tcp6"
	}
	l, err := p.o.Listen(context.Background(), network, at.String())
	if err != nil {
		return err
	}
	srv := &server{listener: l, http: http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { p.answer(w, at) }),
		ReadHeaderTimeout: headerTimeout,
	}}
	p.open[at] = srv
	p.serving.Go(func() {
		if err := srv.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.lost(at, srv, err)
		}
	})
	return nil
}

// lost is for a port whose listener failed under it; it is opened again like one that could not be opened.
func (p *Ports) lost(at netip.AddrPort, srv *server, err error) {
	srv.close()
	p.do(func() {
		if p.open[at] == srv {
			delete(p.open, at)
			p.failures = append(p.failures, Failure{(*p.answers.Load())[at.Port()].service, at, err})
		}
	})
}

// again arranges for the next try, if one is needed.
func (p *Ports) again() {
	if p.retry != nil {
		p.retry.Stop()
		p.retry = nil
	}
	if len(p.failures) == 0 || p.closed {
		return
	}
	p.retry = time.AfterFunc(retryAfter, func() { p.do(p.sync) })
}

// answer writes what a port's Service has on this node. Load balancers that weigh nodes take the weight from the header.
func (p *Ports) answer(w http.ResponseWriter, at netip.AddrPort) {
	a := (*p.answers.Load())[at.Port()] // of a Service that is gone just now: nothing, which is right
	endpoints, healthy := a.check.family(at.Addr()).LocalEndpoints, p.o.Healthy()
	code := http.StatusServiceUnavailable
	if endpoints > 0 && healthy {
		code = http.StatusOK
	}
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(endpoints))
	writeJSON(w, code, fmt.Appendf(nil,
		"{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}",
		a.service.Namespace, a.service.Name, endpoints, healthy))
}
