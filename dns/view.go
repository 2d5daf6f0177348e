// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"maps"
	"net/netip"

	"github.com/fairlead/fairlead/dns/client"
	"github.com/fairlead/fairlead/model"
)

// View is a snapshot prepared for questions. It is immutable.
type View struct {
	plan *plan // nil if it is asked with targets only
	snap *model.Snapshot

	namespaces map[string]int          // Services in each namespace that has any
	pods       map[netip.Addr][]string // their namespaces: pods of the node's network have one address
	claims     int                     // virtual addresses that Services ask for, those apart that somebody else carries
	clients    *client.Table
	// refused are the Services of this snapshot that the node's kernel could not be given.
	refused map[model.Name]struct{}
}

// NewView prepares a snapshot for questions about the zones that the options name. It looks at everything in the snapshot.
func NewView(o Options, s *model.Snapshot) (*View, error) {
	p, err := newPlan(o.withDefaults())
	if err != nil {
		return nil, err
	}
	p.close()
	v := emptyView(o).next(s)
	v.plan = p
	return v, nil
}

// emptyView is what is known before the first snapshot.
func emptyView(o Options) *View {
	return &View{snap: &model.Snapshot{}, clients: client.NewTable(o.Clients)}
}

// next prepares a later snapshot; what it costs is what changed.
func (v *View) next(s *model.Snapshot) *View {
	if s == v.snap {
		return v
	}
	n := &View{plan: v.plan, snap: s, namespaces: v.namespaces, pods: v.pods, claims: v.claims, clients: v.clients.Next(s)}
	copied := false
	for name, c := range model.Diff(v.snap.Services, s.Services) {
		n.claims += claims(c.New) - claims(c.Old)
		if c.HadOld == c.HasNew {
			continue
		}
		if !copied {
			if n.namespaces = maps.Clone(v.namespaces); n.namespaces == nil {
				n.namespaces = make(map[string]int)
			}
			copied = true
		}
		if c.HasNew {
			n.namespaces[name.Namespace]++
		} else if n.namespaces[name.Namespace]--; n.namespaces[name.Namespace] == 0 {
			delete(n.namespaces, name.Namespace)
		}
	}
	// This node's pods are few and change seldom: what depends on them is made anew.
	for range model.Diff(v.snap.Pods, s.Pods) {
		n.pods = make(map[netip.Addr][]string, s.Pods.Len())
		for name, p := range s.Pods.All() {
			for _, a := range p.Addrs {
				n.pods[a] = append(n.pods[a], name.Namespace)
			}
		}
		break
	}
	return n
}

func claims(svc *model.Service) int {
	if svc == nil || svc.Unproxied {
		return 0
	}
	return len(svc.ClusterIPs)
}

// owns is [model.Snapshot.Owns]. Mostly no two Services ask for one address, and then it need not look.
func (v *View) owns(vip netip.Addr, svc *model.Service) bool {
	return v.claims == v.snap.VIPs.Len() && !svc.Unproxied || v.snap.Owns(vip, svc)
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
