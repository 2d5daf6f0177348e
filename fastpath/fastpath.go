// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package fastpath leads TCP from pod to pod, and from pods to Services and back, past this node's netfilter and stack, by eBPF programs where packets enter the
// node: on its end of the pods' veth pairs, on the links to other nodes and on the tunnel. There pods' questions to the DNS are answered, too, with what package
// shortcut has.
//
// It is a short cut and nothing else. What goes there is what the long way would only hand on; where it goes to is where package nodenet's routes lead; and every
// packet that a program is not certain about goes the long way. So nothing depends on it: without it, or while its agent is away, everything works as it did.
// What it takes is not seen by any rule of netfilter, of whichever program: that is for who runs the cluster to want.
//
// The invariant: a program is on a device only while this process lives and [Target.Apply] was last told of a pod or a way there. Which endpoint a connection to
// a Service has is conntrack's to say: its first packets and its last ones go the long way, and in between the programs do what its entry says.
//
// The one way in is [Target.Apply], which cannot fail: what does not work is off, and [Target.Report] says why. It works in the network namespace of the
// calling thread. docs/network.md is for who runs it, docs/design/0010-pods-past-netfilter.md has the reasons.
package fastpath

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/bpf"
	"github.com/fairlead/fairlead/dns/shortcut"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/nodenet"
)

// Report is what the fast path does.
type Report struct {
	// Off is why it is off, in words that follow "the pods' fast path is off: "; empty if it is not.
	Off string
	// Left are devices that it is not on, each with the reason, by name.
	Left []string
	// Pods and Links are the numbers of devices that it is on.
	Pods, Links int
	// Packets is how many went by it since it was loaded; one that is to be segmented is one.
	Packets uint64
	// Answers is how many questions to the DNS it has answered since it was loaded.
	Answers uint64
}

// Target is this node's fast path. Its methods may be called concurrently.
type Target struct {
	log     *slog.Logger
	answers *shortcut.Answers

	mu      sync.Mutex
	objects *objects // nil: not loaded
	trial   bpf.Trial
	ranges  ranges
	last    *model.Snapshot // of the last Apply, and the links
	links   *nodenet.Links
	ways    map[netip.Prefix]nodenet.Way // of the links, those to devices that a program can be on
	pods    map[netip.Addr]pod           // as the kernel's map has them
	on      map[int]attachment
	devices map[int]device // those of pods and ways, as far as they were looked at
}

// attachment is a program on a device.
type attachment struct {
	kind kind
	link link.Link
}

// kind is where a device leads.
type kind int

const (
	toPod kind = iota
	toNode
)

// pod is what is said of a pod of this node in packet.h's struct pod.
type pod struct{ What, Dev uint32 }

// objects are those of forward.c.
type objects struct {
	FromPod     *ebpf.Program `ebpf:"from_pod"`
	FromNode    *ebpf.Program `ebpf:"from_node"`
	Ranges      *ebpf.Map     `ebpf:"ranges"`
	Pods        *ebpf.Map     `ebpf:"pods"`
	Established *ebpf.Map     `ebpf:"established"`
	Forwarded   *ebpf.Map     `ebpf:"forwarded"`
	Answers     *ebpf.Map     `ebpf:"answers"`
	Slots       *ebpf.Map     `ebpf:"slots"`
	Askers      *ebpf.Map     `ebpf:"askers"`
	Counts      *ebpf.Map     `ebpf:"counts"`
}

func (o *objects) close() error {
	return errors.Join(o.FromPod.Close(), o.FromNode.Close(), o.Ranges.Close(), o.Pods.Close(), o.Established.Close(), o.Forwarded.Close(),
		o.Answers.Close(), o.Slots.Close(), o.Askers.Close(), o.Counts.Close())
}

// New returns a target that has done nothing yet, and will answer pods with what is in answers. log may be nil.
func New(answers *shortcut.Answers, log *slog.Logger) *Target {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Target{log: log, answers: answers, pods: make(map[netip.Addr]pod), on: make(map[int]attachment), devices: make(map[int]device)}
}

// Apply brings the fast path to a snapshot: its ranges of pods, and this node's pods. To be called when the routes are there, and before the rules are changed: a
// pod that is to end is asked about before they know of it. The first time the rules are to be there too, because they have the kernel load connection tracking.
func (t *Target) Apply(s *model.Snapshot, links *nodenet.Links) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s != t.last || !links.Equal(t.links) {
		t.apply(s, links, false)
	}
}

// Verify looks whether devices have come, gone or changed since, and tries again what did not work.
func (t *Target) Verify(links *nodenet.Links) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last != nil {
		t.apply(t.last, links, true)
	}
}

