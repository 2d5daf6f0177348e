// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// DNS numbers of RFC 1035 (and 3596, 2782) that this program uses.
const (
	typeA    = 1
	typeSOA  = 6
	typePTR  = 12
	typeAAAA = 28
	typeSRV  = 33

	rcodeSuccess  = 0
	rcodeNXDomain = 3
)

// dnsTypes are the question types by the name a person writes.
var dnsTypes = map[string]uint16{"A": typeA, "AAAA": typeAAAA, "SRV": typeSRV, "PTR": typePTR, "SOA": typeSOA}

// errMessage says that a datagram is not a DNS message this program can read.
var errMessage = errors.New("malformed DNS message")

// reply is what matters of a DNS answer.
type reply struct {
	rcode   int
	records int          // records in the answer section
	addrs   []netip.Addr // A and AAAA records among them
}

// packQuery makes the message that asks for name (with or without the last
// dot) and type, recursion desired.
func packQuery(id uint16, name string, qtype uint16) ([]byte, error) {
	msg := binary.BigEndian.AppendUint16(nil, id)
	msg = append(msg, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if len(label) == 0 || len(label) > 63 {
			return nil, fmt.Errorf("pack name %q: label of %d bytes", name, len(label))
		}
		msg = append(append(msg, byte(len(label))), label...)
	}
	if len(msg)-12 > 254 {
		return nil, fmt.Errorf("pack name %q: longer than 255 bytes", name)
	}
	msg = append(msg, 0)
	msg = binary.BigEndian.AppendUint16(msg, qtype)
	return binary.BigEndian.AppendUint16(msg, 1), nil
}

// skipName returns the offset after the name at off. A compression pointer
// ends a name, so this never follows one and always ends.
func skipName(msg []byte, off int) (int, error) {
	for off < len(msg) {
		n := int(msg[off])
		switch {
		case n == 0:
			return off + 1, nil
		case n&0xc0 == 0xc0:
			return off + 2, nil
		case n&0xc0 != 0:
			return 0, errMessage
		}
		off += n + 1
	}
	return 0, errMessage
}

// unpackReply reads an answer with the given id.
func unpackReply(msg []byte, id uint16) (reply, error) {
	if len(msg) < 12 || binary.BigEndian.Uint16(msg) != id || msg[2]&0x80 == 0 {
		return reply{}, errMessage
	}
	r := reply{rcode: int(msg[3] & 0xf), records: int(binary.BigEndian.Uint16(msg[6:]))}
	off, err := 12, error(nil)
	for range binary.BigEndian.Uint16(msg[4:]) {
		if off, err = skipName(msg, off); err != nil {
			return reply{}, err
		}
		off += 4
	}
	for range r.records {
		if off, err = skipName(msg, off); err != nil {
			return reply{}, err
		}
		if off+10 > len(msg) {
			return reply{}, errMessage
		}
		rtype, size := binary.BigEndian.Uint16(msg[off:]), int(binary.BigEndian.Uint16(msg[off+8:]))
		off += 10
		if off+size > len(msg) {
			return reply{}, errMessage
		}
		if rtype == typeA || rtype == typeAAAA {
			if addr, ok := netip.AddrFromSlice(msg[off : off+size]); ok {
				r.addrs = append(r.addrs, addr)
			}
		}
		off += size
	}
	return r, nil
}

// ask sends one query to server from a socket of its own, as a resolver does,
// and waits for its answer until ctx ends. It does not repeat a lost one:
// whoever counts wants to see it.
func ask(ctx context.Context, server, name string, qtype uint16) (reply, error) {
	id := uint16(rand.Uint32())
	query, err := packQuery(id, name, qtype)
	if err != nil {
		return reply{}, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", server)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		conn.SetDeadline(end)
	}
	if _, err := conn.Write(query); err != nil {
		return reply{}, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return reply{}, err
		}
		if r, err := unpackReply(buf[:n], id); err == nil {
			return r, nil
		}
	}
}

// resolver is what /etc/resolv.conf says, as far as this program goes.
type resolver struct {
	server string // address and port of the first nameserver
	search []string
	ndots  int
}

// readResolver reads a resolv.conf (see resolv.conf(5)).
func readResolver(r io.Reader) (resolver, error) {
	c := resolver{ndots: 1}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if addr, err := netip.ParseAddr(f[1]); err == nil && c.server == "" {
				c.server = netip.AddrPortFrom(addr, 53).String()
			}
		case "search":
			c.search = f[1:]
		case "options":
			for _, o := range f[1:] {
				if n, ok := strings.CutPrefix(o, "ndots:"); ok {
					c.ndots, _ = strconv.Atoi(n)
				}
			}
		}
	}
	if c.server == "" {
		return c, errors.New("read resolv.conf: no nameserver")
	}
	return c, lines.Err()
}

// loadResolver reads the system's resolv.conf.
func loadResolver() (resolver, error) {
	f, err := os.Open("/etc/resolv.conf")
	if err != nil {
		return resolver{}, err
	}
	defer f.Close()
	return readResolver(f)
}

// candidates lists the names to ask for, in the order a resolver asks them.
func (c resolver) candidates(name string) []string {
	if full, ok := strings.CutSuffix(name, "."); ok {
		return []string{full}
	}
	var names []string
	for _, suffix := range c.search {
		names = append(names, name+"."+strings.TrimSuffix(suffix, "."))
	}
	if strings.Count(name, ".") >= c.ndots {
		return append([]string{name}, names...)
	}
	return append(names, name)
}

// dnsMain asks for one name at a steady rate and prints the summary. A query
// without an answer in time is lost; one with another answer than records is
// counted by its response code.
func dnsMain(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("dns", flag.ContinueOnError)
	var l load
	l.flags(fs)
	server := fs.String("server", "", "DNS server's address, with or without a port (default: resolv.conf)")
	qtype := fs.String("type", "A", "question type: A, AAAA, SRV, PTR, SOA")
	names, err := parse(fs, args)
	if err != nil {
		return err
	}
	number, ok := dnsTypes[strings.ToUpper(*qtype)]
	if len(names) != 1 || !ok {
		return errors.New("dns: one NAME and a -type among A, AAAA, SRV, PTR, SOA")
	}
	if !l.many() {
		l.count = 1
	}
	if err := l.check(); err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	c := resolver{server: *server}
	if c.server == "" {
		if c, err = loadResolver(); err != nil {
			return fmt.Errorf("dns: %w", err)
		}
	} else if addr, err := netip.ParseAddr(c.server); err == nil {
		c.server = netip.AddrPortFrom(addr, 53).String()
	}
	return shoot(ctx, l, func(ctx context.Context, i int) (answer, error) {
		r, err := ask(ctx, c.server, names[0], number)
		switch {
		case err != nil:
			return answer{}, err
		case r.rcode == rcodeNXDomain:
			return answer{}, &net.DNSError{Err: "no such host", Name: names[0], IsNotFound: true}
		case r.rcode != rcodeSuccess || r.records == 0:
			return answer{}, &net.DNSError{Err: fmt.Sprintf("rcode %d with %d records", r.rcode, r.records), Name: names[0]}
		}
		return answer{}, nil
	}).print(out)
}
