// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead/fairlead/linux"
)

// TestTwoHosts is the example of the package comment, for both protocols and
// both families.
func TestTwoHosts(t *testing.T) {
	w := New(t)
	a, b := w.Host("a"), w.Host("b")
	w.Cable(a, "eth0", b, "eth0")
	a.Addr("eth0", "10.0.0.1/24", "fd00::1/64")
	b.Addr("eth0", "10.0.0.2/24", "fd00::2/64")
	for _, network := range []string{"tcp", "udp"} {
		for _, pair := range [][2]string{{"10.0.0.1", "10.0.0.2:80"}, {"fd00::1", "[fd00::2]:80"}} {
			server := b.Echo(network, pair[1])
			for _, from := range []string{"", pair[0], netip.AddrPortFrom(netip.MustParseAddr(pair[0]), 4000).String()} {
				got, err := a.Ask(network, from, server)
				if err != nil {
					t.Fatalf("%s %q to %s: %v", network, from, server, err)
				}
				if got.Name != "b" || got.Client.Addr().String() != pair[0] {
					t.Errorf("%s %q to %s: %+v", network, from, server, got)
				}
				if strings.HasSuffix(from, "4000") && got.Client.Port() != 4000 {
					t.Errorf("%s %q to %s: %+v", network, from, server, got)
				}
			}
		}
	}
	b.EchoAs("", "tcp", "[::]:82")
	for _, asked := range []string{"10.0.0.2:82", "[fd00::2]:82"} {
		if got, err := a.Ask("tcp", "", netip.MustParseAddrPort(asked)); err != nil || got.Name != asked {
			t.Errorf("the server at all addresses, asked at %s: %+v %v", asked, got, err)
		}
	}
	if _, err := a.Ask("tcp", "", netip.MustParseAddrPort("10.0.0.2:81")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("no server: %v", err)
	}
}

// TestRouterAndSwitch sends through a host that forwards, and through a bridge.
func TestRouterAndSwitch(t *testing.T) {
	w := New(t)
	a, b, r, s := w.Host("a"), w.Host("b"), w.Host("r"), w.Host("s")
	w.Cable(a, "eth0", s, "p0")
	w.Cable(r, "eth0", s, "p1")
	s.Switch("sw", "p0", "p1")
	w.Cable(r, "eth1", b, "eth0")
	a.Addr("eth0", "10.0.0.2/24", "fd00::2/64")
	r.Addr("eth0", "10.0.0.1/24", "fd00::1/64")
	r.Addr("eth1", "10.0.1.1/24", "fd00:1::1/64")
	b.Addr("eth0", "10.0.1.2/24", "fd00:1::2/64")
	a.Route("0.0.0.0/0", "10.0.0.1", "eth0")
	a.Route("::/0", "fd00::1", "eth0")
	b.Route("10.0.0.0/24", "10.0.1.1", "eth0")
	b.Route("fd00::/64", "fd00:1::1", "eth0")
	r.Forward()
	for _, server := range []string{"10.0.1.2:0", "[fd00:1::2]:0"} {
		got, err := a.Ask("tcp", "", b.Echo("tcp", server))
		if err != nil {
			t.Fatalf("%s: %v", server, err)
		}
		if got.Name != "b" || got.Client.Addr() != netip.MustParseAddr("10.0.0.2") && got.Client.Addr() != netip.MustParseAddr("fd00::2") {
			t.Errorf("%s: %+v", server, got)
		}
	}
}

// TestDoFailNow shows that a test ended inside of a host ends outside as well.
func TestDoFailNow(t *testing.T) {
	w := New(t)
	a := w.Host("a")
	t.Run("inner", func(t *testing.T) {
		a.Do(func() error {
			t.SkipNow()
			return nil
		})
		t.Error("went on after the skip")
	})
}

// fake is a testing.TB that keeps errors and cleanups instead of acting.
type fake struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (f *fake) Helper()                   {}
func (f *fake) TempDir() string           { return f.TB.TempDir() }
func (f *fake) Cleanup(c func())          { f.cleanups = append(f.cleanups, c) }
func (f *fake) Errorf(s string, a ...any) { f.errors = append(f.errors, fmt.Sprintf(s, a...)) }

// TestNoLeaks leaks one thing of every kind and wants each reported.
func TestNoLeaks(t *testing.T) {
	MustRoot(t)
	defer func(grace time.Duration) { leakGrace = grace }(leakGrace)
	leakGrace = 50 * time.Millisecond
	for _, c := range []struct {
		want string
		leak func(t *testing.T, dir string)
	}{
		{"", func(*testing.T, string) {}},
		{"descriptor of net:[", func(t *testing.T, _ string) {
			ns, err := linux.NewNetNS()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ns.Close() })
		}},
		{"mount at ", func(t *testing.T, dir string) {
			ns, err := linux.NewNetNS()
			if err != nil {
				t.Fatal(err)
			}
			if err := ns.Bind(dir + "/ns"); err != nil {
				t.Fatal(err)
			}
			ns.Close()
			t.Cleanup(func() { linux.Unbind(dir + "/ns") })
		}},
		{"child process ", func(t *testing.T, _ string) {
			child := exec.Command("sleep", "60")
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { child.Process.Kill(); child.Wait() })
		}},
		{"thread in net:[", func(t *testing.T, _ string) {
			ns, err := linux.NewNetNS()
			if err != nil {
				t.Fatal(err)
			}
			stop, inside, done := make(chan bool), make(chan bool), make(chan bool)
			go func() {
				defer close(done)
				ns.Do(func() error { close(inside); <-stop; return nil })
			}()
			<-inside
			t.Cleanup(func() { close(stop); <-done; ns.Close() })
		}},
	} {
		t.Run(c.want, func(t *testing.T) {
			f := &fake{TB: t}
			NoLeaks(f)
			c.leak(t, t.TempDir())
			f.cleanups[0]()
			if got := strings.Join(f.errors, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("reported %q, want %q", got, c.want)
			}
		})
	}
}

func TestSkip(t *testing.T) {
	t.Setenv(NoSkip, "1")
	f := &fatal{TB: t}
	Skip(f, "because")
	if !f.fatal || f.skipped {
		t.Errorf("with %s=1: %+v", NoSkip, f)
	}
	os.Unsetenv(NoSkip)
	f = &fatal{TB: t}
	Skip(f, "because")
	if f.fatal || !f.skipped {
		t.Errorf("without: %+v", f)
	}
}

type fatal struct {
	testing.TB
	fatal, skipped bool
}

func (f *fatal) Helper()               {}
func (f *fatal) Fatalf(string, ...any) { f.fatal = true }
func (f *fatal) Skip(...any)           { f.skipped = true }