func (t *Target) apply(s *model.Snapshot, links *nodenet.Links, anew bool) {
	if !t.trial.Due(anew) {
		t.last, t.links = s, links
		return
	}
	err := t.bring(s, links, anew)
	t.last, t.links = s, links
	if err != nil {
		t.unload()
	}
	t.trial.End(err, t.log, "the pods' fast path", "packets go the long way")
}

// bring does what Apply is to do; after an error everything is to be taken away. anew has it look at every device again, whatever is known.
func (t *Target) bring(s *model.Snapshot, links *nodenet.Links, anew bool) error {
	moved := !links.Equal(t.links)
	if t.objects == nil {
		anew = true
		var err error
		if t.objects, err = load(); err != nil {
			return err
		}
		o := t.objects
		if err := t.answers.Load(shortcut.Maps{Answers: o.Answers, Slots: o.Slots, Counts: o.Counts, Pods: o.Pods, Askers: o.Askers}); err != nil {
			return err
		}
	}
	if anew {
		clear(t.devices)
		if err := t.objects.keep(); err != nil {
			return err
		}
	}
	var h *netlink.Handle
	placed := anew || moved || s.Pods != t.last.Pods
	if placed {
		var err error
		if h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		defer h.Close()
		if t.ways, err = t.covered(h, links); err != nil {
			return err
		}
	}
	put, gone := t.ranges.follow(s, t.ways, anew || moved)
	for prefix, way := range put {
		if err := t.objects.Ranges.Put(keyOf(prefix), way); err != nil {
			return fmt.Errorf("write ranges of pods: %w", err)
		}
	}
	for _, prefix := range gone {
		if err := bpf.IgnoreMissing(t.objects.Ranges.Delete(keyOf(prefix))); err != nil {
			return fmt.Errorf("write ranges of pods: %w", err)
		}
	}
	for a, pod := range t.pods {
		if what := t.ranges.what(a); what != pod.What {
			pod.What = what
			if err := t.setPod(a, pod); err != nil {
				return err
			}
		}
	}
	if !placed {
		return nil
	}
	return t.place(h, s, links, anew)
}

// missing says which capabilities the programs need that this thread has not; empty: it has all. The kernel's own errors say it in many ways.
func missing() string {
	if linux.Capable(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN) {
		return ""
	}
	if _, err := os.Stat("/sys/kernel/btf/nf_conntrack"); err == nil {
		return "it needs the capabilities SYS_ADMIN and NET_ADMIN, because connection tracking is a module of this kernel"
	}
	if !linux.Capable(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN) {
		return "it needs the capabilities BPF, PERFMON and NET_ADMIN"
	}
	return ""
}

// load puts the programs into the kernel, on no device yet. Connection tracking has to be there.
//
// A connection may change between the long way and this one, so that connection tracking sees some of its packets and not others. What it then took for out of
// place it would not translate, and a rule of another program may drop it: kube-proxy has one.
func load() (*objects, error) {
	spec, err := bpf.Forward()
	if err != nil {
		return nil, err
	}
	o := new(objects)
	if err := spec.LoadAndAssign(o, nil); err != nil {
		if missing := missing(); missing != "" {
			return nil, fmt.Errorf("load eBPF program: %s: %w", missing, unix.EPERM)
		}
		return nil, fmt.Errorf("load eBPF program, which needs Linux 6.6 with connection tracking and BTF: %w", err)
	}
	for _, lenient := range []string{"be_liberal", "ignore_invalid_rst", "loose"} {
		if err := linux.WriteSysctl("net/netfilter/nf_conntrack_tcp_"+lenient, "1"); err != nil {
			return nil, errors.Join(err, o.close())
		}
	}
	return o, nil
}

// times is forward.c's struct times, in milliseconds.
type times struct{ Idle, Unacknowledged uint32 }

// keep tells the programs for how long connection tracking keeps a connection that nothing is heard of.
func (o *objects) keep() error {
	idle, err := timeout("established")
	if err != nil {
		return err
	}
	unacknowledged, err := timeout("unacknowledged")
	if err != nil {
		return err
	}
	if err := o.Established.Put(uint32(0), times{idle, min(unacknowledged, idle)}); err != nil {
		return fmt.Errorf("write the times of established connections: %w", err)
	}
	return nil
}

// timeout is one of connection tracking's, in milliseconds. The kernel's function takes 24 days at most.
func timeout(name string) (uint32, error) {
	key := "net/netfilter/nf_conntrack_tcp_timeout_" + name
	value, err := linux.ReadSysctl(key)
	if err != nil {
		return 0, err
	}
	seconds, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return uint32(min(seconds*1000, math.MaxInt32)), nil
}

