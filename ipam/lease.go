// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Lease is what one attachment of a pod to the network holds.
type Lease struct {
	ID           string       `json:"id"`                  // of the attachment; in Fairlead the name of the host's interface
	Addrs        []netip.Addr `json:"addrs"`               // one of each range, in the order of the ranges
	ContainerID  string       `json:"container,omitempty"` // CNI_CONTAINERID; empty in a lease that was found in the kernel
	IfName       string       `json:"ifname,omitempty"`    // CNI_IFNAME
	NetNS        string       `json:"netns,omitempty"`     // CNI_NETNS as it was given
	NetNSID      uint64       `json:"netnsID,omitempty"`   // of the namespace, unique since boot (SO_NETNS_COOKIE); 0: not known
	PodNamespace string       `json:"podNamespace,omitempty"`
	PodName      string       `json:"podName,omitempty"`
	PodUID       string       `json:"podUID,omitempty"`
	AllocatedAt  time.Time    `json:"at"` // set by Allocate
}

// maxText bounds each text of a lease in bytes: a line with longer ones was not
// written by us.
const maxText = 4096

// check tells whether a lease can be stored.
func (l *Lease) check() error {
	if l.ID == "" {
		return errors.New("lease without id")
	}
	for _, text := range []string{l.ID, l.ContainerID, l.IfName, l.NetNS, l.PodNamespace, l.PodName, l.PodUID} {
		if len(text) > maxText {
			return fmt.Errorf("lease with a text of %d bytes", len(text))
		}
	}
	if err := checkAddrs(l.Addrs); err != nil {
		return fmt.Errorf("lease %s: %w", l.ID, err)
	}
	for i, addr := range l.Addrs {
		if slices.Contains(l.Addrs[:i], addr) {
			return fmt.Errorf("lease %s: address %s twice", l.ID, addr)
		}
	}
	return nil
}

// checkAddrs wants at least one address, and each in its one form.
func checkAddrs(addrs []netip.Addr) error {
	for _, addr := range addrs {
		if !addr.IsValid() || addr.Zone() != "" || addr.Is4In6() {
			return fmt.Errorf("unusable address %q", addr)
		}
	}
	if len(addrs) == 0 {
		return errors.New("no address")
	}
	return nil
}

// fits reports whether the lease has exactly one assignable address of each
// range.
func (l *Lease) fits(ranges []netip.Prefix) bool {
	if len(l.Addrs) != len(ranges) {
		return false
	}
	for i, r := range ranges {
		first, last, err := Bounds(r)
		if err != nil || !r.Contains(l.Addrs[i]) || l.Addrs[i].Less(first) || last.Less(l.Addrs[i]) {
			return false
		}
	}
	return true
}

// same reports whether two leases say the same about their holder.
func (l *Lease) same(o *Lease) bool {
	return l.ID == o.ID && l.ContainerID == o.ContainerID && l.IfName == o.IfName && l.NetNS == o.NetNS && l.NetNSID == o.NetNSID &&
		l.PodNamespace == o.PodNamespace && l.PodName == o.PodName && l.PodUID == o.PodUID
}

// FullError says that no address of a range is free.
type FullError struct {
	Range netip.Prefix
	Held  int
}

// Error names the range and how many addresses are held.
func (e *FullError) Error() string {
	return fmt.Sprintf("no free address in range %s: %d of %d are held", e.Range, e.Held, Size(e.Range))
}

// CorruptError says where a lease file is damaged.
type CorruptError struct {
	Path string
	Line int // the first bad one, counted from 1
	Bad  int // how many lines are bad
	Err  error
}

// Error names the file, the line and what is wrong with it.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("lease file %s is damaged in %d lines, first in line %d: %v", e.Path, e.Bad, e.Line, e.Err)
}

// Unwrap returns what is wrong with the first bad line.
func (e *CorruptError) Unwrap() error { return e.Err }
