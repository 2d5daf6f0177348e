// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package socketlb has pods' TCP connections to Services lead to an endpoint from the beginning, by eBPF programs that the kernel asks at connect(): nothing is left to
// translate, so a connection to a Service costs what one to its endpoint does.
//
// It is a short cut and nothing else. What it leads, and where to, is what [model.Snapshot.Lookup] decides for a pod; and what it does not have, has just lost or has
// no room for, the rules of package nft translate as ever. So nothing depends on it: without it, or while its agent is away, everything works as it did.
//
// The invariant: what connects after [Target.Apply] has returned is not led to an endpoint that the snapshot does not have for that Service, and none of a process that is not
// in a pod's network namespace is led at all; and the programs are there only while this process lives and is told of changes.
//
// The one way in is [Target.Apply], which cannot fail: what does not work is off, and [Target.Report] says why. docs/network.md is for who runs it,
// docs/design/0012-services-at-the-socket.md has the reasons.
package socketlb

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/bpf"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
)

// Report is what is led at the socket.
type Report struct {
	// Off is why nothing is, in words that follow "pods' connections are not led at their sockets: "; empty if they are.
	Off string
	// Pods is how many network namespaces of pods are known, Services how many addresses and ports of Services lead somewhere.
	Pods, Services int
	// Crowded is how many addresses and ports of Services there was no room for.
	Crowded int
	// Connections is how many were led since the programs were loaded.
	Connections uint64
}

// Target is what this node's kernel leads at the socket. Its methods may be called concurrently.
type Target struct {
	log        *slog.Logger
	namespaces func() (map[netip.Addr]uint64, error)

	mu      sync.Mutex
	objects *objects // nil: not loaded
	links   []link.Link
	trial   bpf.Trial
	last    *model.Snapshot           // of the last Apply
	pods    map[netip.Addr]uint64     // as namespaces said
	known   map[uint64]struct{}       // of those, what the kernel has
	groups  map[netip.AddrPort]*group // by where clients connect to
	owned   map[model.Name][]netip.AddrPort
	crowded map[netip.AddrPort]model.Name // of what Services, for which there is no room
	barred  map[model.Name]struct{}       // that are not led for where an endpoint is
	number  uint32                        // of the last group
}

// objects are those of connect.c.
type objects struct {
	Connect4     *ebpf.Program `ebpf:"connect4"`
	Connect6     *ebpf.Program `ebpf:"connect6"`
	Getpeername4 *ebpf.Program `ebpf:"getpeername4"`
	Getpeername6 *ebpf.Program `ebpf:"getpeername6"`
	Namespaces   *ebpf.Map     `ebpf:"namespaces"`
	Services     *ebpf.Map     `ebpf:"services"`
	Endpoints    *ebpf.Map     `ebpf:"endpoints"`
	Translations *ebpf.Map     `ebpf:"translations"`
	Translated   *ebpf.Map     `ebpf:"translated"`
}

func (o *objects) close() {
	for _, p := range []*ebpf.Program{o.Connect4, o.Connect6, o.Getpeername4, o.Getpeername6} {
		p.Close()
	}
	for _, m := range []*ebpf.Map{o.Namespaces, o.Services, o.Endpoints, o.Translations, o.Translated} {
		m.Close()
	}
}

// New returns a target that has done nothing yet. namespaces tells the network namespaces of this node's pods by the pods' addresses, each by its cookie
// (SO_NETNS_COOKIE; 0: not known); it is asked whenever they may have changed. log may be nil.
func New(namespaces func() (map[netip.Addr]uint64, error), log *slog.Logger) *Target {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &Target{log: log, namespaces: namespaces}
	t.unload()
	return t
}

// Apply brings what is led to a snapshot. To be called when the routes are there, and before the rules are changed: what is gone then leads nowhere as soon as they know.
func (t *Target) Apply(s *model.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s != t.last {
		t.apply(s, false)
	}
}

// Verify looks whether pods have come or gone since, and tries again what did not work.
func (t *Target) Verify() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last != nil {
		t.apply(t.last, true)
	}
}

// Attached is told that a pod has a network namespace, which namespaces tells from now on.
func (t *Target) Attached() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		return
	}
	if err := t.setPods(); err != nil {
		t.log.Warn("a new pod's sockets are not led yet", "err", err)
	}
}

func (t *Target) apply(s *model.Snapshot, anew bool) {
	if !t.trial.Due(anew) {
		t.last = s
		return
	}
	err := t.bring(s, anew)
	t.last = s
	if err != nil {
		t.unload()
	}
	t.trial.End(err, t.log, "leading pods' sockets", "their connections to Services are translated packet by packet")
}

// bring does what Apply is to do; after an error everything is to be taken away. anew has it look at the pods, whatever is known of them.
func (t *Target) bring(s *model.Snapshot, anew bool) (err error) {
	first := t.objects == nil
	if first {
		if t.objects, err = load(); err != nil {
			return err
		}
		for svc := range s.Owners {
			if err := t.setService(s, svc.Name); err != nil {
				return err
			}
		}
	} else {
		touched := t.touched(t.last, s)
		if anew {
			for _, name := range t.crowded {
				touched[name] = struct{}{}
			}
		}
		for name := range touched {
			if err := t.setService(s, name); err != nil {
				return err
			}
		}
	}
	if first || anew || s.Pods != t.last.Pods {
		if err := t.setPods(); err != nil {
			return err
		}
	}
	if first {
		return t.attach()
	}
	return nil
}

