// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package nodenet leads to the pods of other nodes: for each of a node's pod ranges a plain route by way of that node's
// address (the mode others call host-gw), without encapsulation and without NAT.
//
// It also makes two kinds of route for the node itself: cluster DNS's virtual addresses are delivered locally, to the agent's
// sockets, and what is sent to an address of this node's own range that no pod has is refused here rather than sent
// back to where it came from.
//
// The invariant: every route it makes has the protocol number [linux.RouteProtocol], and of the routes with that number it
// removes only such as it makes; the host routes of pods, which package podnet makes, and other programs' routes are
// never touched, not even one that is in the way. Routes outlive the agent; a start writes only what differs.
//
// The way in is [Target.Add] before Services may lead to a new node's pods, and [Target.Prune] when none leads to a gone one's. Everything works
// in the network namespace of the calling thread.
//
// Reverse path filtering (rp_filter) is left as it is: every one of these routes goes where the packets from there come
// in, so that even its strict mode passes what is right.
package nodenet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/model"
)

// Options of a Target.
type Options struct{ Logger *slog.Logger }

// Target is this node's routes. Its methods may be called concurrently.
type Target struct {
	log *slog.Logger

	mu       sync.Mutex
	last     *model.Snapshot // of the last Add
	have     map[key]route   // what the kernel has, as far as it is known
	stale    bool            // it is not known well enough
	problems []string
	ipv6     bool // forwarding of IPv6 is on
	localnet bool // what has a loopback address may be routed
}

// New returns a target that has done nothing yet.
func New(o Options) *Target {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Target{log: o.Logger, stale: true}
}

// Apply is Add and then Prune, for callers that have nothing to do between them.
func (t *Target) Apply(ctx context.Context, s *model.Snapshot) error {
	if err := t.Add(ctx, s); err != nil {
		return err
	}
	return t.Prune(ctx, s)
}

// Add makes every route of the snapshot that is not there yet; one that leads elsewhere now is changed in one step. A node that cannot
// be reached is no error: the others get their routes, Problems names it, and it is tried again each time.
func (t *Target) Add(ctx context.Context, s *model.Snapshot) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.stale && len(t.problems) == 0 && sameRoutes(t.last, s) && (t.localnet || !needsLocalnet(s)) {
		t.last = s
		return nil
	}
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := t.forward(s); err != nil {
		return err
	}
	if err := t.read(h); err != nil {
		return err
	}
	wishes, problems := desired(s)
	for _, w := range wishes {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("add routes: %w", err)
		}
		old, had := t.have[w.key()]
		if had && old == w.route {
			continue
		}
		if err := t.write(h, w.route, had); err != nil {
			problems = append(problems, w.problem(w.who, err))
			continue
		}
		t.log.Info("route added", "to", w.dst, "via", w.via, "for", w.who)
	}
	t.report(problems)
	t.last = s
	return nil
}

// write makes a route, in place of an older one of ours if there is one. Replacing a route does not look at its protocol, so where another
// program has one to the same destination, ours is taken away first, and it is the other's that stays.
func (t *Target) write(h *netlink.Handle, r route, had bool) error {
	if had {
		others, err := r.strangers(h)
		if err != nil {
			return err
		}
		if len(others) == 0 && t.have[r.key()].kind == r.kind {
			err := h.RouteReplace(r.netlink())
			if err == nil {
				t.have[r.key()] = r
			}
			return err
		}
		if err := t.have[r.key()].remove(h); err != nil {
			return err
		}
		delete(t.have, r.key())
	}
	err := h.RouteAdd(r.netlink())
	if errors.Is(err, unix.EEXIST) {
		if others, err := r.strangers(h); err == nil && len(others) > 0 {
			return fmt.Errorf("another program's route (protocol %d) is in the way: remove it if nothing needs it", others[0].Protocol)
		}
		t.stale = true // it is ours and was not known
	}
	if err == nil {
		t.have[r.key()] = r
	}
	return err
}

