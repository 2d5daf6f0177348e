// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

// Package nodenet leads to the pods of other nodes, without NAT: for each of a node's pod ranges a plain route by way of that node's
// address where it is on a link that both share (the mode others call host-gw), and through a VXLAN tunnel where it is not.
//
// The tunnel is one device, [Device], made whenever there is another node: the modes say what is sent through it, and it accepts
// what comes in all of them, because two nodes never change at the same moment. Nothing about it has to be published. Each node's link address
// is derived from its first address; neighbours and forwarding entries are permanent, and nothing is learnt. A route has the MTU that is left of the
// underlay's. The table [Table] lets out of the tunnel what a node may send. What pods send to nodes on the other side goes through it
// too, by a routing table for pods, so that the networks in between see nodes' addresses only.
//
// It also makes two kinds of route for the node itself: cluster DNS's virtual addresses are delivered locally, to the agent's
// sockets, and what is sent to an address of this node's own range that no pod has is refused here rather than sent
// back to where it came from.
//
// The invariant: every route and rule it makes has the protocol number [linux.RouteProtocol], and of those with that number it
// removes only such as it makes; the host routes of pods, which package podnet makes, and other programs' routes are
// never touched, not even one that is in the way. All of it outlives the agent, is a function of the snapshot, the settings and the
// links, and is changed in place: a route changes its way in one step. A start writes only what differs.
//
// The way in is [Target.Add] before Services may lead to a new node's pods, and [Target.Prune] when none leads to a gone one's. Everything works
// in the network namespace of the calling thread. [Dump] prints what there is.
//
// Reverse path filtering (rp_filter) is made loose where it is strict on a link to other nodes; as it is otherwise.
//
// docs/network.md is for who runs it, docs/design/0008-one-tunnel-device.md has the reasons.
package nodenet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
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
type Options struct {
	// Mode says which nodes are reached through the tunnel.
	Mode Mode
	// Port is the tunnel's UDP port, the same on all nodes; 0: DefaultPort.
	Port   uint16
	Logger *slog.Logger
}

// Target is this node's way to other nodes' pods. Its methods may be called concurrently.
type Target struct {
	log  *slog.Logger
	mode Mode
	port uint16
	kind string // of the tunnel's device

	mu       sync.Mutex
	last     *model.Snapshot // of the last Add
	want     *want           // what that asks for
	pruned   *model.Snapshot // of the last Prune
	clean    bool            // the kernel has nothing that want does not ask for
	have     have
	stale    bool // what the kernel has is not known well enough
	ways     *ways
	end      tunnel // this node's end, as it was made
	dev      int    // the device's number; 0: there is none
	off      string // why there is none, in words that follow "the tunnel"
	problems []string
	ipv6     bool // forwarding of IPv6 is on
	localnet bool // what has a loopback address may be routed
}

// have is what the kernel has, as far as it is known.
type have struct {
	routes map[key]route // nil: nothing is known
	neighs map[netip.Addr]mac
	fdb    map[mac]netip.Addr
	rules  map[netip.Prefix]struct{}
	guard  guard // zero: there is no table, or not a right one
	admit  map[admission]struct{}
	tunnel bool // there is a device, or a table
}

// New returns a target that has done nothing yet.
func New(o Options) *Target {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Target{log: o.Logger, mode: o.Mode, port: cmp.Or(o.Port, DefaultPort), kind: "vxlan", stale: true, ways: newWays()}
}

// Apply is Add and then Prune, for callers that have nothing to do between them.
func (t *Target) Apply(ctx context.Context, s *model.Snapshot) error {
	if err := t.Add(ctx, s); err != nil {
		return err
	}
	return t.Prune(ctx, s)
}

