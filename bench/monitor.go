// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// nftablesGroup is NFNLGRP_NFTABLES: the kernel tells it of every transaction after it has taken it.
const nftablesGroup = 7

// monitor hears what the kernel has taken into the nftables of a host, and remembers when an address that somebody waits for was first in a new
// element or rule. It does not care for names or layout, so it judges every contender alike.
type monitor struct {
	fd   int
	done chan struct{}

	mu   sync.Mutex
	want map[uint32]chan time.Time
	err  error
}

func newMonitor(h *host) (*monitor, error) {
	m := &monitor{done: make(chan struct{}), want: map[uint32]chan time.Time{}}
	err := h.Do(func() (err error) {
		if m.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		return errors.Join(
			unix.Bind(m.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
			unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
			unix.SetsockoptInt(m.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, nftablesGroup),
			// so that close finds the reader not waiting for ever
			unix.SetsockoptTimeval(m.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("listen to nftables: %w", err)
	}
	go m.read()
	return m, nil
}

func (m *monitor) close() {
	if m == nil {
		return
	}
	close(m.done)
}

// expect returns a channel that gets the time at which the kernel told of the address.
func (m *monitor) expect(addr netip.Addr) <-chan time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	told := make(chan time.Time, 1)
	m.want[word(addr)] = told
	return told
}

// failed is what went wrong with listening: without it, nothing that was missed can be taken for slow.
func (m *monitor) failed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func word(addr netip.Addr) uint32 {
	b := addr.As4()
	return binary.BigEndian.Uint32(b[:])
}

func (m *monitor) read() {
	defer unix.Close(m.fd)
	buf := make([]byte, 1<<20)
	for {
		select {
		case <-m.done:
			return
		default:
		}
		n, _, err := unix.Recvfrom(m.fd, buf, 0)
		now := time.Now()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		m.mu.Lock()
		if err != nil {
			m.err = fmt.Errorf("hear of nftables transactions: %w", err)
		} else {
			newWords(buf[:n], func(w uint32) {
				if told := m.want[w]; told != nil {
					told <- now
					delete(m.want, w)
				}
			})
		}
		m.mu.Unlock()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
	}
}

// newWords calls f with every aligned four bytes, in network order, of the messages that tell of a new element or rule. Netlink aligns attributes and
// nftables aligns the parts of a key, so an address is one of them.
func newWords(b []byte, f func(uint32)) {
	const header, nfgen = unix.NLMSG_HDRLEN, 4
	for len(b) >= header {
		length := int(binary.NativeEndian.Uint32(b))
		if length < header || length > len(b) {
			return
		}
		kind := binary.NativeEndian.Uint16(b[4:])
		if subsystem := kind >> 8; subsystem == unix.NFNL_SUBSYS_NFTABLES {
			switch kind & 0xff {
			case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_NEWRULE:
				for i := header + nfgen; i+4 <= length; i += 4 {
					f(binary.BigEndian.Uint32(b[i:]))
				}
			}
		}
		b = b[min((length+3)&^3, len(b)):]
	}
}
