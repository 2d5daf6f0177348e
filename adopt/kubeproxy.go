// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cleanup"
	"github.com/fairlead/fairlead/model"
)

// ErrNoKubeProxy says that kube-proxy has programmed nothing here.
var ErrNoKubeProxy = errors.New("kube-proxy has no rules in this network namespace: run this on a node where it runs, in the node's network namespace")

// KubeProxy is what kube-proxy has programmed in a network namespace.
type KubeProxy struct {
	// Modes are nftables, iptables, or both when one of them is left over.
	Modes []string
	// Notes say what could not be read.
	Notes []string
	rules [2][]programmed // for IPv4 and IPv6
}

// programmed are rules of one family that packets can be taken through.
type programmed interface {
	through(*trip) (end, error)
	// frontends yields the destinations that rules are about, with what the rules call each.
	frontends(add func(model.Frontend, string))
}

// ReadKubeProxy reads the rules of the caller's network namespace: the nftables tables by netlink, the iptables chains by iptables-save, in both its
// implementations. It returns [ErrNoKubeProxy] if there are none.
func ReadKubeProxy(ctx context.Context) (*KubeProxy, error) {
	k := &KubeProxy{}
	for i, family := range []uint8{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		t, err := readTable(family, cleanup.KubeProxyTable)
		if err != nil {
			return nil, fmt.Errorf("read kube-proxy's rules: %w", err)
		}
		if t != nil {
			k.add(i, "nftables", t)
		}
	}
	saved, notes, err := cleanup.Save(ctx)
	if err != nil {
		return nil, fmt.Errorf("read kube-proxy's rules: %w", err)
	}
	k.Notes = notes
	for _, s := range saved {
		if t := newIPTables(s); t != nil {
			i := 0
			if s.IPv6 {
				i = 1
			}
			k.add(i, "iptables", t)
		}
	}
	if len(k.Modes) == 0 {
		if len(notes) > 0 {
			return nil, fmt.Errorf("%w; %s", ErrNoKubeProxy, strings.Join(notes, "; "))
		}
		return nil, ErrNoKubeProxy
	}
	if len(k.Modes) > 1 || len(k.rules[0]) > 1 || len(k.rules[1]) > 1 {
		k.Notes = append(k.Notes, "there are rules of several modes or programs, of which only one is in use: a node that has had its mode changed without a restart has them; "+
			"packets were taken through all of them in turn")
	}
	return k, nil
}

func (k *KubeProxy) add(family int, mode string, p programmed) {
	k.rules[family] = append(k.rules[family], p)
	if len(k.Modes) == 0 || k.Modes[len(k.Modes)-1] != mode {
		k.Modes = append(k.Modes, mode)
	}
}

// String names it with its mode.
func (k *KubeProxy) String() string { return "kube-proxy (" + strings.Join(k.Modes, " and ") + ")" }

func index(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Has reports whether there are rules of an address's family.
func (k *KubeProxy) Has(a netip.Addr) bool { return len(k.rules[index(a)]) > 0 }

// Decide says what becomes of the first packet of a connection. An error says which rule is not understood.
func (k *KubeProxy) Decide(p model.Packet) (Fate, error) {
	return follow(p, func(t *trip) (end, error) {
		for _, r := range k.rules[index(p.Dst.Addr())] {
			if e, err := r.through(t); e != "" || t.translated || err != nil {
				return e, err
			}
		}
		return "", nil
	})
}

// Frontends are the destinations that rules are about, each with what the rules call it.
func (k *KubeProxy) Frontends() map[model.Frontend]string {
	all := make(map[model.Frontend]string)
	add := func(f model.Frontend, name string) {
		if all[f] == "" || strings.Contains(name, "/") && !strings.Contains(all[f], "/") {
			all[f] = name
		}
	}
	for _, rules := range k.rules {
		for _, r := range rules {
			r.frontends(add)
		}
	}
	return all
}
