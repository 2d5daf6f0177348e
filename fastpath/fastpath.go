// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package fastpath leads TCP from pod to pod past this node's netfilter and stack, by an eBPF program where packets enter the node: on its end of the pods'
// veth pairs and on the links to other nodes.
//
// It is a short cut and nothing else. What goes there is what the long way would only hand on; where it goes to, the routes say at that moment; and every
// packet that the program is not certain about goes the long way. So nothing depends on it: without it, or while its agent is away, everything works as it
// did. What it takes is not seen by any rule of netfilter, of whichever program: that is for who runs the cluster to want.
//
// The invariant: the program is on a device only while this process lives and [Target.Apply] was last told of a pod or a link there. No packet of a
// connection that NAT changes goes by it, and no first packet to an address at which anything answers for a Service.
//
// The one way in is [Target.Apply], which cannot fail: what does not work is off, and [Target.Report] says why. It works in the network namespace of the
// calling thread. docs/network.md is for who runs it, docs/design/0010-pods-past-netfilter.md has the reasons.
package fastpath

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
}

// Target is this node's fast path. Its methods may be called concurrently.
type Target struct {
	log *slog.Logger

	mu      sync.Mutex
	objects *objects // nil: not loaded
	off     string
	never   bool // this kernel does not take the program
	ranges  ranges
	last    *model.Snapshot // of the last Apply, and the links
	links   *nodenet.Links
	pods    map[netip.Addr]int // devices by the pods' addresses, as the kernel's map has them
	on      map[int]attachment
	left    map[int]string
}

// attachment is the program on a device.
type attachment struct {
	kind kind
	link link.Link
}

// kind is where a device leads: an enum of forward.c.
type kind uint32

const (
	toPod    kind = 1
	toNode   kind = 2
	toTunnel kind = 3
)

// objects are those of forward.c.
type objects struct {
	Program   *ebpf.Program `ebpf:"fairlead_pods"`
	Ranges    *ebpf.Map     `ebpf:"ranges"`
	Pods      *ebpf.Map     `ebpf:"pods"`
	Devices   *ebpf.Map     `ebpf:"devices"`
	Forwarded *ebpf.Map     `ebpf:"forwarded"`
}

func (o *objects) close() error {
	return errors.Join(o.Program.Close(), o.Ranges.Close(), o.Pods.Close(), o.Devices.Close(), o.Forwarded.Close())
}

// New returns a target that has done nothing yet. log may be nil.
func New(log *slog.Logger) *Target {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Target{log: log, pods: make(map[netip.Addr]int), on: make(map[int]attachment), left: make(map[int]string)}
}

// Apply brings the fast path to a snapshot: its ranges of pods, and this node's pods. To be called when the routes are there and before the rules are changed: a pod that is to end is asked about before they know of it.
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
	before := t.off
	if t.never || t.off != "" && !anew {
		t.last, t.links = s, links
		return
	}
	err := t.bring(s, links, anew)
	t.last, t.links = s, links
	if err != nil {
		t.unload()
		t.off = err.Error()
	} else {
		t.off = ""
	}
	switch {
	case t.off == before:
	case t.off != "":
		t.log.Warn("the pods' fast path is off: packets go the long way", "err", t.off)
	default:
		t.log.Info("the pods' fast path works again")
	}
}

// bring does what Apply is to do; after an error everything is to be taken away. anew has it look at every device again, whatever is known.
func (t *Target) bring(s *model.Snapshot, links *nodenet.Links, anew bool) error {
	moved := !links.Equal(t.links)
	anew = anew || t.objects == nil || s.Pods != t.last.Pods || moved
	if t.objects == nil {
		var err error
		if t.objects, err = load(); err != nil {
			t.never = true
			return err
		}
	}
	for prefix, what := range t.ranges.follow(s, links.MTU, moved) {
		var err error
		if what == 0 {
			err = ignoreMissing(t.objects.Ranges.Delete(keyOf(prefix)))
		} else {
			err = t.objects.Ranges.Put(keyOf(prefix), what)
		}
		if err != nil {
			return fmt.Errorf("write ranges of pods: %w", err)
		}
	}
	if !anew {
		return nil
	}
	return t.place(s, links)
}

// load puts the program into the kernel, on no device yet.
func load() (*objects, error) {
	spec, err := bpf.Forward()
	if err != nil {
		return nil, err
	}
	o := new(objects)
	switch err := spec.LoadAndAssign(o, nil); {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("load eBPF program: it needs the capabilities BPF, PERFMON and NET_ADMIN: %w", unix.EPERM)
	case err != nil:
		return nil, fmt.Errorf("load eBPF program, which needs Linux 6.6 with connection tracking and BTF: %w", err)
	}
	return o, nil
}

// unload takes the program off every device.
func (t *Target) unload() {
	for _, a := range t.on {
		a.link.Close()
	}
	clear(t.on)
	clear(t.pods)
	clear(t.left)
	t.ranges = ranges{}
	if t.objects != nil {
		t.objects.close()
		t.objects = nil
	}
}

// Close takes the program off every device: packets go the long way again.
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
	r := Report{Off: t.off}
	for _, a := range t.on {
		if a.kind == toPod {
			r.Pods++
		} else {
			r.Links++
		}
	}
	r.Left = slices.Sorted(maps.Values(t.left))
	if t.objects != nil {
		var each []uint64
		if err := t.objects.Forwarded.Lookup(uint32(0), &each); err == nil {
			for _, n := range each {
				r.Packets += n
			}
		}
	}
	return r
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Dump prints what the kernel has: the devices, the pods and the ranges, a line each.
func (t *Target) Dump() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		return "", fmt.Errorf("it is off: %s", cmp.Or(t.off, "nothing is programmed yet"))
	}
	var lines []string
	var dev, what uint32
	devices := t.objects.Devices.Iterate()
	for devices.Next(&dev, &what) {
		lines = append(lines, fmt.Sprintf("device %d leads to %s", dev, kind(what)))
	}
	var addr [16]byte
	pods := t.objects.Pods.Iterate()
	for pods.Next(&addr, &dev) {
		lines = append(lines, fmt.Sprintf("pod %s device %d", netip.AddrFrom16(addr).Unmap(), dev))
	}
	var key rangeKey
	ranges := t.objects.Ranges.Iterate()
	for ranges.Next(&key, &what) {
		line := fmt.Sprintf("range %s %s", key.prefix(), map[uint32]string{handOn: "hand on", askServices: "ask services"}[what&whatMask])
		if mtu := what >> mtuShift; mtu != 0 {
			line += fmt.Sprintf(" mtu %d", mtu)
		}
		lines = append(lines, line)
	}
	if err := errors.Join(devices.Err(), pods.Err(), ranges.Err()); err != nil {
		return "", fmt.Errorf("read eBPF maps: %w", err)
	}
	slices.Sort(lines)
	return strings.Join(append(lines, ""), "\n"), nil
}

func (k kind) String() string {
	return map[kind]string{toPod: "a pod", toNode: "other nodes", toTunnel: "other nodes through the tunnel"}[k]
}

// Collector is the metric of the packets that went by it.
func (t *Target) Collector() prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "fairlead_pod_fast_path_packets_total",
		Help: "Packets of TCP that went from pod to pod past netfilter; one that is to be segmented is one.",
	}, func() float64 { return float64(t.Report().Packets) })
}
