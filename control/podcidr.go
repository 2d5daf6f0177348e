// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// podCIDRs gives each Node its part of the pod network, once and for all: the API does not let it change later.
type podCIDRs struct {
	*loop[string]
	h     *hub
	nodes corelisters.NodeLister
	// given is what was given to nodes by this process. It keeps a prefix taken until the informer shows the node
	// with it. Only the one worker touches it.
	given map[string][]netip.Prefix
}

func newPodCIDRs(h *hub) *podCIDRs {
	nodes := h.factory.Core().V1().Nodes()
	p := &podCIDRs{h: h, nodes: nodes.Lister(), given: map[string][]netip.Prefix{}}
	p.loop = newLoop(h, "podcidr", 1, p.reconcile) // one worker: no two decisions at once
	watch(h, nodes.Informer(), func(old, cur *corev1.Node) { p.add(latest(old, cur).Name) })
	return p
}

func (p *podCIDRs) reconcile(ctx context.Context, name string) (time.Duration, error) {
	node, err := p.nodes.Get(name)
	if err != nil {
		delete(p.given, name) // gone: free for others
		return 0, ignoreGone(err)
	}
	if len(node.Spec.PodCIDRs) > 0 || node.Spec.PodCIDR != "" {
		delete(p.given, name)
		return 0, nil
	}
	if len(p.h.PodCIDRs) == 0 {
		return 0, nil
	}
	parts, decided := p.given[name] // decided before, and not shown yet: the same again
	if !decided {
		taken, err := p.taken()
		if err != nil {
			return 0, err
		}
		if parts, err = choosePodCIDRs(p.h.PodCIDRs, p.h.nodeMask, taken); err != nil {
			return 0, err
		}
		p.given[name] = parts // before the write: its answer may be lost
	}
	return 0, p.give(ctx, node, parts)
}

// taken is every prefix that a node has or was given.
func (p *podCIDRs) taken() ([]netip.Prefix, error) {
	nodes, err := p.nodes.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var taken []netip.Prefix
	for _, n := range nodes {
		taken = append(taken, podPrefixes(n)...)
	}
	for _, prefixes := range p.given {
		taken = append(taken, prefixes...)
	}
	return taken, nil
}

func (p *podCIDRs) give(ctx context.Context, node *corev1.Node, parts []netip.Prefix) error {
	texts := make([]string, len(parts))
	for i, part := range parts {
		texts[i] = part.String()
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"podCIDR": texts[0], "podCIDRs": texts},
	})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	_, err = p.h.client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: component})
	if apierrors.IsNotFound(err) {
		return nil // the informer will say so
	}
	if err != nil {
		return fmt.Errorf("give pod CIDRs to node: %w", err)
	}
	p.log.Info("gave pod CIDRs", "node", node.Name, "cidrs", texts)
	return nil
}

// podPrefixes is what a Node says it has.
func podPrefixes(n *corev1.Node) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range append(slices.Clone(n.Spec.PodCIDRs), n.Spec.PodCIDR) {
		if prefix, err := netip.ParsePrefix(text); err == nil && !slices.Contains(out, prefix.Masked()) {
			out = append(out, prefix.Masked())
		}
	}
	return out
}

// choosePodCIDRs returns the first free part of each range.
func choosePodCIDRs(ranges []netip.Prefix, mask func(netip.Prefix) int, taken []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, r := range ranges {
		part, ok := firstFree(r, mask(r), taken)
		if !ok {
			return nil, fmt.Errorf("choose pod CIDR: no /%d left in %s", mask(r), r)
		}
		out = append(out, part)
	}
	return out, nil
}

// firstFree is the lowest prefix of the given length in r that overlaps nothing taken.
func firstFree(r netip.Prefix, bits int, taken []netip.Prefix) (netip.Prefix, bool) {
	r = r.Masked()
	inside := slices.DeleteFunc(slices.Clone(taken), func(t netip.Prefix) bool { return !t.Overlaps(r) })
	slices.SortFunc(inside, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	candidate := netip.PrefixFrom(r.Addr(), bits)
	for _, t := range inside {
		if !t.Overlaps(candidate) {
			if t.Addr().Compare(candidate.Addr()) > 0 {
				break // sorted: nothing before the next taken one is in the way
			}
			continue
		}
		// the first prefix of this length behind the end of t
		end := netip.PrefixFrom(t.Addr(), min(t.Bits(), bits)).Masked()
		next, ok := behind(end)
		if !ok || !r.Contains(next) {
			return netip.Prefix{}, false
		}
		candidate = netip.PrefixFrom(next, bits)
	}
	return candidate, r.Contains(candidate.Addr())
}

// behind is the first address after p; false when p ends the address space.
func behind(p netip.Prefix) (netip.Addr, bool) {
	if p.Bits() == 0 {
		return netip.Addr{}, false
	}
	if p.Addr().Is4() {
		a := p.Addr().As4()
		n := uint64(binary.BigEndian.Uint32(a[:])) + 1<<(32-p.Bits())
		binary.BigEndian.PutUint32(a[:], uint32(n))
		return netip.AddrFrom4(a), n>>32 == 0
	}
	a := p.Addr().As16()
	// add one at the last bit of the prefix, with carry
	at, add := (p.Bits()-1)/8, byte(1)<<(7-(p.Bits()-1)%8)
	for ; ; at, add = at-1, 1 {
		a[at] += add
		if a[at] >= add {
			return netip.AddrFrom16(a), true
		}
		if at == 0 {
			return netip.Addr{}, false
		}
	}
}
