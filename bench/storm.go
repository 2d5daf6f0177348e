// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// answer is the program in a server pod. It stops listening the moment it gets SIGTERM, finishes what it has accepted, and goes on to live for a while, as
// programs do that have something to put in order.
func answer(args []string) error {
	flags := flag.NewFlagSet("answer", flag.ContinueOnError)
	on := flags.String("on", "", "address")
	linger := flags.Duration("linger", time.Second, "time from SIGTERM to the end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	listener, err := net.Listen("tcp", *on)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	var open sync.WaitGroup
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			open.Go(func() { answerOne(conn) })
		}
	}()
	<-told
	listener.Close()
	end := time.After(*linger)
	open.Wait()
	<-end
	return nil
}

func answerOne(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(stormLimit))
	buf := make([]byte, messageSize)
	if _, err := io.ReadFull(conn, buf); err != nil {
		return
	}
	if _, err := conn.Write(buf); err != nil {
		return
	}
	_, _ = conn.Read(buf) // the client closes
}

const (
	// stormLimit is how long a connection may take before it has failed.
	stormLimit = 3 * time.Second
	// stormSlow is above what a connection takes that had no packet lost: the first retransmission of a SYN is after a second.
	stormSlow = 900 * time.Millisecond
	stormTick = time.Millisecond
)

// stormResult counts connections by how they ended.
type stormResult struct {
	Connections int            `json:"connections"`
	Failed      map[string]int `json:"failed"` // by what was said
	Slow        int            `json:"slow"`   // succeeded, after a packet was lost
}

func (r stormResult) failures() (n int) {
	for _, count := range r.Failed {
		n += count
	}
	return n
}

// storm is the program in the client pod: connections at a steady rate, whatever becomes of them, until SIGTERM.
func storm(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("storm", flag.ContinueOnError)
	to := flags.String("to", "", "address")
	rate := flags.Int("rate", 2000, "connections per second")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	result := stormResult{Failed: map[string]int{}}
	var mu sync.Mutex
	var open sync.WaitGroup
	begin := time.Now()
	for ticks := time.NewTicker(stormTick); ctx.Err() == nil; <-ticks.C {
		for due := int(time.Since(begin).Seconds() * float64(*rate)); result.Connections < due; result.Connections++ {
			n := result.Connections
			open.Go(func() {
				took, err := ask(*to, stormPort(n))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					result.Failed[reason(err)]++
				case took > stormSlow:
					result.Slow++
				}
			})
		}
	}
	open.Wait()
	return json.NewEncoder(out).Encode(result)
}

// stormPort is the port that the n-th connection comes from. Taken in turn, one is used again after half a minute: connection tracking must
// have forgotten the connection before by then (it does after ten seconds), or the new one could be sent where that one went, to a pod that is gone.
func stormPort(n int) int { return 2000 + n%60000 }

// ask is one connection with a request and an answer, from a port, or any for 0.
func ask(to string, from int) (time.Duration, error) {
	begin := time.Now()
	dialer := net.Dialer{Timeout: stormLimit, LocalAddr: &net.TCPAddr{Port: from}}
	conn, err := dialer.Dial("tcp", to)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	err = errors.Join(conn.(*net.TCPConn).SetLinger(0), conn.SetDeadline(begin.Add(stormLimit)))
	if err != nil {
		return 0, err
	}
	buf := make([]byte, messageSize)
	if _, err := conn.Write(buf); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	if _, err := io.ReadFull(conn, buf); err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	return time.Since(begin), nil
}

// reason is a word for an error.
func reason(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}