// Add makes every route of the snapshot that is not there yet; one that leads elsewhere now is changed in one step. A node that cannot
// be reached is no error: the others get their routes, Problems names it, and a way is looked for again where its addresses change, and by
// Verify. What can be written now and could not before is written with the next change of Nodes, or by Verify.
func (t *Target) Add(ctx context.Context, s *model.Snapshot) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.stale && sameRoutes(t.last, s) && (t.localnet || !needsLocalnet(s)) {
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
	if t.stale {
		t.ways = newWays()
	}
	t.tunnel(h, s)
	if err := t.read(h); err != nil {
		return err
	}
	w := t.desired(h, s)
	if t.dev != 0 {
		if err := t.addTunnel(h, w); err != nil {
			t.stale = true
			return err
		}
	}
	problems, err := t.addRoutes(ctx, h, w)
	if err != nil {
		t.stale = true
		return err
	}
	for pods := range w.rules {
		if _, ok := t.have.rules[pods]; ok {
			continue
		}
		if err := h.RuleAdd(podRule(pods)); err != nil && !errors.Is(err, unix.EEXIST) {
			problems = append(problems, fmt.Sprintf("routing rule of %s, for its packets to nodes beyond the tunnel: %v", pods, err))
			continue
		}
		t.have.rules[pods] = struct{}{}
	}
	t.report(slices.Concat(w.problems, problems))
	t.last, t.want, t.clean = s, w, false
	return nil
}

// tunnel makes this node's end of the tunnel, or mends it.
func (t *Target) tunnel(h *netlink.Handle, s *model.Snapshot) {
	end, wanted := tunnelOf(s, t.port)
	switch {
	case !wanted:
		t.end, t.dev, t.off = tunnel{}, 0, "needs an address of this node"
		return
	case !t.stale && t.off == "" && end == t.end:
		return
	}
	dev, made, why := end.ensure(h, t.kind, s.Node())
	if made && dev != 0 {
		t.log.Info("tunnel made", "device", Device, "addr", end.local, "port", end.port)
	}
	if made || dev != t.dev {
		t.stale = true // with the device went what was on it
	}
	t.end, t.dev, t.off = end, dev, why
}

func (t *Target) desired(h *netlink.Handle, s *model.Snapshot) *want {
	return desired(s, conditions{mode: t.mode, dev: t.dev, off: t.off, way: func(a netip.Addr) way { return t.ways.find(h, a) }})
}

// addTunnel writes what the tunnel needs before a route may lead there, or another node may send.
func (t *Target) addTunnel(h *netlink.Handle, w *want) error {
	loosened, err := t.ways.loosen()
	if err != nil {
		return err
	}
	for _, dev := range loosened {
		t.log.Info("reverse path filter made loose: other nodes' packets may come by the link and by the tunnel", "device", dev)
	}
	right := guard{t.end.port, t.end.local}
	anew := t.have.guard != right
	if anew {
		t.have.admit = make(map[admission]struct{})
	}
	var add, instead []admission
	ranges := make(map[netip.Addr][]netip.Prefix)
	for a := range w.admit {
		if _, ok := t.have.admit[a]; !ok {
			add = append(add, a)
			ranges[a.outer] = append(ranges[a.outer], a.inner)
		}
	}
	if anew || len(add) > 0 {
		// The kernel refuses one that overlaps with another of that node's: where a node's range has grown or shrunk, the old one cannot wait for Prune.
		for a := range t.have.admit {
			if slices.ContainsFunc(ranges[a.outer], a.inner.Overlaps) {
				instead = append(instead, a)
			}
		}
		slices.SortFunc(add, admission.compare)
		if err := right.write(anew, add, instead); err != nil {
			return err
		}
		t.have.guard, t.have.tunnel = right, true
		for _, a := range instead {
			delete(t.have.admit, a)
		}
		for _, a := range add {
			t.have.admit[a] = struct{}{}
		}
	}
	for at, node := range w.fdb {
		if t.have.fdb[at] == node {
			continue
		}
		if err := h.NeighSet(fdbEntry(t.dev, at, node)); err != nil {
			return fmt.Errorf("add forwarding entry for %s to %s: %w", node, Device, err)
		}
		t.have.fdb[at] = node
	}
	for gateway, at := range w.neighs {
		if t.have.neighs[gateway] == at {
			continue
		}
		if err := h.NeighSet(neigh(t.dev, gateway, at)); err != nil {
			return fmt.Errorf("add neighbour %s to %s: %w", gateway, Device, err)
		}
		t.have.neighs[gateway] = at
	}
	return nil
}

