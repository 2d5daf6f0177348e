// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
)

// What golang.org/x/sys/unix does not name.
const (
	ackCapped      = 0x100 // NLM_F_CAPPED: the failed request is not repeated in the acknowledgement
	ackHasMessage  = 0x200 // NLM_F_ACK_TLVS
	errAttrMessage = 1     // NLMSGERR_ATTR_MSG
	headerLen      = unix.NLMSG_HDRLEN + 4
	// maxMessage bounds a message that carries a list: the length of a netlink attribute has 16 bits.
	maxMessage = 60 << 10
	// sendBuffer is enough for a transaction of maxElements; larger ones ask for more.
	sendBuffer = 1 << 20
)

// conn is a socket to the kernel's netfilter subsystems (nf_tables and conntrack). The kernel works in the caller's own
// thread: when a send returns, every answer to it is waiting already. Not for concurrent use.
type conn struct {
	fd   int
	seq  uint32
	port uint32
	size int // of the send buffer
	in   []byte
	// hook, in tests, is called with what is about to be sent, and with nil before something is received. It may change the bytes
	// and make the call fail.
	hook func(sending []byte) error
}

// dial opens the socket in a namespace; nil is the process's own.
func dial(ns *linux.NetNS) (c *conn, err error) {
	open := func() error { c, err = dialHere(); return err }
	if ns == nil {
		err = open()
	} else {
		err = ns.Do(open)
	}
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	return c, nil
}

func dialHere() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	c := &conn{fd: fd, in: make([]byte, 64<<10)}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		c.close()
		return nil, err
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		c.close()
		return nil, err
	}
	c.port = self.(*unix.SockaddrNetlink).Pid
	// An acknowledgement that repeats its request would overrun the receive buffer when large ones fail.
	// These only improve errors; a kernel without them works the same.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sendBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, sendBuffer)
	}
	c.reserve(sendBuffer)
	return c, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// reserve makes room for a send of n bytes. Where that is not allowed (in a user namespace) the system's limit holds, and
// a larger transaction fails with EMSGSIZE.
func (c *conn) reserve(n int) {
	if n <= c.size {
		return
	}
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, n) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
	}
	c.size = n
}

func (c *conn) send(buf []byte) error {
	if c.hook != nil {
		if err := c.hook(buf); err != nil {
			return err
		}
	}
	c.reserve(len(buf) + 4096)
	for {
		err := unix.Sendto(c.fd, buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// reply is one message from the kernel. Its data is valid until the next receive.
type reply struct {
	kind  uint16
	flags uint16
	seq   uint32
	data  []byte // behind the netlink header
}

// receive reads what one datagram holds. It returns EAGAIN when nothing is waiting.
func (c *conn) receive(each func(reply) error) error {
	if c.hook != nil {
		if err := c.hook(nil); err != nil {
			return err
		}
	}
	n, err := unix.Read(c.fd, c.in)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(c.fd, c.in)
	}
	if err != nil {
		return err
	}
	if n == len(c.in) {
		return errors.New("netlink message larger than the buffer")
	}
	for b := c.in[:n]; len(b) >= unix.NLMSG_HDRLEN; {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return errors.New("netlink message of impossible length")
		}
		r := reply{
			kind:  binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
			data:  b[unix.NLMSG_HDRLEN:size],
		}
		if err := each(r); err != nil {
			return err
		}
		b = b[min(align(size), len(b)):]
	}
	return nil
}

// kernelError is the kernel's refusal of a request, with its own words when it has some.
type kernelError struct {
	errno   syscall.Errno
	message string
}

func (e *kernelError) Error() string {
	if e.message == "" {
		return e.errno.Error()
	}
	return e.errno.Error() + " (" + e.message + ")"
}

func (e *kernelError) Unwrap() error { return e.errno }

// failure returns what an NLMSG_ERROR says; nil is an acknowledgement.
func (r reply) failure() error {
	if len(r.data) < 4 {
		return errors.New("netlink error message too short")
	}
	code := int32(binary.NativeEndian.Uint32(r.data))
	if code == 0 {
		return nil
	}
	e := &kernelError{errno: syscall.Errno(-code)}
	if r.flags&(ackHasMessage|ackCapped) == ackHasMessage|ackCapped && len(r.data) > 4+unix.NLMSG_HDRLEN {
		for typ, val := range attributes(r.data[4+unix.NLMSG_HDRLEN:]) {
			if typ == errAttrMessage {
				e.message = cString(val)
			}
		}
	}
	return e
}

// request sends one message and hands every answer to each. It is for single requests and for dumps (flags
// NLM_F_DUMP). changed is true if what was dumped changed while it was read.
func (c *conn) request(m *message, each func(data []byte) error) (changed bool, err error) {
	c.seq++
	binary.NativeEndian.PutUint32(m.buf[8:], c.seq)
	m.end(0)
	if err := c.send(m.buf); err != nil {
		return false, err
	}
	for done := false; !done; {
		err := c.receive(func(r reply) error {
			if r.seq != c.seq || done {
				return nil // what an earlier request left behind
			}
			changed = changed || r.flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case r.kind == unix.NLMSG_DONE:
				done = true
			case r.kind == unix.NLMSG_ERROR:
				done = true
				return r.failure()
			case each != nil && len(r.data) >= 4:
				return each(r.data[4:])
			}
			return nil
		})
		if err != nil {
			c.drain()
			return changed, err
		}
	}
	return changed, nil
}

