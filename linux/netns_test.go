// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package linux_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

func newNetNS(t *testing.T) *linux.NetNS {
	t.Helper()
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func TestNewNetNS(t *testing.T) {
	testnet.MustRoot(t)
	testnet.NoLeaks(t)
	ns := newNetNS(t)
	err := ns.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			if link.Attrs().Name == "lo" && link.Attrs().Flags&net.FlagUp == 0 {
				t.Error("loopback is not up")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDo runs many at once and looks that each is where it should be and that
// nobody outside is moved.
func TestDo(t *testing.T) {
	testnet.MustRoot(t)
	testnet.NoLeaks(t)
	home, err := linux.CurrentNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	var all sync.WaitGroup
	for range 20 {
		ns := newNetNS(t)
		all.Go(func() {
			for range 20 {
				err := ns.Do(func() error {
					here, err := linux.CurrentNetNS()
					if err != nil {
						return err
					}
					defer here.Close()
					if !here.Same(ns) || here.Same(home) {
						t.Error("Do: in another namespace")
					}
					// nested, to the outside and back
					return home.Do(func() error {
						here, err := linux.CurrentNetNS()
						if err != nil {
							return err
						}
						defer here.Close()
						if !here.Same(home) {
							t.Error("nested Do: in another namespace")
						}
						return nil
					})
				})
				if err != nil {
					t.Error(err)
				}
				runtime.Gosched()
				here, err := linux.CurrentNetNS()
				if err != nil {
					t.Error(err)
					return
				}
				if !here.Same(home) {
					t.Error("after Do: in another namespace")
				}
				here.Close()
			}
		})
	}
	all.Wait()
}

func TestDoLeaves(t *testing.T) {
	testnet.MustRoot(t)
	testnet.NoLeaks(t)
	ns := newNetNS(t)
	want := errors.New("no")
	if err := ns.Do(func() error { return want }); err != want {
		t.Errorf("error: %v", err)
	}
	func() {
		defer func() {
			if got := recover(); got != "boom" {
				t.Errorf("recovered %v", got)
			}
		}()
		ns.Do(func() error { panic("boom") })
		t.Error("went on after the panic")
	}()
	done, reached := make(chan bool), false
	go func() {
		defer close(done)
		ns.Do(func() error { runtime.Goexit(); return nil })
		reached = true
	}()
	<-done
	if reached {
		t.Error("went on after Goexit")
	}
	closed := newNetNS(t)
	closed.Close()
	if err := closed.Do(func() error { t.Error("ran"); return nil }); err == nil {
		t.Error("entered a closed namespace")
	}
}

func TestBind(t *testing.T) {
	testnet.MustRoot(t)
	testnet.NoLeaks(t)
	ns := newNetNS(t)
	path := filepath.Join(t.TempDir(), "deep", "ns")
	if _, err := linux.OpenNetNS(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open before bind: %v", err)
	}
	for range 2 { // twice on top of each other: Unbind takes both away
		if err := ns.Bind(path); err != nil {
			t.Fatal(err)
		}
	}
	again, err := linux.OpenNetNS(path)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Same(ns) {
		t.Error("bound another namespace")
	}
	again.Close()
	for range 2 {
		if err := linux.Unbind(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after unbind: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := linux.OpenNetNS(path); !errors.Is(err, linux.ErrNotNetNS) {
		t.Errorf("open an empty file: %v", err)
	}
	if _, err := linux.OpenNetNS("/proc/self/ns/mnt"); !errors.Is(err, linux.ErrNotNetNS) {
		t.Errorf("open a mount namespace: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	testnet.MustRoot(t)
	testnet.NoLeaks(t)
	a, b := newNetNS(t), newNetNS(t)
	again, err := linux.OpenNetNS(a.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !a.Same(again) || a.Same(b) {
		t.Error("Same is wrong")
	}
	cookies := map[uint64]int{}
	for _, ns := range []*linux.NetNS{a, b, again} {
		cookie, err := ns.Cookie()
		if err != nil {
			t.Fatal(err)
		}
		cookies[cookie]++
	}
	if len(cookies) != 2 {
		t.Errorf("cookies %v", cookies)
	}
}

func TestListenDial(t *testing.T) {
	testnet.MustRoot(t)
	testnet.NoLeaks(t)
	ns := newNetNS(t)
	listener, err := ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := ns.Dial(context.Background(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if conn, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("the listener can be reached from outside")
	}
	packets, err := ns.ListenPacket("udp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	packets.Close()
	for _, address := range []string{"localhost:80", "127.0.0.1", ""} {
		if _, err := ns.Dial(context.Background(), "tcp", address); err == nil || !strings.Contains(err.Error(), "dial") {
			t.Errorf("dial %q: %v", address, err)
		}
		if _, err := ns.Listen("tcp", address); err == nil {
			t.Errorf("listen %q: no error", address)
		}
	}
}
