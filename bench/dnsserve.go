// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// echo is a UDP server that sends back what it gets, marked as an answer: one system call in, one out, and nothing between.
func echo(args []string) error {
	return serveUDP(args, func(msg []byte) []byte {
		if len(msg) < headerSize {
			return nil
		}
		msg[2] |= 0x80
		return msg
	})
}

// serveUDP answers on one address until a signal or an error. Where answer gives nothing, nothing is sent.
func serveUDP(args []string, answer func([]byte) []byte) error {
	if len(args) != 1 {
		return errors.New("want one address")
	}
	addr, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return fmt.Errorf("parse address: %w", err)
	}
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer conn.Close()
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if msg := answer(buf[:n]); msg != nil {
			if _, err := conn.WriteToUDPAddrPort(msg, from); err != nil {
				return fmt.Errorf("send: %w", err)
			}
		}
	}
}

const (
	// outside is the zone of what is not in the cluster.
	outside = "example.com"
	// counter is the name at which the upstream says how many questions it has had for anything else, as an address.
	counter = "counter.invalid"
	// outsideTTL in seconds is longer than a run, so that what is measured is not the upstream.
	outsideTTL = 3600
)

// outsideAddrs are the addresses of every name there.
var outsideAddrs = map[uint16]netip.Addr{typeA: netip.MustParseAddr("198.51.100.1"), typeAAAA: netip.MustParseAddr("2001:db8::1")}

// upstream is the resolver that servers forward to: every name directly in one zone has an address of each family, and there is nothing else.
func upstream(args []string) error {
	asked := uint32(0)
	return serveUDP(args, func(msg []byte) []byte {
		out, counted := answerOutside(msg, asked)
		if counted {
			asked++
		}
		return out
	})
}

// answerOutside answers one query. The answer has room of its own.
func answerOutside(msg []byte, asked uint32) (out []byte, counted bool) {
	if len(msg) < headerSize || msg[2]&0x80 != 0 || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return nil, false
	}
	name, end := readName(msg)
	if end < 0 || end+4 > len(msg) {
		return nil, false
	}
	qtype := binary.BigEndian.Uint16(msg[end:])
	out = append(make([]byte, 0, 512), msg[:end+4]...)
	out[2], out[3] = 0x84|msg[2]&0x01, 0x80 // an authoritative answer, recursion was asked for and is there
	clear(out[6:headerSize])
	record := func(owner []byte, rtype uint16, ttl uint32, data []byte) {
		out = append(out, owner...)
		out = binary.BigEndian.AppendUint16(out, rtype)
		out = binary.BigEndian.AppendUint16(out, 1)
		out = binary.BigEndian.AppendUint32(out, ttl)
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(data))), data...)
	}
	asIs := []byte{0xc0, headerSize}
	host, zone, _ := strings.Cut(name, ".")
	known := name == counter || zone == outside && host != ""
	switch {
	case name == counter && qtype == typeA:
		out[7] = 1
		record(asIs, typeA, 0, binary.BigEndian.AppendUint32(nil, asked))
	case known && outsideAddrs[qtype].IsValid():
		out[7] = 1
		record(asIs, qtype, outsideTTL, outsideAddrs[qtype].AsSlice())
	default:
		if !known {
			out[3] |= rcodeNotFound
		}
		out[9] = 1
		soa := []byte{0, 0} // names of the server and of who is responsible: the root
		for _, v := range []uint32{1, outsideTTL, outsideTTL, outsideTTL, outsideTTL} {
			soa = binary.BigEndian.AppendUint32(soa, v)
		}
		record([]byte{0}, 6, outsideTTL, soa)
	}
	return out, name != counter
}

// readName reads the question's name in lower case, and where it ends; below zero where it is not one.
func readName(msg []byte) (name string, end int) {
	var labels []string
	for at := headerSize; at < len(msg); {
		n := int(msg[at])
		at++
		switch {
		case n == 0:
			return strings.Join(labels, "."), at
		case n > 63 || at+n > len(msg):
			return "", -1
		}
		labels = append(labels, strings.ToLower(string(msg[at:at+n])))
		at += n
	}
	return "", -1
}