func (c *conn) drain() {
	for c.receive(func(reply) error { return nil }) == nil {
	}
}

// errUnclear means that the kernel's answer to a transaction was lost: it may have been done or not.
var errUnclear = errors.New("the kernel's answer was lost")

// errRejected wraps the kernel's refusal of a transaction, of which then nothing was done.
type errRejected struct{ cause error }

func (e *errRejected) Error() string { return "the kernel refused the transaction: " + e.cause.Error() }
func (e *errRejected) Unwrap() error { return e.cause }

// commit sends the messages of b as one transaction. It asks for one acknowledgement only, that of the last message: the
// kernel reports failures unasked, and acknowledging each message is what overruns receive buffers.
func (c *conn) commit(b *batch) error {
	last := c.seq + 2 + uint32(b.messages)
	buf := b.seal(c.seq + 1)
	c.seq = last
	if err := c.send(buf); err != nil {
		if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
			return &errRejected{fmt.Errorf("send %d bytes: %w", len(buf), err)}
		}
		return fmt.Errorf("send transaction: %w", err)
	}
	var refused error
	acked := false
	for {
		err := c.receive(func(r reply) error {
			if r.kind != unix.NLMSG_ERROR || int32(r.seq-(last-1-uint32(b.messages))) < 0 {
				return nil
			}
			if err := r.failure(); err != nil {
				if refused == nil {
					refused = err
				}
			} else if r.seq == last-1 {
				acked = true
			}
			return nil
		})
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil { // ENOBUFS: an answer was dropped
			c.drain()
			return fmt.Errorf("%w: %w", errUnclear, err)
		}
	}
	switch {
	case refused != nil:
		return &errRejected{refused}
	case !acked:
		return errUnclear
	}
	return nil
}

// message is a netlink message in the making, or several in a row.
type message struct{ buf []byte }

// begin starts a message at the end of the buffer and returns its place.
func (m *message) begin(kind int, flags uint16, family byte, resource uint16) int {
	at := len(m.buf)
	m.buf = append(m.buf, make([]byte, headerLen)...)
	h := m.buf[at:]
	binary.NativeEndian.PutUint16(h[4:], uint16(kind))
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	h[16] = family
	binary.BigEndian.PutUint16(h[18:], resource)
	return at
}

// end fills in the length of the message that began at a place.
func (m *message) end(at int) { binary.NativeEndian.PutUint32(m.buf[at:], uint32(len(m.buf)-at)) }

func (m *message) put(typ uint16, val []byte) {
	m.buf = binary.NativeEndian.AppendUint16(m.buf, uint16(4+len(val)))
	m.buf = binary.NativeEndian.AppendUint16(m.buf, typ)
	m.buf = append(m.buf, val...)
	m.pad()
}

func (m *message) pad() {
	for len(m.buf)%4 != 0 {
		m.buf = append(m.buf, 0)
	}
}

func (m *message) put32(typ uint16, v uint32) { m.put(typ, binary.BigEndian.AppendUint32(nil, v)) }

func (m *message) putString(typ uint16, s string) { m.put(typ, append([]byte(s), 0)) }

// nest starts an attribute that holds others and returns its place for close.
func (m *message) nest(typ uint16) int {
	at := len(m.buf)
	m.buf = append(m.buf, 0, 0, 0, 0)
	binary.NativeEndian.PutUint16(m.buf[at+2:], typ|unix.NLA_F_NESTED)
	return at
}

func (m *message) close(at int) { binary.NativeEndian.PutUint16(m.buf[at:], uint16(len(m.buf)-at)) }

// batch is a transaction of nf_tables: all of its messages are done, or none.
type batch struct {
	message
	messages int
	starts   []int
}

func newBatch() *batch {
	b := &batch{}
	b.end(b.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES))
	return b
}

// add appends one message to the table's subsystem.
func (b *batch) add(kind int, flags uint16, fill func(*message)) {
	at := b.begin(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, unix.NFPROTO_INET, 0)
	fill(&b.message)
	b.end(at)
	b.starts = append(b.starts, at)
	b.messages++
}

// seal closes the batch and numbers its messages from first on.
func (b *batch) seal(first uint32) []byte {
	binary.NativeEndian.PutUint32(b.buf[8:], first)
	for i, at := range b.starts {
		binary.NativeEndian.PutUint32(b.buf[at+8:], first+1+uint32(i))
	}
	if n := len(b.starts); n > 0 {
		flags := b.buf[b.starts[n-1]+6:]
		binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	}
	at := b.begin(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES)
	b.end(at)
	binary.NativeEndian.PutUint32(b.buf[at+8:], first+1+uint32(b.messages))
	return b.buf
}

// attributes yields the attributes in b, without the flags in their types.
func attributes(b []byte) func(yield func(typ uint16, val []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) {
				return
			}
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(typ, b[4:size]) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// attribute is the value found by following the types down the nests; nil if there is none.
func attribute(b []byte, path ...uint16) []byte {
	for _, want := range path {
		var found []byte
		for typ, val := range attributes(b) {
			if typ == want {
				found = val
				break
			}
		}
		if found == nil {
			return nil
		}
		b = found
	}
	return b
}

func align(n int) int { return (n + 3) &^ 3 }

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.Clone(string(b))
}
