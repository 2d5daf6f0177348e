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
	"time"

	"golang.org/x/sys/unix"
)

// The ports of sink, beside targetPort, where every connection has one request.
const (
	pingPort   = targetPort + 1 // TCP and UDP: what comes is sent back
	streamPort = targetPort + 2 // TCP: what comes is thrown away
)

// sink is the server of the measurements between nodes: a thread for each connection, on sockets of the thread's own. It ends with a signal.
func sink(args []string) error {
	if len(args) != 1 {
		return errors.New("sink: want one address")
	}
	addr, err := netip.ParseAddr(args[0])
	if err != nil {
		return fmt.Errorf("parse address: %w", err)
	}
	failed := make(chan error)
	go func() { failed <- serve([]string{netip.AddrPortFrom(addr, targetPort).String()}) }()
	for _, l := range []struct {
		port uint16
		do   func(fd int, buf []byte)
	}{{pingPort, sendBack}, {streamPort, throwAway}} {
		fd, err := bound(unix.SOCK_STREAM, netip.AddrPortFrom(addr, l.port))
		if err != nil {
			return err
		}
		if err := unix.Listen(fd, 16); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		go func() {
			for {
				conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if errors.Is(err, unix.EINTR) {
					continue
				}
				if err != nil {
					failed <- fmt.Errorf("accept: %w", err)
					return
				}
				go func() {
					runtime.LockOSThread()
					defer unix.Close(conn)
					_ = unix.SetsockoptInt(conn, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
					l.do(conn, make([]byte, 1<<17))
				}()
			}
		}()
	}
	fd, err := bound(unix.SOCK_DGRAM, netip.AddrPortFrom(addr, pingPort))
	if err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		buf := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				err = unix.Sendto(fd, buf[:n], 0, from)
			}
			if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ECONNREFUSED) {
				failed <- fmt.Errorf("echo: %w", err)
				return
			}
		}
	}()
	return <-failed
}

func sendBack(fd int, buf []byte) {
	for {
		n, err := readFD(fd, buf)
		if err != nil || n == 0 {
			return
		}
		if _, err := writeFD(fd, buf[:n]); err != nil {
			return
		}
	}
}

func throwAway(fd int, buf []byte) {
	for {
		if n, err := readFD(fd, buf); err != nil || n == 0 {
			return
		}
	}
}

// carried is what a client of sink measured.
type carried struct {
	PerSecond float64 `json:"perSecond"` // bytes of a stream, exchanges of the others
	P50       float64 `json:"p50"`       // of an exchange, microseconds
	P99       float64 `json:"p99"`
}

// carry is the client of sink: one stream, or one message to and fro, as fast as it goes.
func carry(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("carry", flag.ContinueOnError)
	what := flags.String("what", "stream", "stream, ping (TCP) or udp")
	to := flags.String("to", "", "address of the server")
	warm := flags.Duration("warm", 200*time.Millisecond, "time before counting")
	count := flags.Duration("count", time.Second, "time of counting")
	if err := flags.Parse(args); err != nil {
		return err
	}
	addr, err := netip.ParseAddr(*to)
	if err != nil {
		return fmt.Errorf("parse address: %w", err)
	}
	kind, port := unix.SOCK_STREAM, uint16(pingPort)
	switch *what {
	case "stream":
		port = streamPort
	case "udp":
		kind = unix.SOCK_DGRAM
	case "ping":
	default:
		return fmt.Errorf("there is no %q", *what)
	}
	runtime.LockOSThread()
	// With a limit, a lost datagram is an error and not the end of all.
	fd, err := dial(kind, netip.AddrPortFrom(addr, port), time.Second)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return fmt.Errorf("set TCP_NODELAY: %w", err)
		}
	}
	begin := time.Now().Add(*warm)
	end := begin.Add(*count)
	var result carried
	if *what == "stream" {
		result, err = stream(fd, begin, end)
	} else {
		result, err = pingPong(fd, begin, end)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

func stream(fd int, begin, end time.Time) (r carried, err error) {
	buf := make([]byte, 1<<17)
	sent := 0
	for now := time.Now(); now.Before(end); now = time.Now() {
		n, err := writeFD(fd, buf)
		if err != nil {
			return r, fmt.Errorf("write: %w", err)
		}
		if now.After(begin) {
			sent += n
		}
	}
	r.PerSecond = float64(sent) / end.Sub(begin).Seconds()
	return r, nil
}

func pingPong(fd int, begin, end time.Time) (r carried, err error) {
	buf := make([]byte, messageSize)
	var took []float64
	for now := time.Now(); now.Before(end); {
		if _, err := writeFD(fd, buf); err != nil {
			return r, fmt.Errorf("write: %w", err)
		}
		if n, err := readFD(fd, buf); err != nil || n != len(buf) {
			return r, fmt.Errorf("read: %d bytes, %w", n, err)
		}
		next := time.Now()
		if now.After(begin) {
			took = append(took, float64(next.Sub(now).Nanoseconds())/1000)
		}
		now = next
	}
	if len(took) == 0 {
		return r, errors.New("no exchange in time")
	}
	slices.Sort(took)
	r.PerSecond, r.P50, r.P99 = float64(len(took))/end.Sub(begin).Seconds(), quantile(took, 0.5), quantile(took, 0.99)
	return r, nil
}
