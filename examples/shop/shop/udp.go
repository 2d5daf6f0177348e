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
	"syscall"
)

// datagram sends one datagram to target from a socket of its own and returns
// the answer. The socket is connected, so a "port unreachable" from the network
// arrives as a refused connection instead of as silence.
func datagram(ctx context.Context, target, text string) ([]byte, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", target)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		conn.SetDeadline(end)
	}
	buf := make([]byte, 64*1024)
	if _, err := conn.Write([]byte(text)); errors.Is(err, syscall.EPERM) {
		// The machine's own packet filter rejected it on the way out. Linux then
		// fails the write, and keeps the ICMP message for whoever reads.
		if _, said := conn.Read(buf); errors.Is(said, syscall.ECONNREFUSED) {
			return nil, said
		}
		return nil, err
	} else if err != nil {
		return nil, err
	}
	n, err := conn.Read(buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// udpMain sends one datagram to each target and prints the answers, or sends
// many (to the targets in turn) and prints the summary.
func udpMain(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("udp", flag.ContinueOnError)
	var l load
	l.flags(fs)
	text := fs.String("text", "tick", "what to send")
	targets, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return errors.New("udp: which HOST:PORT?")
	}
	if !l.many() {
		return each(ctx, targets, l.timeout, out, func(ctx context.Context, target string) ([]byte, error) {
			return datagram(ctx, target, *text)
		})
	}
	if err := l.check(); err != nil {
		return fmt.Errorf("udp: %w", err)
	}
	return shoot(ctx, l, func(ctx context.Context, i int) (answer, error) {
		line, err := datagram(ctx, targets[i%len(targets)], *text)
		var a answer
		if err == nil && json.Unmarshal(line, &a) != nil {
			a = answer{}
		}
		return a, err
	}).print(out)
}