// unload takes the programs off every device.
func (t *Target) unload() {
	t.answers.Unload() // first: what is still on a device then answers nothing
	for _, a := range t.on {
		a.link.Close()
	}
	clear(t.on)
	clear(t.pods)
	clear(t.devices)
	t.ranges = ranges{}
	if t.objects != nil {
		t.objects.close()
		t.objects = nil
	}
}

// Close takes the programs off every device: packets go the long way again.
func (t *Target) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unload()
	t.last = nil
}

// Report says what the fast path does now.
func (t *Target) Report() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Report{Off: t.trial.Off(), Answers: t.answers.Answered()}
	for _, a := range t.on {
		if a.kind == toPod {
			r.Pods++
		} else {
			r.Links++
		}
	}
	for _, d := range t.devices {
		if d.why != "" {
			r.Left = append(r.Left, d.why)
		}
	}
	slices.Sort(r.Left)
	if t.objects != nil {
		r.Packets = bpf.Total(t.objects.Forwarded)
	}
	return r
}

// Course is how much of a TCP connection goes the fast way on this node.
type Course string

const (
	// LongWay: nothing of it, or what its first packet decides.
	LongWay Course = ""
	// Established: what is between its first packets and its last ones, unless its source is replaced.
	Established Course = "established"
	// Whole: all of it.
	Whole Course = "whole"
)

// Course reads from the kernel how a connection from one address to another goes.
func (t *Target) Course(src, dst netip.Addr) (Course, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		return LongWay, nil
	}
	var from, to shortcut.Pod
	if err := t.objects.Pods.Lookup(src.As16(), &from); err != nil {
		return LongWay, bpf.IgnoreMissing(err)
	}
	if _, ok := t.on[int(from.Dev)]; !ok {
		return LongWay, nil
	}
	err := t.objects.Pods.Lookup(dst.As16(), &to)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		var w way
		err = t.objects.Ranges.Lookup(keyOf(netip.PrefixFrom(dst, dst.BitLen())), &w)
		to = shortcut.Pod{What: w.What, Dev: w.Dev}
	}
	switch {
	case err != nil:
		return LongWay, bpf.IgnoreMissing(err)
	case to.What&services != 0:
		return Established, nil
	case to.What&askServices != 0 || to.Dev == 0:
		return LongWay, nil
	}
	return Whole, nil
}

// Dump prints what the kernel has: the devices, the pods and the ranges, a line each.
func (t *Target) Dump() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		return "", fmt.Errorf("it is off: %s", cmp.Or(t.trial.Off(), "nothing is programmed yet"))
	}
	var lines []string
	for dev, a := range t.on {
		lines = append(lines, fmt.Sprintf("device %d leads to %s", dev, a.kind))
	}
	var addr [16]byte
	var pod shortcut.Pod
	pods := t.objects.Pods.Iterate()
	for pods.Next(&addr, &pod) {
		lines = append(lines, fmt.Sprintf("pod %s device %d%s", netip.AddrFrom16(addr).Unmap(), pod.Dev, asking(pod.What)))
	}
	var key rangeKey
	var way way
	ranges := t.objects.Ranges.Iterate()
	for ranges.Next(&key, &way) {
		line := fmt.Sprintf("range %s %s%s", key.prefix(), way, asking(way.What))
		if way.Dev != 0 {
			line += fmt.Sprintf(" device %d mtu %d", way.Dev, way.MTU)
		}
		lines = append(lines, line)
	}
	if err := errors.Join(pods.Err(), ranges.Err()); err != nil {
		return "", fmt.Errorf("read eBPF maps: %w", err)
	}
	slices.Sort(lines)
	return strings.Join(append(lines, ""), "\n"), nil
}

func (k kind) String() string { return [...]string{"a pod", "other nodes"}[k] }

// asking is what Dump says of an address at which something answers for a Service.
func asking(what uint32) string {
	if what&askServices != 0 {
		return " (new connections ask services)"
	}
	return ""
}

// Collectors are the metrics of what went by it.
func (t *Target) Collectors() []prometheus.Collector {
	counter := func(name, help string, of func(Report) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(of(t.Report())) })
	}
	return []prometheus.Collector{
		counter("fairlead_pod_fast_path_packets_total", "Packets of TCP that went from pod to pod, or between pods and Services, past netfilter; one that is to be segmented is one.",
			func(r Report) uint64 { return r.Packets }),
		counter("fairlead_pod_fast_path_answers_total", "Questions of pods to the cluster's DNS that were answered in the kernel.", func(r Report) uint64 { return r.Answers }),
	}
}
