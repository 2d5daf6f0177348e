// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"

	"golang.org/x/net/ipv4"
)

// echoUDP answers each datagram from the address that it was sent to.
func echoUDP(c *net.UDPConn) error {
	p := ipv4.NewPacketConn(c)
	if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
		return fmt.Errorf("ask for destinations: %w", err)
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, to, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = p.WriteTo(buf[:n], &ipv4.ControlMessage{Src: to.Dst}, from)
		}
	}()
	return nil
}
