// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/explain"
	"github.com/fairlead/fairlead/fastpath"
	"github.com/fairlead/fairlead/health"
	"github.com/fairlead/fairlead/hold"
	"github.com/fairlead/fairlead/kube"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/metrics"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nft"
	"github.com/fairlead/fairlead/nodenet"
	"github.com/fairlead/fairlead/program"
	"github.com/fairlead/fairlead/socketlb"
	"github.com/fairlead/fairlead/status"
)

// Node is a running agent: the parts of one node, put together.
type Node struct {
	cfg     *config.Agent
	version string
	started time.Time
	held    *hold.Held
	log     *slog.Logger

	client  *kube.Client
	source  *kube.Source
	routes  *nodenet.Target
	fast    *fastpath.Target  // nil: it is not asked for
	sockets *socketlb.Target  // nil: it is not asked for
	answers *shortcut.Answers // of the DNS, on the fast path
	plane   *nft.Target
	names   *dns.Server
	state   *State
	metrics *prometheus.Registry
	explain *explain.Explainer
	kept    *kept
	proxy   *metrics.Proxy
	health  *health.Proxy
	ports   *health.Ports
	asProxy *health.Port

	ready    chan struct{}  // closed when the node can deliver
	podCIDRs []netip.Prefix // what pods were given addresses from when it was closed

	mu    sync.Mutex
	dnsOn []netip.AddrPort
	// dnsMetrics are where metrics are served beside the DNS.
	dnsMetrics []*health.Port
	// dnsStale is why the DNS goes on with a configuration that is not the last one; empty if it does not.
	dnsStale string
	limits   error // why the kernel's limits are not as configured
}

