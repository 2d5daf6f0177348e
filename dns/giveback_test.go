// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// Questions that are asked while sockets are given back are answered, by them or by those that are left; afterwards by those alone.
func TestGiveBack(t *testing.T) {
	s := dual(t, nil)
	own := listen(t, s, "127.0.0.1")
	stop := serve(t, s, own)
	addr := own.Addrs()[0]
	left := &Sockets{}
	if err := left.openUDP(addr); err != nil {
		t.Fatal(err)
	}
	question := new(mdns.Msg).SetQuestion("orders.shop.svc.cluster.local.", typeA)
	ask := func(network string) error {
		m, _, err := (&mdns.Client{Net: network, Timeout: 10 * time.Second}).Exchange(question, addr.String())
		if err == nil && len(m.Answer) != 1 {
			t.Errorf("answered %v", m)
		}
		return err
	}
	held := dialTCP(t, addr)
	var asked atomic.Int64
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := ask("udp"); err != nil {
					t.Errorf("lost: %v", err)
					return
				}
				asked.Add(1)
			}
		})
	}
	more := func() {
		for want := asked.Load() + 100; asked.Load() < want && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	stopLeft := serve(t, s, left)
	defer stopLeft()
	more()
	given := make(chan error)
	go func() { given <- s.GiveBack(t.Context(), own) }()
	more()
	// A connection that is open is answered until its client closes it; new ones are refused.
	for {
		if c, err := net.Dial("tcp", addr.String()); err != nil {
			break
		} else {
			c.Close()
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-given:
		t.Errorf("given back with a connection open: %v", err)
	default:
	}
	for range 2 {
		held.Write(framed(message(t, nil)))
		size := make([]byte, 2)
		if _, err := io.ReadFull(held, size); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, held, int64(size[0])<<8|int64(size[1])); err != nil {
			t.Fatal(err)
		}
	}
	held.Close()
	if err := <-given; err != nil {
		t.Fatal(err)
	}
	stop()
	more()
	end()
	wg.Wait()
}

// What has been read and waits for the kernel, as a new Service does, is answered before the sockets are given back.
func TestGiveBackWaits(t *testing.T) {
	c := newCluster(t, Options{Wait: time.Minute})
	c.step()
	sockets := listen(t, c.Server, "127.0.0.1")
	stop := serve(t, c.Server, sockets)
	c.service("shop/new", "10.96.0.99")
	c.endpoints("shop/new", "10.244.0.9")
	snap := c.announce()
	answered := make(chan error, 1)
	go func() {
		m, _, err := (&mdns.Client{Timeout: 10 * time.Second}).Exchange(new(mdns.Msg).SetQuestion("new.shop.svc.cluster.local.", typeA), sockets.Addrs()[0].String())
		if err == nil && len(m.Answer) != 1 {
			err = fmt.Errorf("answered %v", m)
		}
		answered <- err
	}()
	for c.late.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	given := make(chan error, 1)
	go func() { given <- c.GiveBack(t.Context(), sockets) }()
	select {
	case err := <-given:
		t.Errorf("given back before the answer: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	c.Publish(snap)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := <-given; err != nil {
		t.Error(err)
	}
	stop()
}
