// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/model"
)

// ProxyOptions say how kube-proxy is compared with.
type ProxyOptions struct {
	// Snapshot is what is known now; it is asked for anew before each look.
	Snapshot func() *model.Snapshot
	// Read reads kube-proxy's rules; [ReadKubeProxy] if it is nil.
	Read func(context.Context) (*KubeProxy, error)
	// Looks is how often differences are looked at before they count, with a Pause between; by default 4 times with 2 s: kube-proxy collects changes for a
	// second before it writes them.
	Looks int
	Pause time.Duration
	// Progress hears of work that takes long.
	Progress func(string)
}

func (o *ProxyOptions) defaults() {
	if o.Read == nil {
		o.Read = ReadKubeProxy
	}
	if o.Looks == 0 {
		o.Looks, o.Pause = 4, 2*time.Second
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
}

// CheckProxy compares, for each frontend that a Service has or that kube-proxy has rules about, what becomes of the first packet of clients of all kinds:
// which endpoints may get it, with what affinity, whether it is refused or dropped.
func CheckProxy(ctx context.Context, o ProxyOptions) Part {
	o.defaults()
	part := Part{With: "kube-proxy", Of: "frontends", Notes: []string{}}
	var lasting []Difference
	for look := range o.Looks {
		if look > 0 {
			o.Progress(fmt.Sprintf("%d differences from kube-proxy; looking again in %s whether they last", len(lasting), o.Pause))
			select {
			case <-ctx.Done():
				part.Failed = ctx.Err().Error()
				return part
			case <-time.After(o.Pause):
			}
		}
		k, err := o.Read(ctx)
		if err != nil {
			part.Failed = err.Error()
			return part
		}
		snap := plain(o.Snapshot())
		part.With, part.Notes = k.String(), append([]string{}, k.Notes...)
		now, looked, err := compare(ctx, snap, k, o.Progress)
		if err != nil {
			part.Failed = err.Error()
			return part
		}
		part.Looked, part.All = looked, looked
		if n := unruled(snap, k); n > 0 {
			part.All += n
			part.Notes = append(part.Notes, fmt.Sprintf("%d frontends are of a family of which kube-proxy has no rules at all, and were not compared", n))
		}
		if look == 0 {
			lasting = now
		} else {
			lasting = slices.DeleteFunc(now, func(d Difference) bool {
				return !slices.ContainsFunc(lasting, func(e Difference) bool { return d.Of == e.Of && d.Who == e.Who })
			})
		}
		if !slices.ContainsFunc(lasting, func(d Difference) bool { return d.Meant == "" }) {
			break
		}
	}
	part.add(lasting)
	return part
}

// plain is a snapshot in which the cluster DNS is a Service like any other, as it is to kube-proxy.
func plain(s *model.Snapshot) *model.Snapshot {
	c := *s
	c.DNS, c.PassOn = nil, false
	return &c
}

// unruled counts the frontends of families that kube-proxy does nothing about, as on nodes without IPv6.
func unruled(snap *model.Snapshot, k *KubeProxy) (n int) {
	for f := range snap.Frontends.All() {
		if compared(snap, f) && !k.Has(f.Addr) {
			n++
		}
	}
	return n
}

// compared reports whether a frontend is one that kube-proxy may have too: a Service's, but not an endpoint of it that is ending, and not a pod's host port,
// which is the pod network's work.
func compared(snap *model.Snapshot, f model.Frontend) bool {
	w, ok := snap.Way(f)
	return ok && w.Kind != model.AtLeaving && w.Kind != model.AtHostPort
}

// compare is one look: the differences, and how many frontends there are.
func compare(ctx context.Context, snap *model.Snapshot, k *KubeProxy, progress func(string)) (all []Difference, looked int, err error) {
	self := snap.Node()
	if self == nil {
		return nil, 0, fmt.Errorf("the API server has no Node %q; give the node's name with --node", snap.Self)
	}
	theirs := k.Frontends()
	frontends := make([]model.Frontend, 0, len(theirs))
	for f := range theirs {
		frontends = append(frontends, f)
	}
	for f := range snap.Frontends.All() {
		if compared(snap, f) && theirs[f] == "" && k.Has(f.Addr) {
			frontends = append(frontends, f)
		}
	}
	slices.SortFunc(frontends, model.Frontend.Compare)
	frontends = slices.Compact(frontends)
	several := disputed(snap)
	told := time.Now()
	for i, f := range frontends {
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		if time.Since(told) > 2*time.Second {
			told = time.Now()
			progress(fmt.Sprintf("%d of %d frontends compared with kube-proxy's", i, len(frontends)))
		}
		ds, err := compareFrontend(snap, k, f, theirs[f], several[f])
		if err != nil {
			return nil, 0, err
		}
		all = append(all, ds...)
	}
	return all, len(frontends), nil
}

// compareFrontend is about one frontend, shared if several Services ask for it. Clients for whom the same differs are named together.
func compareFrontend(snap *model.Snapshot, k *KubeProxy, f model.Frontend, called string, shared bool) (all []Difference, err error) {
	w, ours := snap.Way(f)
	dst := f.Addr
	toNode := slices.Contains(snap.Node().Addrs, dst)
	if f.IsNodePort() {
		if dst = snap.Node().Addr(f.Addr); !dst.IsValid() {
			return nil, nil
		}
		toNode = true
	}
	name := strings.TrimSpace(called)
	if ours {
		name = w.Service.Name.String()
		if p := w.Service.Ports[w.Port].Name; p != "" {
			name += ":" + p
		}
	}
	for _, c := range clients(snap, w, f.Addr.Is4()) {
		p := model.Packet{Protocol: f.Protocol, Src: netip.AddrPortFrom(c.addr, clientPort), Dst: netip.AddrPortFrom(dst, f.Port), FromNode: c.kind == ofNode, ToNode: toNode}
		here := meant(snap.Lookup(p))
		there, err := k.Decide(p)
		if err != nil {
			there = Fate{Ways: []string{fmt.Sprintf("unknown: %v", err)}}
		}
		if here.equal(there) {
			continue
		}
		d := Difference{Of: f.String(), Service: name, Who: c.String(), Here: here.String(), There: there.String()}
		d.Meant = reason(w, shared, c, here, there, func() Fate {
			p.Src, p.FromNode = netip.AddrPortFrom(stranger(f.Addr.Is4()), clientPort), false
			as, _ := k.Decide(p)
			return as
		})
		if i := slices.IndexFunc(all, func(e Difference) bool { return e.Here == d.Here && e.There == d.There && e.Meant == d.Meant }); i >= 0 {
			all[i].Who += ", " + d.Who
			continue
		}
		all = append(all, d)
	}
	return all, nil
}

const clientPort = 40000

// client is one of those whose packets are compared.
type client struct {
	kind clientKind
	addr netip.Addr
}

type clientKind uint8

const (
	ofPod clientKind = iota
	ofOtherPod
	ofNode
	outside
	inRanges
)

// String says who it is.
func (c client) String() string {
	switch c.kind {
	case ofPod:
		return "a pod of this node"
	case ofOtherPod:
		return "a pod of another node"
	case ofNode:
		return "this node"
	case outside:
		return "a client outside"
	}
	return "client " + c.addr.String()
}

// clients are one of each kind, and those at the edges of the source ranges.
func clients(snap *model.Snapshot, w model.Way, is4 bool) (all []client) {
	self := snap.Node()
	add := func(kind clientKind, a netip.Addr) {
		if a.IsValid() && a.Is4() == is4 {
			all = append(all, client{kind, a})
		}
	}
	podOf := func(kind clientKind, n *model.Node) {
		for _, r := range n.PodCIDRs {
			if r.Addr().Is4() == is4 {
				add(kind, model.LastOf(r).Prev())
				return
			}
		}
	}
	podOf(ofPod, self)
	var others []string
	for name := range snap.Nodes.All() {
		if name != self.Name {
			others = append(others, name)
		}
	}
	if len(others) > 0 {
		n, _ := snap.Nodes.Get(slices.Min(others))
		podOf(ofOtherPod, n)
	}
	for _, a := range self.Addrs {
		if a.Is4() == is4 {
			add(ofNode, a)
			break
		}
	}
	add(outside, stranger(is4))
	for _, r := range w.Ranges {
		for _, a := range []netip.Addr{r.Addr().Prev(), r.Addr(), model.LastOf(r), model.LastOf(r).Next()} {
			if a.IsValid() && !a.IsUnspecified() && !slices.Contains(self.Addrs, a) && !slices.ContainsFunc(all, func(c client) bool { return c.addr == a }) {
				add(inRanges, a)
			}
		}
	}
	return all
}

// stranger is an address outside of every cluster (RFC 5737, RFC 3849).
func stranger(is4 bool) netip.Addr {
	if is4 {
		return netip.MustParseAddr("192.0.2.77")
	}
	return netip.MustParseAddr("2001:db8::77")
}

// reason is why two fates differ on purpose, as docs/services.md has it; empty if they should not. AsOutside is what kube-proxy does with clients outside.
func reason(w model.Way, shared bool, c client, here, there Fate, asOutside func() Fate) string {
	if w.Service == nil {
		return ""
	}
	external := w.Kind == model.AtBalancer || w.Kind == model.AtExternalIP || w.Kind == model.AtNodePort
	sameWays := slices.Equal(here.Ways, there.Ways)
	switch {
	case w.Guarded && len(w.Ranges) == 0 && slices.Equal(here.Ways, []string{noAnswer}):
		return "source ranges of one family let nobody of the other in; to kube-proxy, a family without a range is open to everyone"
	case external && w.Outside == model.Here && (c.kind == ofOtherPod || c.kind == ofPod) && there.equal(asOutside()):
		return "with externalTrafficPolicy Local, pods of all nodes count as inside the cluster; to kube-proxy, only those that it can tell by its cluster's range"
	case shared:
		return "several Services ask for this address and port; here the first by kind and name has it, with kube-proxy the one that was written last"
	case sameWays:
		return ""
	case leaving(w, here, there):
		return "a pod of this node that has been told to end gets nothing new at once, without waiting for its slice"
	}
	return ""
}

// disputed are the frontends that several Services ask for.
func disputed(snap *model.Snapshot) map[model.Frontend]bool {
	first, several := make(map[model.Frontend]*model.Service), make(map[model.Frontend]bool)
	for _, svc := range snap.Services.All() {
		snap.Claims(svc, func(f model.Frontend) {
			if first[f] == nil {
				first[f] = svc
			} else if first[f] != svc { // which may ask several times
				several[f] = true
			}
		})
	}
	return several
}

// leaving reports whether the two differ by endpoints only that this node has seen being told to end.
func leaving(w model.Way, here, there Fate) bool {
	n := 0
	for _, way := range there.Ways {
		if slices.Contains(here.Ways, way) {
			continue
		}
		if !slices.ContainsFunc(w.Service.Backends[w.Port], func(b model.Backend) bool { return b.Leaving && b.AddrPort().String() == way }) {
			return false
		}
		n++
	}
	return n > 0 && n+len(here.Ways) == len(there.Ways)
}
