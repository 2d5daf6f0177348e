// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/config"
	"github.com/fairlead/fairlead/dns"
	"github.com/fairlead/fairlead/hold"
	"github.com/fairlead/fairlead/status"
)

// endTimeout is how long an agent that answers but has no holder any more is waited for: the kernel is ending it.
const endTimeout = 2 * time.Second

// takePlace makes this process the node's agent, or the one beside it that is about to replace it, and returns the socket to answer on. What is inherited comes
// from this process's holder or, if that holds nothing yet and another agent of this state directory runs, from that one's.
func takePlace(ctx context.Context, held *hold.Held, cfg *config.Agent, log *slog.Logger) (net.Listener, error) {
	name := "unix/" + cfg.Socket()
	if held.Holder() != 0 && !held.Has(name) {
		for began := time.Now(); status.Running(ctx, cfg.Socket()); {
			conn, err := knock(cfg.Door())
			if err == nil {
				log.Info("taking over from the agent that runs")
				if err := held.TakeOver(conn); err != nil {
					return nil, err
				}
				break
			}
			if time.Since(began) > endTimeout {
				break // the error about the socket says it all
			}
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	socket, err := held.ListenBy(name, func() (net.Listener, error) { return status.Listen(cfg.Socket()) })
	if err != nil || held.Holder() == 0 || held.Has(hold.Door) {
		return socket, err
	}
	return socket, openDoor(held, cfg.Door())
}

// openDoor makes the socket where the next agent knocks, in place of one that a killed agent left, and gives it to the holder.
func openDoor(held *hold.Held, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old door: %w", err)
	}
	defer syscall.Umask(syscall.Umask(0o177))
	return status.Near(path, func(short string) error {
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: short, Net: "unixpacket"})
		if err != nil {
			return fmt.Errorf("open door: %w", err)
		}
		l.SetUnlinkOnClose(false)
		defer l.Close()
		return held.Keep(hold.Door, l)
	})
}

func knock(path string) (conn *net.UnixConn, err error) {
	err = status.Near(path, func(short string) error {
		conn, err = net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: short, Net: "unixpacket"})
		return err
	})
	return conn, err
}

// listenDNS opens the DNS sockets or takes those of the agent before, and has them held.
func (n *Node) listenDNS(addrs []netip.AddrPort) (*dns.Sockets, error) {
	inherited := n.held.Take(dns.Inheritance)
	names := slices.Collect(maps.Keys(inherited))
	sockets, err := n.names.ListenInherited(addrs, inherited)
	if err != nil {
		return nil, err
	}
	files := sockets.Files()
	for name, f := range files {
		if slices.Contains(names, name) {
			continue
		}
		if err := n.held.Keep(name, f); err != nil {
			sockets.Close()
			return nil, err
		}
	}
	for _, name := range names {
		if files[name] == nil {
			n.held.Drop(name)
		}
	}
	return sockets, nil
}