// Prune removes the routes that the snapshot does not ask for.
func (t *Target) Prune(ctx context.Context, s *model.Snapshot) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have == nil {
		return nil // nothing was added yet: what is there may be in use
	}
	wishes, _ := desired(s)
	keep := make(map[key]struct{}, len(wishes))
	for _, w := range wishes {
		keep[w.key()] = struct{}{}
	}
	var gone []route
	for k, r := range t.have {
		if _, ok := keep[k]; !ok {
			gone = append(gone, r)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	slices.SortFunc(gone, route.compare)
	var errs []error
	for _, r := range gone {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("remove routes: %w", err)
		}
		if err := r.remove(h); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(t.have, r.key())
		t.log.Info("route removed", "to", r.dst, "via", r.via)
	}
	return errors.Join(errs...)
}

// Problems are the routes that could not be made, each a sentence, in a fixed order.
func (t *Target) Problems() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.problems)
}

// Verify reads the routes from the kernel and makes those of the last snapshot that are missing: a device that goes down loses its
// routes and does not get them back by itself, and a node that could not be reached may be reachable now.
func (t *Target) Verify(ctx context.Context) error {
	t.mu.Lock()
	last := t.last
	t.stale = true
	t.mu.Unlock()
	if last == nil {
		return nil
	}
	return t.Add(ctx, last)
}

// sameRoutes reports whether two snapshots ask for the same routes, at the cost of the nodes that differ.
func sameRoutes(a, b *model.Snapshot) bool {
	if a.Self != b.Self || !slices.Equal(a.DNS, b.DNS) {
		return false
	}
	for _, c := range model.Diff(a.Nodes, b.Nodes) {
		if !c.HadOld || !c.HasNew || !slices.Equal(c.Old.Addrs, c.New.Addrs) || !slices.Equal(c.Old.PodCIDRs, c.New.PodCIDRs) {
			return false
		}
	}
	return true
}

// read fills have with the kernel's routes, if it is not known.
func (t *Target) read(h *netlink.Handle) error {
	if !t.stale {
		return nil
	}
	routes, err := list(h)
	if err != nil {
		return err
	}
	t.have = make(map[key]route, len(routes))
	for i := range routes {
		if r, ours := parse(&routes[i]); ours {
			t.have[r.key()] = r
		}
	}
	t.stale = false
	return nil
}

// report keeps the problems and says those that are new.
func (t *Target) report(problems []string) {
	slices.Sort(problems)
	for _, p := range problems {
		if !slices.Contains(t.problems, p) {
			t.log.Warn("route missing", "err", p)
		}
	}
	t.problems = problems
}

// forward makes the node a router, which it is for its pods; for IPv6 only if they have it.
func (t *Target) forward(s *model.Snapshot) error {
	if t.stale {
		if err := linux.WriteSysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !t.localnet && needsLocalnet(s) {
		// What comes to a node port or host port on loopback goes to pods with a loopback address as its source, as far as the masquerading.
		if err := linux.WriteSysctl("net/ipv4/conf/all/route_localnet", "1"); err != nil {
			return err
		}
		t.localnet = true
	}
	self := s.Node()
	if t.ipv6 || self == nil || !slices.ContainsFunc(self.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return nil
	}
	const forwarding = "net/ipv6/conf/all/forwarding"
	if on, err := linux.ReadSysctl(forwarding); err != nil || on != "1" {
		if err := keepAdvertisements(); err != nil {
			return err
		}
		if err := linux.WriteSysctl(forwarding, "1"); err != nil {
			return err
		}
	}
	t.ipv6 = true
	return nil
}

// needsLocalnet reports whether ports on loopback lead to pods.
func needsLocalnet(s *model.Snapshot) bool { return s.LoopbackNodePorts() || s.HostPorts.Len() > 0 }

// keepAdvertisements lets the node go on listening to router advertisements. A router does not by default, so that a host that became
// one would lose, some time later, the default route it had learnt from them.
func keepAdvertisements() error {
	paths, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return fmt.Errorf("list IPv6 devices: %w", err)
	}
	for _, path := range paths {
		sysctl := strings.TrimPrefix(path, "/proc/sys/")
		if v, err := linux.ReadSysctl(sysctl); err != nil || v != "1" {
			continue
		}
		if err := linux.WriteSysctl(sysctl, "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