// load puts the programs into the kernel, where nobody asks them yet.
func load() (*objects, error) {
	spec, err := bpf.Connect()
	if err != nil {
		return nil, err
	}
	o := new(objects)
	if err := spec.LoadAndAssign(o, nil); err != nil {
		if !linux.Capable(unix.CAP_NET_ADMIN) || !linux.Capable(unix.CAP_BPF) && !linux.Capable(unix.CAP_SYS_ADMIN) {
			return nil, fmt.Errorf("load eBPF programs: it needs the capabilities BPF and NET_ADMIN: %w", unix.EPERM)
		}
		return nil, fmt.Errorf("load eBPF programs, which need Linux 5.14, and nobody who forbids them, as seccomp may: %w", err)
	}
	return o, nil
}

// attach has every process of the machine ask the programs. They are in the first cgroup, because nobody but the container runtime knows those of pods, and may
// be beside others' programs.
func (t *Target) attach() error {
	path, err := linux.Cgroup2Root()
	if err != nil {
		return err
	}
	for _, p := range []struct {
		at      ebpf.AttachType
		program *ebpf.Program
	}{
		{ebpf.AttachCgroupInet4GetPeername, t.objects.Getpeername4},
		{ebpf.AttachCgroupInet6GetPeername, t.objects.Getpeername6},
		{ebpf.AttachCGroupInet4Connect, t.objects.Connect4},
		{ebpf.AttachCGroupInet6Connect, t.objects.Connect6},
	} {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: p.at, Program: p.program})
		if err != nil {
			return fmt.Errorf("attach eBPF program to cgroup %s: %w", path, err)
		}
		t.links = append(t.links, l)
	}
	return nil
}

// setPods brings the kernel to the pods there are.
func (t *Target) setPods() error {
	there, err := t.namespaces()
	if err != nil {
		return fmt.Errorf("list pods' network namespaces: %w", err)
	}
	gone := maps.Clone(t.known)
	for _, cookie := range there {
		delete(gone, cookie)
		if _, ok := t.known[cookie]; ok || cookie == 0 {
			continue
		}
		if err := t.objects.Namespaces.Put(cookie, uint32(0)); err != nil {
			return fmt.Errorf("write network namespaces: %w", err)
		}
		t.known[cookie] = struct{}{}
	}
	for cookie := range gone {
		if err := bpf.IgnoreMissing(t.objects.Namespaces.Delete(cookie)); err != nil {
			return fmt.Errorf("write network namespaces: %w", err)
		}
		delete(t.known, cookie)
	}
	t.pods = there
	return nil
}

// unload takes the programs away.
func (t *Target) unload() {
	for _, l := range t.links {
		l.Close()
	}
	if t.objects != nil {
		t.objects.close()
	}
	t.objects, t.links = nil, nil
	t.pods, t.known, t.groups = nil, make(map[uint64]struct{}), make(map[netip.AddrPort]*group)
	t.owned, t.crowded = make(map[model.Name][]netip.AddrPort), make(map[netip.AddrPort]model.Name)
	t.barred = make(map[model.Name]struct{})
}

// Suspend takes the programs away until Verify is called: another agent follows the changes, and it would not be told of them.
func (t *Target) Suspend() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unload()
}

// Close takes the programs away: connections are translated packet by packet again.
func (t *Target) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unload()
	t.last = nil
}

// Report says what is led now.
func (t *Target) Report() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Report{Off: t.trial.Off(), Pods: len(t.known), Services: len(t.groups), Crowded: len(t.crowded)}
	if t.objects != nil {
		r.Connections = bpf.Total(t.objects.Translated)
	}
	return r
}

// Read asks the kernel where connections of a pod to an address and port are led, in no order; nothing: they are left to the rules.
func (t *Target) Read(pod netip.Addr, at netip.AddrPort) ([]netip.AddrPort, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		return nil, nil
	}
	var nothing uint32
	if err := t.objects.Namespaces.Lookup(t.pods[pod], &nothing); err != nil {
		return nil, bpf.IgnoreMissing(err)
	}
	return t.objects.read(placeOf(at))
}

// Dump prints what the kernel has: the addresses and ports of Services with their endpoints, and the network namespaces of pods, a line each.
func (t *Target) Dump() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		return "", fmt.Errorf("it is off: %s", cmp.Or(t.trial.Off(), "nothing is programmed yet"))
	}
	var lines []string
	var service place
	var has entry
	services := t.objects.Services.Iterate()
	for services.Next(&service, &has) {
		to, err := t.objects.read(service)
		if err != nil {
			return "", err
		}
		slices.SortFunc(to, netip.AddrPort.Compare)
		line := fmt.Sprintf("service %s leads to", service)
		for _, a := range to {
			line += " " + a.String()
		}
		lines = append(lines, line)
	}
	var cookie uint64
	var nothing uint32
	pods := t.objects.Namespaces.Iterate()
	for pods.Next(&cookie, &nothing) {
		lines = append(lines, fmt.Sprintf("network namespace %d is a pod's", cookie))
	}
	if err := errors.Join(services.Err(), pods.Err()); err != nil {
		return "", fmt.Errorf("read eBPF maps: %w", err)
	}
	slices.Sort(lines)
	return strings.Join(append(lines, ""), "\n"), nil
}

// Collectors are the metrics of what was led.
func (t *Target) Collectors() []prometheus.Collector {
	return []prometheus.Collector{prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "fairlead_socket_lb_connections_total",
		Help: "TCP connections of pods to Services that were led to an endpoint when they were made.",
	}, func() float64 { return float64(t.Report().Connections) })}
}
