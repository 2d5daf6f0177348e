// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrUnsupported is what every [MissingError] is.
var ErrUnsupported = errors.New("not supported by this machine")

// Feature is one thing that Fairlead needs of the machine, and whether it is
// there.
type Feature struct {
	Name string // what it is: "nftables NAT"
	Todo string // one sentence on what to do when it is missing
	Err  error  // nil: it works; it was tried, not looked up
}

// MissingError says that the machine lacks a feature. It Is [ErrUnsupported] and
// the kernel's error.
type MissingError struct {
	Feature Feature
}

// Error returns the feature, the cause and what to do, as one line.
func (e *MissingError) Error() string {
	return fmt.Sprintf("%s: %v: %s", e.Feature.Name, e.Feature.Err, e.Feature.Todo)
}

// Unwrap makes errors.Is work for ErrUnsupported and for the cause.
func (e *MissingError) Unwrap() []error { return []error{ErrUnsupported, e.Feature.Err} }

// probe is a feature and how to try it. Those with inside run in a network
// namespace made for the purpose.
type probe struct {
	name, todo string
	inside     bool
	try        func() error
}

// probes are in the order in which they depend on each other: the first that
// fails is the cause of the others.
var probes = []probe{
	{"privileges", "run it as root (it needs CAP_NET_ADMIN and CAP_SYS_ADMIN).", false, tryCapabilities},
	{"network namespaces", "use a kernel with CONFIG_NET_NS, and outside of containers that forbid unshare.", false, tryNetNS},
	{"mount namespaces", "allow mount and unshare(CLONE_NEWNS) to this process.", false, tryMountNS},
	{"cgroup v2", "mount it: mount -t cgroup2 none /sys/fs/cgroup (beside v1: /sys/fs/cgroup/unified).", false, tryCgroup2},
	{"veth interfaces", "load the module (modprobe veth) or use a kernel with CONFIG_VETH.", true, tryVeth},
	{"bridge interfaces", "load the module (modprobe bridge) or use a kernel with CONFIG_BRIDGE.", true, tryBridge},
	{"nftables NAT", "load the modules (modprobe nft_chain_nat) or use a kernel with CONFIG_NF_TABLES_INET and CONFIG_NFT_NAT.", true, tryNftNAT},
	{"connection tracking by netlink", "load the module (modprobe nf_conntrack_netlink) or use a kernel with CONFIG_NF_CT_NETLINK.", true, tryConntrack},
}

// Features tries everything that Fairlead needs, in a namespace of its own, and
// leaves nothing behind. It takes a few milliseconds. When ctx ends, the rest
// has the context's error.
func Features(ctx context.Context) []Feature {
	var (
		inside *NetNS
		got    = make([]Feature, 0, len(probes))
	)
	for _, p := range probes {
		f := Feature{Name: p.name, Todo: p.todo, Err: ctx.Err()}
		if f.Err == nil && p.inside && inside == nil {
			if inside, f.Err = NewNetNS(); f.Err == nil {
				defer inside.Close()
			}
		}
		switch {
		case f.Err != nil:
		case p.inside:
			f.Err = inside.Do(p.try)
		default:
			f.Err = p.try()
		}
		got = append(got, f)
	}
	return got
}

// Check returns nil when all [Features] work, else a [*MissingError] for the
// first that does not: the others may be missing just because of that one.
func Check(ctx context.Context) error {
	for _, f := range Features(ctx) {
		if f.Err != nil && ctx.Err() != nil {
			return fmt.Errorf("check machine: %w", ctx.Err())
		}
		if f.Err != nil {
			return &MissingError{Feature: f}
		}
	}
	return nil
}

func tryCapabilities() error {
	for _, need := range []struct {
		bit  int
		name string
	}{{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}} {
		if !Capable(need.bit) {
			return fmt.Errorf("%s is missing: %w", need.name, unix.EPERM)
		}
	}
	return nil
}

func tryNetNS() error {
	ns, err := NewNetNS()
	if err != nil {
		return err
	}
	return ns.Close()
}

// tryMountNS needs a thread that is thrown away: there is no way back out of a
// mount namespace for a process with several threads that share one.
func tryMountNS() error {
	return onDoomedThread(func() error { return unix.Unshare(unix.CLONE_NEWNS) })
}

func tryCgroup2() error {
	mount, err := Cgroup2Mount()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(mount, "fairlead-check-")
	if err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	return os.Remove(dir)
}

func tryVeth() error {
	b, err := NewBatch()
	if err != nil {
		return err
	}
	defer b.Close()
	b.VethAdd(VethPair{Name: "check0", PeerName: "check1", MTU: 1500})
	b.LinkDel("check0")
	return b.Send()
}

func tryBridge() error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = "check2"
	return netlink.LinkAdd(bridge)
}

// tryNftNAT makes a rule that rewrites destinations, in the family that serves
// both IPv4 and IPv6.
func tryNftNAT() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "fairlead-check"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Numgen{Register: 1, Modulus: 2, Type: unix.NFT_NG_RANDOM},
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Immediate{Register: 1, Data: []byte{127, 0, 0, 1}},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	return conn.Flush()
}

func tryConntrack() error {
	_, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	return err
}
