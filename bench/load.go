// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// messageSize is the size of a request and of its answer.
const messageSize = 64

// serve is the program in the remote host: it answers one request per connection, on a socket of the thread's own, without a runtime's poller between it
// and the kernel. It ends with a signal.
func serve(args []string) error {
	if len(args) != 1 {
		return errors.New("serve: want one address")
	}
	addr, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return fmt.Errorf("parse address: %w", err)
	}
	fd, err := bound(unix.SOCK_STREAM, addr)
	if err != nil {
		return err
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	const threads = 16
	failed := make(chan error)
	for range threads {
		go func() {
			runtime.LockOSThread()
			buf := make([]byte, messageSize)
			for {
				conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
					continue
				}
				if err != nil {
					failed <- fmt.Errorf("accept: %w", err)
					return
				}
				if n, err := readFD(conn, buf); err == nil && n == messageSize {
					if _, err := writeFD(conn, buf); err == nil {
						_, _ = readFD(conn, buf) // the client closes
					}
				}
				unix.Close(conn)
			}
		}()
	}
	return <-failed
}

// bound opens a socket of a kind, unix.SOCK_STREAM or unix.SOCK_DGRAM, at an address, in the calling thread's namespace.
func bound(kind int, at netip.AddrPort) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		return fd, errors.Join(fmt.Errorf("bind %s: %w", at, err), unix.Close(fd))
	}
	return fd, nil
}

// dial opens a socket of a kind to a server, in the calling thread's namespace. To wait for an answer there takes at most so long.
func dial(kind int, to netip.AddrPort, wait time.Duration) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	timeout := unix.NsecToTimeval(wait.Nanoseconds())
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		err = fmt.Errorf("set timeout: %w", err)
	} else if err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		err = fmt.Errorf("connect: %w", err)
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// loadResult is what a client measured.
type loadResult struct {
	Connections int     `json:"connections"`
	Errors      int     `json:"errors"`
	FirstError  string  `json:"firstError,omitempty"`
	Seconds     float64 `json:"seconds"`
	ConnectP50  float64 `json:"connectP50"` // microseconds
	ConnectP99  float64 `json:"connectP99"`
	// CPU is the processor time of one connection in microseconds. On veths that is nearly all of it, to the server's socket and back: what receives a packet
	// runs where it was sent.
	CPU float64 `json:"cpu"`
}

func (r loadResult) cpu() float64 { return r.CPU }

func (r loadResult) perSecond() float64 { return float64(r.Connections) / r.Seconds }

// load is the program in the client pod: connections one after the other, in one or several threads, each with one request and one answer.
func load(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	workers := flags.Int("workers", 1, "threads")
	warm := flags.Duration("warm", 200*time.Millisecond, "time before counting")
	count := flags.Duration("count", time.Second, "time of counting")
	targets := flags.String("to", "", "addresses, with commas, taken in turn")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var addrs []unix.SockaddrInet4
	for s := range strings.SplitSeq(*targets, ",") {
		addr, err := netip.ParseAddrPort(s)
		if err != nil {
			return fmt.Errorf("parse target: %w", err)
		}
		addrs = append(addrs, unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())})
	}
	begin := time.Now().Add(*warm)
	end := begin.Add(*count)
	clients := make([]client, *workers)
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			runtime.LockOSThread()
			clients[i].run(addrs, i, begin, end)
		})
	}
	running.Wait()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return fmt.Errorf("read processor time: %w", err)
	}
	result := loadResult{Seconds: count.Seconds()}
	all := 0
	var connects []time.Duration
	for _, c := range clients {
		connects = append(connects, c.connects...)
		result.Errors += c.errors
		all += c.all
		if c.first != nil {
			result.FirstError = c.first.Error()
		}
	}
	result.Connections = len(connects)
	result.CPU = float64(used.Utime.Nano()+used.Stime.Nano()) / 1000 / float64(max(all, 1))
	if len(connects) > 0 {
		slices.Sort(connects)
		micros := func(share float64) float64 {
			return float64(connects[int(share*float64(len(connects)-1))].Nanoseconds()) / 1000
		}
		result.ConnectP50, result.ConnectP99 = micros(0.5), micros(0.99)
	}
	return json.NewEncoder(out).Encode(result)
}

// client is one thread's work.
type client struct {
	connects []time.Duration // time in connect(), of connections counted
	all      int             // also those before counting
	errors   int
	first    error
}

func (c *client) run(to []unix.SockaddrInet4, turn int, begin, end time.Time) {
	c.connects = make([]time.Duration, 0, 1<<17)
	buf := make([]byte, messageSize)
	for ; ; turn++ {
		now := time.Now()
		if now.After(end) {
			return
		}
		c.all++
		took, err := exchange(&to[turn%len(to)], buf)
		switch {
		case err != nil:
			c.errors++
			c.first = err
		case now.After(begin):
			c.connects = append(c.connects, took)
		}
	}
}

// exchange is one connection, and how long it took to be there.
func exchange(to *unix.SockaddrInet4, buf []byte) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if err := resetOnClose(fd); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := unix.Connect(fd, to); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	took := time.Since(begin)
	if _, err := writeFD(fd, buf); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	if n, err := readFD(fd, buf); err != nil || n != len(buf) {
		return 0, fmt.Errorf("read: %d bytes, %w", n, err)
	}
	return took, nil
}