// addRoutes returns the routes that could not be made, each a sentence.
func (t *Target) addRoutes(ctx context.Context, h *netlink.Handle, w *want) (problems []string, err error) {
	others := sync.OnceValues(func() (map[key]netlink.RouteProtocol, error) { return strangers(h) })
	for _, w := range w.routes {
		if err := ctx.Err(); err != nil {
			return problems, fmt.Errorf("add routes: %w", err)
		}
		old, had := t.have.routes[w.key()]
		if had && old == w.route {
			continue
		}
		if err := t.write(h, w.route, others); err != nil {
			problems = append(problems, w.route.problem(w.who, err))
			continue
		}
		change := "route added"
		if had {
			change = "route changed"
		}
		t.log.Info(change, "to", w.dst, "via", w.via, "for", w.who, "tunnel", w.mtu > 0)
	}
	return problems, nil
}

// write makes a route, in place of an older one of ours if there is one. Replacing a route does not look at its protocol, so where another
// program has one to the same destination, ours is taken away first, and it is the other's that stays.
func (t *Target) write(h *netlink.Handle, r route, others func() (map[key]netlink.RouteProtocol, error)) error {
	old, had := t.have.routes[r.key()]
	if had {
		strangers, err := others()
		if err != nil {
			return err
		}
		if _, beside := strangers[r.key()]; !beside && old.kind == r.kind {
			err := h.RouteReplace(r.netlink())
			if err == nil {
				t.have.routes[r.key()] = r
			}
			return err
		}
		if err := old.remove(h); err != nil {
			return err
		}
		delete(t.have.routes, r.key())
	}
	err := h.RouteAdd(r.netlink())
	if errors.Is(err, unix.EEXIST) {
		strangers, readErr := others()
		if protocol, beside := strangers[r.key()]; beside && readErr == nil {
			return fmt.Errorf("another program's route (protocol %d) is in the way: remove it if nothing needs it", protocol)
		}
		t.stale = true // it is ours and was not known
	}
	if err == nil {
		t.have.routes[r.key()] = r
	}
	return err
}

// Prune removes what the snapshot does not ask for.
func (t *Target) Prune(ctx context.Context, s *model.Snapshot) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.have.routes == nil {
		return nil // nothing was added yet: what is there may be in use
	}
	if s == t.last && t.clean {
		t.pruned = s
		return nil
	}
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	w := t.want
	if s != t.last {
		w = t.desired(h, s)
	}
	if err := t.pruneRoutes(ctx, h, w); err != nil {
		return err
	}
	if _, wanted := tunnelOf(s, t.port); wanted {
		err = t.pruneTunnel(h, w)
	} else if t.have.tunnel {
		err = t.removeTunnel(h)
	}
	if err != nil {
		return err
	}
	t.pruned, t.clean = s, s == t.last
	return nil
}

func (t *Target) removeTunnel(h *netlink.Handle) error {
	if err := errors.Join(removeTunnel(h), removeGuard()); err != nil {
		return err
	}
	t.log.Info("tunnel removed", "device", Device)
	t.have.neighs, t.have.fdb, t.have.guard, t.have.admit, t.have.tunnel = nil, nil, guard{}, nil, false
	return nil
}

func (t *Target) pruneRoutes(ctx context.Context, h *netlink.Handle, w *want) error {
	keep := make(map[key]struct{}, len(w.routes))
	for _, r := range w.routes {
		keep[r.key()] = struct{}{}
	}
	var gone []route
	for k, r := range t.have.routes {
		if _, ok := keep[k]; !ok {
			gone = append(gone, r)
		}
	}
	slices.SortFunc(gone, route.compare)
	var errs []error
	for pods := range t.have.rules {
		if _, ok := w.rules[pods]; ok {
			continue
		}
		if err := removeRule(h, pods); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(t.have.rules, pods)
	}
	for _, r := range gone {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("remove routes: %w", err)
		}
		if err := r.remove(h); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(t.have.routes, r.key())
		t.log.Info("route removed", "to", r.dst, "via", r.via)
	}
	return errors.Join(errs...)
}