// Run is the agent of one node, in the network namespace of the process. It returns when ctx ends, which is no error, and leaves
// everything in the kernel as it is.
func Run(ctx context.Context, cfg *config.Agent, version string, log *slog.Logger) error {
	klog.SetSlogLogger(log)
	told := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	held, err := hold.Inherited(ctx)
	if err != nil {
		return err
	}
	if err := linux.RunSoon(); err != nil {
		log.Warn("while its processors are busy this node hears of changes late", "err", err)
	}
	n, err := newNode(cfg, version, held, log)
	if err != nil {
		return err
	}
	socket, err := takePlace(ctx, held, cfg, log)
	if err != nil {
		return err
	}
	defer n.plane.Close()
	log.Info("starting", "version", version, "pid", os.Getpid(), "server", n.client.Server(), "holder", held.Holder(), "beside", held.Beside())

	var wg sync.WaitGroup
	part := func(run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	part(func(ctx context.Context) error {
		if held.Beside() && n.WaitReady(ctx) != nil {
			return nil // until then the agent before answers here, who knows more
		}
		return status.Serve(ctx, socket, status.Handler(n, n.metricsHandler()))
	})
	part(func(ctx context.Context) error {
		select {
		case <-held.Refused():
			return hold.ErrRefused
		case <-ctx.Done():
			return nil
		}
	})
	part(func(ctx context.Context) error { n.source.Run(ctx); return nil })
	part(func(ctx context.Context) error {
		ways := &ways{Target: n.routes, fast: n.fast, sockets: n.sockets}
		loop := &Loop{Source: n.source, Routes: ways, Dataplane: n.plane, Names: n.names, Turn: held, State: n.state, Metrics: n.proxy, Logger: log,
			Rest: func() { go debug.FreeOSMemory() }} // the program's pages stay: the next change needs them
		loop.Run(ctx)
		ways.close() // nobody tells them of changes any more
		return nil
	})
	part(n.afterFirst)
	part(n.followRanges)
	part(func(ctx context.Context) error { n.kept.follow(ctx, n.state, n.source); return nil })
	part(n.balance)
	part(n.limit)
	if cfg.Corefile != "" {
		part(n.followCorefile)
	}
	if cfg.Healthz.IsValid() {
		part(func(ctx context.Context) error { n.health.Serve(ctx, cfg.Healthz.String()); return nil })
	}
	if cfg.Metrics.IsValid() {
		part(func(ctx context.Context) error {
			n.asProxy.Serve(ctx, cfg.Metrics.String(), proxyHandler(cfg, n.metricsHandler()))
			return nil
		})
	}
	<-ctx.Done()
	wg.Wait()
	if told.Err() == nil {
		return context.Cause(ctx) // a part has failed
	}
	log.Info("stopped; the kernel goes on")
	return nil
}

func newNode(cfg *config.Agent, version string, held *hold.Held, log *slog.Logger) (*Node, error) {
	n := &Node{cfg: cfg, version: version, started: time.Now(), held: held, log: log, state: NewState(), answers: shortcut.New(), metrics: prometheus.NewRegistry(), ready: make(chan struct{})}
	var err error
	if n.client, err = kube.NewClient(cfg.Kubeconfig, cfg.APIServers...); err != nil {
		return nil, err
	}
	if n.names, err = n.newNames(); err != nil {
		return nil, err
	}
	n.kept = newKept(cfg, log)
	n.proxy = metrics.New(metrics.Options{Dataplane: n.dataplane, Dropped: dropped})
	view := cfg.View()
	view.OwnPorts = ownPorts(cfg, n.names.Ports())
	n.source = kube.New(kube.Options{Client: n.client, Events: n.proxy, Logger: log, Config: view, Kept: n.kept.read(view), Relisting: relisting})
	n.routes = nodenet.New(nodenet.Options{Mode: cfg.Tunnel, Port: cfg.TunnelPort, Logger: log})
	if cfg.FastPath {
		n.fast = fastpath.New(n.answers, log)
		n.metrics.MustRegister(n.fast.Collectors()...)
	}
	if cfg.SocketLB {
		n.sockets = socketlb.New(n.namespaces, log)
		n.metrics.MustRegister(n.sockets.Collectors()...)
	}
	n.plane = nft.New(nft.Options{Logger: log, Flows: func(ipv6 bool, took time.Duration, removed int) {
		n.proxy.Reconciled(familyOf(ipv6), took, removed)
	}})
	n.health = health.New(health.Options{Progress: n.state.Pending, Eligible: n.eligible, Healthz: n.proxy.Healthz, Livez: n.proxy.Livez, Listen: held.Listen, Logger: log})
	n.ports = health.NewPorts(health.PortsOptions{Healthy: n.health.Healthy, Failed: n.portFailed, Listen: held.Listen})
	n.asProxy = health.NewPort("metrics are not served", held.Listen, log)
	if len(cfg.DNS) > 0 {
		n.metrics.MustRegister(n.names.Collectors()...)
	}
	n.metrics.MustRegister(n.proxy.Collectors()...)
	n.metrics.MustRegister(n.kept.metrics.Collectors()...)
	n.explain = n.explainer()
	return n, nil
}

func familyOf(ipv6 bool) metrics.Family {
	if ipv6 {
		return metrics.IPv6
	}
	return metrics.IPv4
}

// dataplane is what a scrape asks.
func (n *Node) dataplane() metrics.Dataplane {
	s := n.plane.Stats()
	return metrics.Dataplane{Services: s.Services, Endpoints: s.Endpoints, Quarantined: s.Quarantined,
		Transactions: s.Transactions, Elements: s.Elements, Drift: s.Drift}
}

func dropped() (map[string]uint64, error) {
	d, err := nft.ReadDropped(nft.Options{})
	return map[string]uint64{"no_local_endpoint": d.NoLocal, "not_in_source_ranges": d.NotAllowed, "refused_once": d.HeldBack}, err
}

// eligible reports whether load balancers may use this node, which is not known before the first snapshot.
func (n *Node) eligible() bool {
	snap := n.state.Acknowledged()
	if snap == nil {
		return true
	}
	self := snap.Node()
	return self != nil && !self.Leaving
}

// portFailed says that a health check node port cannot be opened.
func (n *Node) portFailed(f health.Failure) {
	n.log.Warn("cannot answer a Service's health checks", "service", f.Service, "addr", f.Addr, "err", f.Err)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := n.client.Warn(ctx, f.Service, n.cfg.Node, "FailedToStartServiceHealthcheck", fmt.Sprintf("node %s %v", n.cfg.Node, f)); err != nil {
			n.log.Warn("cannot make an Event", "service", f.Service, "err", err)
		}
	}()
}

