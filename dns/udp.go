// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// busy is how many queries there were together if more are likely to be there already.
const busy = 4

// serveUDP answers on one socket, first what a process before this one has left unanswered. What can be answered at once is, on this goroutine and
// without allocation, a batch of queries at a time.
func (s *Server) serveUDP(ctx context.Context, u udpSocket) error {
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("serve %s: %w", u.conn.LocalAddr(), err)
	}
	sender := raw
	if u.sender != nil {
		if sender, err = u.sender.SyscallConn(); err != nil {
			return fmt.Errorf("serve %s: %w", u.conn.LocalAddr(), err)
		}
	}
	in, err := openInbox(u.inbox)
	if err != nil {
		return err
	}
	defer in.close()
	out, err := openOutbox(localOf(u.conn).Addr())
	if err != nil {
		return err
	}
	defer out.close()
	d := s.desk(s.newStats("udp", localOf(u.conn)))
	var wg sync.WaitGroup
	defer wg.Wait()
	answer := func(from *unix.RawSockaddrInet6, msg []byte) {
		to := address(from)
		resp, later := s.handle(d, to.Addr(), msg, out.next())
		if resp != nil {
			out.put(from, resp)
		}
		if later == nil {
			return
		}
		done := in.wait(from, msg)
		s.late.Add(1)
		wg.Go(func() {
			defer s.late.Add(-1)
			resp := later(ctx, nil)
			if ctx.Err() != nil {
				return // it stays in the inbox, for the next process
			}
			if resp != nil {
				if _, err := u.conn.WriteToUDPAddrPort(resp, to); err != nil {
					d.unsent.Add(1)
				}
			}
			done()
		})
	}
	flush := func() error {
		err := out.flush(sender)
		if out.unsent > 0 {
			d.unsent.Add(uint64(out.unsent))
		}
		d.sent(s.now())
		return err
	}
	for from, msg := range in.left() {
		// The slot is free again at once, so one after the other.
		if answer(from, msg); out.n > 0 {
			if err := flush(); err != nil {
				return closed(ctx, err)
			}
		}
	}
	in.prepare()
	var ahead ahead
	// batches answers until it is time to wait. Go hears of what comes meanwhile, so after a few queries, with which the socket was empty, it need
	// not be asked whether it still is.
	var failed error
	batches := func(fd uintptr) (done bool) {
		for {
			if failed = in.receive(fd); failed != nil {
				return failed != unix.EAGAIN
			}
			d.begin(s)
			more := in.n >= busy
			if v := s.gate.state.Load().published; v != nil && more {
				ahead.read(v.snap, in)
			}
			for i := range in.n {
				answer(in.message(i))
			}
			if failed = flush(); failed != nil {
				return true
			}
			in.answered()
			if ctx.Err() != nil {
				return true // whoever closes the socket waits for this, and the next process for that
			}
			if !more {
				return false
			}
		}
	}
	for {
		err := raw.Read(batches)
		if err == nil {
			err = failed
		}
		if err := closed(ctx, err); err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
			return err
		}
		s.log.Warn("read query", "addr", d.local, "err", err)
		if !sleep(ctx, 10*time.Millisecond) {
			return nil
		}
	}
}

// closed is no error if the socket was closed because the context ended.
func closed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