// pruneTunnel removes what is on the device and no route needs, and what no node may send any more.
func (t *Target) pruneTunnel(h *netlink.Handle, w *want) error {
	if t.dev == 0 {
		return nil
	}
	var errs []error
	for gateway, at := range t.have.neighs {
		if _, ok := w.neighs[gateway]; ok {
			continue
		}
		if err := h.NeighDel(neigh(t.dev, gateway, at)); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove neighbour %s from %s: %w", gateway, Device, err))
			continue
		}
		delete(t.have.neighs, gateway)
	}
	for at, node := range t.have.fdb {
		if _, ok := w.fdb[at]; ok {
			continue
		}
		if err := h.NeighDel(fdbEntry(t.dev, at, node)); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove forwarding entry for %s from %s: %w", node, Device, err))
			continue
		}
		delete(t.have.fdb, at)
	}
	var gone []admission
	for a := range t.have.admit {
		if _, ok := w.admit[a]; !ok {
			gone = append(gone, a)
		}
	}
	if len(gone) > 0 {
		slices.SortFunc(gone, admission.compare)
		if err := t.have.guard.write(false, nil, gone); err != nil {
			t.stale = true
			return errors.Join(append(errs, err)...)
		}
		for _, a := range gone {
			delete(t.have.admit, a)
		}
	}
	return errors.Join(errs...)
}

// Reach is how many other nodes are reached in which way; one whose families differ counts in both.
type Reach struct {
	Mode Mode
	Port uint16
	// Linked share a link with this node, Tunnelled are reached through the tunnel.
	Linked, Tunnelled int
}

// Reach returns the numbers of the last Add.
func (t *Target) Reach() Reach {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Reach{Mode: t.mode, Port: t.port}
	if t.want != nil {
		r.Linked, r.Tunnelled = t.want.linked, t.want.tunnelled
	}
	return r
}

// Links are the devices by which other nodes' pods are reached, and the ways there.
type Links struct {
	// Plain are the numbers of those that lead to the nodes themselves, in order.
	Plain []int
	// Tunnel is the number of the tunnel's; 0: there is none.
	Tunnel int
	// Ways are those to the ranges of other nodes that are reached.
	Ways map[netip.Prefix]Way
}

// Way is a way to a range: the device's number, the next hop there, the MTU in bytes, and whether it is through the tunnel.
type Way struct {
	Dev    int
	Via    netip.Addr
	MTU    int
	Tunnel bool
}

// Equal reports whether both are the same. It looks no further where they are one.
func (l *Links) Equal(o *Links) bool {
	return l == o || l != nil && o != nil && l.Tunnel == o.Tunnel && slices.Equal(l.Plain, o.Plain) && maps.Equal(l.Ways, o.Ways)
}

// Links are those of the last snapshot. They are not to be changed.
func (t *Target) Links() *Links {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.want == nil {
		return new(Links)
	}
	return &t.want.links
}

// Problems are the routes that could not be made, each a sentence, in a fixed order.
func (t *Target) Problems() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.problems)
}

// Verify reads from the kernel what there is, and makes what is missing of what the last snapshot asks for: a device that goes down loses its
// routes and does not get them back by itself, and a node that could not be reached, or shared no link, may do so now. What is too much goes too,
// once the snapshot has been pruned: before that, Services may lead there.
func (t *Target) Verify(ctx context.Context) error {
	t.mu.Lock()
	last, pruned := t.last, t.pruned
	t.stale = true
	t.mu.Unlock()
	switch last {
	case nil:
		return nil
	case pruned:
		return t.Apply(ctx, last)
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

// read fills have with what the kernel has, if it is not known.
func (t *Target) read(h *netlink.Handle) error {
	if !t.stale {
		return nil
	}
	routes, err := list(h)
	if err != nil {
		return err
	}
	var now have
	now.routes = make(map[key]route, len(routes))
	for i := range routes {
		if r, ours := parse(&routes[i]); ours {
			now.routes[r.key()] = r
		}
	}
	if now.rules, err = listRules(h); err != nil {
		return err
	}
	now.tunnel = t.dev != 0
	if t.dev == 0 {
		if now.tunnel, err = anyTunnel(h); err != nil {
			return err
		}
	}
	if t.dev != 0 {
		if now.neighs, err = listNeighs(h, t.dev); err != nil {
			return err
		}
		if now.fdb, err = listFDB(h, t.dev); err != nil {
			return err
		}
		right := guard{t.end.port, t.end.local}
		admit, ok, err := right.read()
		if err != nil {
			return err
		}
		if ok {
			now.guard, now.admit = right, admit
		}
	}
	t.have, t.stale = now, false
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
