// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probeWait is how long one attempt may take. Where a Service is programmed a connection over veths is there within
	// some ten microseconds; where it is not, nothing may ever answer.
	probeWait  = time.Millisecond
	probePause = 500 * time.Microsecond
)

// tryConnect opens a connection from the calling thread's namespace, and resets it at once.
func tryConnect(to netip.AddrPort, wait time.Duration) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if err := resetOnClose(fd); err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(poll, int(wait.Milliseconds()))
	if err != nil {
		return fmt.Errorf("wait for connection: %w", err)
	}
	if n == 0 {
		return unix.ETIMEDOUT
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return fmt.Errorf("read result of connection: %w", err)
	}
	if code != 0 {
		return unix.Errno(code)
	}
	return nil
}

// resetOnClose ends the connection with a reset, so that no port waits in TIME_WAIT.
func resetOnClose(fd int) error {
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	return nil
}

// awaitForwarding tries the addresses from a host, one after the other, each until it connects, and returns when the last one did: an address that is
// programmed late holds up the others, so the latest decides.
func awaitForwarding(ctx context.Context, from *host, to []netip.AddrPort, alive func() error) (last time.Time, err error) {
	err = from.Do(func() error {
		for _, addr := range to {
			for {
				err := tryConnect(addr, probeWait)
				if err == nil {
					break
				}
				if ctx.Err() != nil {
					return fmt.Errorf("wait for %s: %w: %w", addr, ctx.Err(), err)
				}
				if err := alive(); err != nil {
					return err
				}
				time.Sleep(probePause)
			}
		}
		last = time.Now()
		return nil
	})
	return last, err
}

// verifyForwarding connects once to each address, with a second attempt for a packet that was slow, and says which do not answer.
func verifyForwarding(from *host, to []netip.AddrPort) error {
	return from.Do(func() error {
		for _, addr := range to {
			if tryConnect(addr, probeWait) != nil {
				if err := tryConnect(addr, 100*probeWait); err != nil {
					return fmt.Errorf("%s was to be programmed, but: %w", addr, err)
				}
			}
		}
		return nil
	})
}
