// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/linux"
)

// openPod opens the pod's namespace, and refuses the node's own: wiring that to
// itself would cut off the node.
func openPod(path string) (*linux.NetNS, error) {
	ns, err := linux.OpenNetNS(path)
	if err != nil {
		return nil, cniErrorf(types.ErrInvalidNetNS, "CNI_NETNS: %v", err)
	}
	own, err := linux.CurrentNetNS()
	if err != nil {
		ns.Close()
		return nil, err
	}
	defer own.Close()
	if ns.Same(own) {
		ns.Close()
		return nil, cniErrorf(types.ErrInvalidNetNS, "CNI_NETNS: %s is the node's own network namespace", path)
	}
	return ns, nil
}

// add is CNI ADD.
func add(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	ranges, err := conf.ranges()
	if err != nil {
		return err
	}
	store, err := conf.store(ranges)
	if err != nil {
		return err
	}
	prev, err := conf.prev()
	if err != nil {
		return err
	}
	ns, err := openPod(args.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	want := parseArgs(args)
	done, err := store.Exclusive(want.ID)
	if err != nil {
		return err
	}
	defer done()
	agent, err := dial(conf.Agent, deliverTimeout)
	if err != nil {
		return cniErrorf(types.ErrTryAgainLater, "%v", err)
	}
	defer agent.close()
	node, err := linux.NewBatch()
	if err != nil {
		return err
	}
	defer node.Close()
	pod, err := ns.Batch()
	if err != nil {
		return err
	}
	defer pod.Close()
	w := &wiring{ns: ns, node: node, pod: pod, mtu: conf.MTU}
	made, err := attach(store, w, want, agent)
	if err != nil {
		return err
	}
	undone := func(err error) error {
		if made { // and not if it worked before this call
			err = errors.Join(err, undo(store, w.lease.ID))
		}
		return err
	}
	if err := agent.answer(); err != nil {
		return cniErrorf(types.ErrTryAgainLater, "%v", undone(err))
	}
	if err := w.waitUp(); err != nil { // the kernel has been at it meanwhile
		return undone(err)
	}
	return types.PrintResult(resultOf(w.lease, prev, conf.DNS), conf.CNIVersion)
}

// attach takes a lease and wires the pod, while the agent is asked whether it can
// deliver. If an address is found to be in use against what the leases say, it is
// held for whoever uses it, and another one is taken. After an error there is
// neither lease nor wiring.
func attach(store *ipam.Store, w *wiring, want ipam.Lease, agent *question) (made bool, err error) {
	want.NetNSID, _ = w.pod.Cookie() // the agent knows the pod's sockets by it; older kernels have none
	if w.mtu == 0 {
		if w.mtu, err = linux.DefaultMTU(); err != nil {
			return false, err
		}
	}
	for try := 0; ; try++ {
		if w.lease, err = allocate(store, want); err != nil {
			return false, err
		}
		if try > 0 {
			err = agent.redial()
		}
		if err == nil {
			err = agent.deliver(w.lease)
		}
		if err != nil {
			_, releaseErr := store.Release(w.lease.ID)
			return false, cniErrorf(types.ErrTryAgainLater, "%v", errors.Join(err, releaseErr))
		}
		made, err = w.make()
		if err == nil {
			return made, nil
		}
		if errors.Is(err, errTaken) && try == 0 {
			// If this takes the lease away, the next round makes a new one. If not, the
			// route is a stranger's and the next round says so.
			adoptErr := store.Adopt()
			if adoptErr == nil {
				continue
			}
			err = errors.Join(err, adoptErr)
		}
		_, releaseErr := store.Release(w.lease.ID)
		return false, errors.Join(err, releaseErr)
	}
}

// allocate takes a lease. When a range is full it first frees those that nobody has any more.
func allocate(store *ipam.Store, want ipam.Lease) (ipam.Lease, error) {
	lease, err := store.Allocate(want)
	var full *ipam.FullError
	if !errors.As(err, &full) {
		return lease, err
	}
	err = cniErrorf(types.ErrTryAgainLater, "%v", err)
	gone, freeErr := free(store, store.Ranges)
	if freeErr != nil || len(gone) == 0 {
		return lease, errors.Join(err, freeErr)
	}
	return store.Allocate(want)
}

// detach takes back what attach did, when nobody else is at it. The agent hears of it first: a pod may be gone before the API server's word of that has come
// to this node, and what is then sent to it goes on to another endpoint.
func detach(store *ipam.Store, agent, id string) error {
	done, err := store.Exclusive(id)
	if err != nil {
		return err
	}
	defer done()
	if lease, err := store.Lookup(id); err == nil && lease.ID != "" {
		letGo(agent, lease)
	}
	return undo(store, id)
}

// undo is detach for who has the attachment to himself: first the interface, then the lease.
func undo(store *ipam.Store, id string) error {
	if err := unwire(id); err != nil {
		return err
	}
	_, err := store.Release(id)
	return err
}

// resultOf is the answer of ADD, after what the plugins before this one said.
func resultOf(lease ipam.Lease, prev *types100.Result, dns types.DNS) *types100.Result {
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if prev != nil {
		result = prev
	}
	podEnd := len(result.Interfaces) + 1
	result.Interfaces = append(result.Interfaces,
		&types100.Interface{Name: lease.ID, Mac: mac(lease.ID, "host").String()},
		&types100.Interface{Name: lease.IfName, Mac: mac(lease.ID, "pod").String(), Sandbox: lease.NetNS})
	for _, addr := range lease.Addrs {
		gateway, all := gatewayOf(addr)
		result.IPs = append(result.IPs, &types100.IPConfig{
			Interface: types100.Int(podEnd), Address: ipNet(single(addr)), Gateway: gateway.AsSlice(),
		})
		result.Routes = append(result.Routes, &types.Route{Dst: ipNet(all), GW: gateway.AsSlice()})
	}
	if !dns.IsEmpty() {
		result.DNS = dns
	}
	return result
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// del is CNI DEL. It needs nothing but the container's ID and the interface's
// name: not the namespace, which may be gone, nor the ranges, which may be others.
func del(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	store, err := conf.store(nil)
	if err != nil {
		return err
	}
	return detach(store, conf.Agent, hostName(args.ContainerID, args.IfName))
}

// check is CNI CHECK.
func check(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	store, err := conf.store(nil)
	if err != nil {
		return err
	}
	prev, err := conf.prev()
	if err != nil {
		return err
	}
	if prev == nil {
		return cniErrorf(types.ErrInvalidNetworkConfig, "network configuration: CHECK without prevResult")
	}
	lease, err := store.Lookup(hostName(args.ContainerID, args.IfName))
	if err != nil {
		return err
	}
	if lease.ID == "" {
		return cniErrorf(types.ErrUnknownContainer, "container %s has no addresses on interface %s", args.ContainerID, args.IfName)
	}
	for _, addr := range lease.Addrs {
		if !slices.ContainsFunc(prev.IPs, func(ip *types100.IPConfig) bool { return ip.Address.IP.Equal(addr.AsSlice()) }) {
			return fmt.Errorf("the result of ADD does not have address %s of container %s", addr, args.ContainerID)
		}
	}
	ns, err := openPod(args.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	lease.IfName = args.IfName
	w := &wiring{ns: ns, lease: lease}
	return w.check()
}

// gc is CNI GC: everything that is not among the valid attachments goes. What is
// added while it runs stays.
func gc(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	store, err := conf.store(nil)
	if err != nil {
		return err
	}
	list, err := conf.valid()
	if err != nil {
		return err
	}
	valid := map[string]bool{}
	for _, a := range list {
		valid[hostName(a.ContainerID, a.IfName)] = true
	}
	leases, err := store.Leases()
	if err != nil {
		return err
	}
	orphans, err := conf.orphans(store)
	if err != nil {
		return err
	}
	var errs []error
	for _, lease := range append(leases, orphans...) {
		if !valid[lease.ID] && isHostName(lease.ID) { // a stranger's is not in this network's list while it lives
			errs = append(errs, detach(store, conf.Agent, lease.ID))
		}
	}
	return errors.Join(errs...)
}

// orphans finds interfaces of this network without a lease: there are some only
// if the lease file was lost. The leases are read after the interfaces, so that
// one which is being made is not among them.
func (c *Conf) orphans(store *ipam.Store) ([]ipam.Lease, error) {
	live, err := wired(c.knownRanges())
	if err != nil {
		return nil, err
	}
	leases, err := store.Leases()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(live, func(w ipam.Lease) bool {
		return slices.ContainsFunc(leases, func(l ipam.Lease) bool { return l.ID == w.ID })
	}), nil
}

// status is CNI STATUS. A full range is no reason for "not available": that would
// take a node out of service whose pods all work.
func status(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	ranges, err := conf.ranges()
	if err != nil {
		return err
	}
	if _, err := conf.store(ranges); err != nil {
		return err
	}
	if err := ready(conf.Agent); err != nil {
		return cniErrorf(types.ErrPluginNotAvailable, "%v", err)
	}
	return nil
}

// ListAttachments returns the leases of the pods of this node, in the order of
// their addresses, from the plugin's dataDir. It locks nothing and mends nothing,
// so it may be called at any time; a directory without leases has none. A pod is
// in the list from the beginning of its ADD until the end of its DEL. With a
// damaged file it returns what can be read and an [*ipam.CorruptError]; the next
// ADD or DEL mends the file.
func ListAttachments(dataDir string) ([]ipam.Lease, error) { return ipam.Read(dataDir) }