// afterFirst does, after the first acknowledged snapshot, what tells others that this node can deliver: it opens the DNS sockets (before that, other
// nodes answer for this one by the rules that are there already), writes the CNI configuration, and says so in the Node's status.
func (n *Node) afterFirst(ctx context.Context) error {
	usable := func(s *model.Snapshot) bool {
		self := s.Node()
		return self != nil && len(self.Addrs) > 0 && (n.cfg.Left.Has(model.Network) || len(self.PodCIDRs) > 0)
	}
	if err := n.state.Wait(ctx, usable); err != nil {
		return err
	}
	self := n.state.Acknowledged().Node()
	var addrs []netip.AddrPort
	if len(n.cfg.DNS) > 0 {
		for _, a := range slices.Concat(n.cfg.DNS, self.Addrs) {
			for _, port := range n.names.Ports() {
				addrs = append(addrs, netip.AddrPortFrom(a, port))
			}
		}
	}
	if err := n.held.Answer(ctx); err != nil {
		return err
	}
	sockets, err := n.listenDNS(addrs)
	if err != nil {
		return fmt.Errorf("open DNS sockets: %w", err)
	}
	n.mu.Lock()
	n.dnsOn = sockets.Addrs()
	n.mu.Unlock()
	served := make(chan error, 1)
	go func() {
		err := n.serveDNS(ctx, sockets)
		n.held.Stopped()
		served <- err
	}()
	if err := n.plane.AnswerDNS(true); err != nil {
		return err
	}
	if err := n.held.Serving(); err != nil {
		return err
	}
	if len(n.cfg.DNS) > 0 {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", n.metricsHandler())
		for _, a := range self.Addrs {
			port := health.NewPort("metrics of the DNS are not served", n.held.Listen, n.log)
			n.mu.Lock()
			n.dnsMetrics = append(n.dnsMetrics, port)
			n.mu.Unlock()
			go port.Serve(ctx, netip.AddrPortFrom(a, metricsPort).String(), mux)
		}
	}
	if !n.cfg.Left.Has(model.Network) {
		n.healLeases(self.PodCIDRs)
		if err := writeCNIConf(n.cfg, self.PodCIDRs); err != nil {
			return err
		}
		n.podCIDRs = self.PodCIDRs
	}
	close(n.ready)
	n.held.Rest()
	settleMemory()
	n.log.Info("ready", "generation", n.state.Acknowledged().Generation, "took", time.Since(n.started))
	n.announceReady(ctx)
	return <-served
}

// How much garbage the collector waits for, in percent of what is in use, and how much while lists come in again, of which most is garbage at once.
const (
	settledGC   = 30
	relistingGC = 10
)

// settleMemory gives back what lists needed, and what of the program only the start did. From then on little changes, and memory on every node is worth more than a
// collector that runs less often.
func settleMemory() {
	collectAt(settledGC)
	debug.FreeOSMemory()
	_ = program.Release() // what it cannot give up it keeps
}

// relisting keeps memory small while lists come in again, which need other parts of the program than what was done before. They may end all at once: giving back is for
// later.
func relisting(on bool) {
	if on {
		collectAt(relistingGC)
		_ = program.Release()
	} else {
		go settleMemory()
	}
}

// collectAt sets the collector, unless somebody has.
func collectAt(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// metricsPort is where the Service kube-dns leads those who collect its metrics.
const metricsPort = 9153

func (n *Node) metricsHandler() http.Handler {
	return promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{})
}

// announceReady tells the API server, and goes on telling it until it has heard: pods' network is there, if that is this agent's to say, and what is
// to keep pods away until now can go.
func (n *Node) announceReady(ctx context.Context) {
	tell := func(what string, f func(context.Context) error) {
		said := false
		for pause := retryFirst; ; pause = min(2*pause, retryMost) {
			err := f(ctx)
			if err == nil || ctx.Err() != nil {
				return
			}
			if !said {
				n.log.Warn("cannot "+what+", trying again until it works", "err", err)
			}
			said = true
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
	if !n.cfg.Left.Has(model.Network) {
		tell("say in the Node's status that the network is available", func(ctx context.Context) error { return n.client.SetNetworkAvailable(ctx, n.cfg.Node) })
	}
	if taint := n.cfg.StartupTaint; taint != "" {
		tell("remove the Node's taint "+taint, func(ctx context.Context) error { return n.client.RemoveTaint(ctx, n.cfg.Node, taint) })
	}
}
