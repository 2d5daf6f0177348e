// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Addresses that no host has: of documentation (RFC 5737), and of what is to be discarded (RFC 6666).
var (
	nowhere4 = netip.MustParseAddr("192.0.2.53")
	nowhere6 = netip.MustParseAddr("100::53")
)

// sendBuffer is asked of the kernel for each of them, in octets, so that packets for a host that has gone, which are kept for some seconds, leave room for others.
const sendBuffer = 4 << 20

// openSender opens a socket for the answers of one that is bound to an address. It has the address's port and an option to send from the address
// ([putSource]), and nobody can reach it: it is itself bound to an address that no host has.
//
// The socket that questions come in by would do, but Go waits for it, with epoll, and the kernel tells whoever waits for a socket of every packet that
// has left it. That is a twentieth of an answer's cost, and at a low rate another system call for each. So nobody waits for this one.
func openSender(local netip.AddrPort) (*os.File, error) {
	domain, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_FREEBIND
	transparent := unix.IP_TRANSPARENT
	var at unix.Sockaddr = &unix.SockaddrInet4{Addr: nowhere4.As4(), Port: int(local.Port())}
	if local.Addr().Is6() {
		domain, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_FREEBIND
		transparent = unix.IPV6_TRANSPARENT
		at = &unix.SockaddrInet6{Addr: nowhere6.As16(), Port: int(local.Port())}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket for answers: %w", err)
	}
	// There is one for each socket, and an agent that is being replaced has its own.
	err = errors.Join(unix.SetsockoptInt(fd, level, option, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, at))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open socket for answers: %w", err)
	}
	// Where it is allowed, the kernel need not look for each packet whether the address is the node's.
	_ = unix.SetsockoptInt(fd, level, transparent, 1)
	askBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	return os.NewFile(uintptr(fd), "answers of "+local.String()), nil // it blocks, so Go does not wait for it
}
