// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// udpSize is the largest answer over UDP that is asked for: what passes every path without fragments (the value of DNS Flag Day 2020).
	udpSize = 1232
	// udpBuffer is for upstreams that send more than that.
	udpBuffer = 4096
	// suspectAfter is how many messages with a wrong id or question one question may see before it is asked over TCP.
	suspectAfter = 8
	// padTo is what questions over TLS are padded to (RFC 8467, section 4.1).
	padTo = 128
)

var (
	errTimeout = errors.New("no answer in time")
	errSuspect = errors.New("messages that are not its answers came in its name")
	errCase    = errors.New("the answer has the question in other case")
	errEnded   = errors.New("the connection ended before the answer")
)

// call is a question on its way on one link.
type call struct {
	question []byte // as sent: name, type and class
	mixed    bool   // the case of the name is random, and the answer must have it
	strange  int    // messages that were not its answer, under the link's lock
	done     chan answer
}

// answer is a message whose header and question are those of the call, the question in lower case; or why there is none.
type answer struct {
	msg     []byte
	recased bool // it came back in other case over a connection, where nobody from outside can have put it
	err     error
}

// link is a connection to an upstream that several questions share: each has an id of its own, and answers come in any order (RFC 7766, section
// 6.2.1.1). Datagrams are connected too: the kernel then lets nobody but the upstream's address and port in, and does not tell others that
// the port is open.
type link struct {
	u      *upstream
	stream bool
	born   time.Time
	ready  chan struct{} // closed when conn or err is set
	conn   net.Conn

	mu       sync.Mutex
	waiting  map[uint16]*call // nil: its question has ended, and a late answer is no wonder
	asked    int              // questions that were let in, ever
	active   int              // of those, that have not ended
	answered int
	retired  bool // no further question is let in
	err      error
	writing  sync.Mutex
}

// open makes a link and lets one question in. It dials and reads on a goroutine of its own.
func (u *upstream) open(stream bool) *link {
	u.f.metrics.connMisses.WithLabelValues(proxyName, u.Addr.String(), u.proto(stream)).Inc()
	l := &link{u: u, stream: stream, born: time.Now(), ready: make(chan struct{}), waiting: make(map[uint16]*call), asked: 1, active: 1}
	if !u.f.spawn(l.run) {
		l.err = errEnded
		close(l.ready)
	}
	return l
}

// enter lets one more question in if there are fewer than the bound on it, and it has not been used up.
func (l *link) enter(bound int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil || l.retired || l.active >= bound {
		return false
	}
	l.active++
	l.asked++
	if !l.stream && l.asked >= laneQuestions {
		l.retired = true
	}
	return true
}

// leave ends a question that was let in. Who leaves a link last that has been used up closes it.
func (l *link) leave() {
	l.mu.Lock()
	l.active--
	last := l.retired && l.active == 0
	l.mu.Unlock()
	if last {
		l.end(errEnded)
	}
}

// retire has the link closed when its questions have ended.
func (l *link) retire() {
	l.mu.Lock()
	l.retired = true
	last := l.active == 0
	l.mu.Unlock()
	if last {
		l.end(errEnded)
	}
}

// end closes the link, and answers what waits with the error.
func (l *link) end(err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	pending := 0
	for id, c := range l.waiting {
		if c != nil {
			c.done <- answer{err: err}
			l.waiting[id] = nil
			pending++
		}
	}
	// One that hangs up on several questions, or on the second, takes one at a time. (The answer to the first is lost too if the others were not
	// read when it hung up.)
	if l.stream && (pending > 1 || pending == 1 && l.answered == 1) && errors.Is(err, errEnded) {
		l.u.serial.Store(l.u.f.now() + int64(serialFor))
	}
	conn := l.conn
	l.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// ask sends a message with an id of the link's choice and waits for its answer. The caller was let in, and is let out.
func (l *link) ask(ctx context.Context, msg []byte, c *call) answer {
	defer l.leave()
	select {
	case <-l.ready:
	case <-ctx.Done():
		return answer{err: errTimeout}
	}
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return answer{err: l.err}
	}
	id, had := l.newID(), l.answered
	l.waiting[id] = c
	l.mu.Unlock()
	binary.BigEndian.PutUint16(msg[2:], id)
	if err := l.send(msg); err != nil {
		l.end(fmt.Errorf("%w: %w", errEnded, err))
		return <-c.done
	}
	select {
	case a := <-c.done:
		return a
	case <-ctx.Done():
	}
	l.mu.Lock()
	l.waiting[id] = nil
	dead := l.stream && l.answered == had
	l.mu.Unlock()
	select {
	case a := <-c.done:
		return a
	default:
	}
	if dead {
		l.retire() // the next one shall not wait for the same silence; those that wait already may
	}
	return answer{err: errTimeout}
}

// newID draws an id that is not in use.
func (l *link) newID() uint16 {
	for {
		var b [2]byte
		secret(b[:])
		id := binary.BigEndian.Uint16(b[:])
		if _, used := l.waiting[id]; !used {
			return id
		}
		if len(l.waiting) > 1<<15 {
			// A long-lived connection on which very much was never answered: it may as well be forgotten.
			for id, c := range l.waiting {
				if c == nil {
					delete(l.waiting, id)
				}
			}
		}
	}
}

// send writes a message that has two octets of room before it.
func (l *link) send(msg []byte) error {
	if !l.stream {
		_, err := l.conn.Write(msg[2:])
		return err
	}
	binary.BigEndian.PutUint16(msg, uint16(len(msg)-2))
	l.writing.Lock()
	defer l.writing.Unlock()
	l.touch()
	l.conn.SetWriteDeadline(time.Now().Add(l.u.f.o.Timeout))
	_, err := l.conn.Write(msg)
	return err
}

// touch lets a connection live on.
func (l *link) touch() {
	l.conn.SetReadDeadline(time.Now().Add(max(l.u.pool.Expire, l.u.f.o.Timeout)))
}

func (l *link) run() {
	ctx, cancel := context.WithTimeout(l.u.f.ctx, l.u.f.o.Timeout)
	conn, err := l.u.dial(ctx, l.stream)
	cancel()
	l.mu.Lock()
	l.conn = conn
	ended := l.err != nil
	l.mu.Unlock()
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		l.end(fmt.Errorf("connect: %w", errTimeout))
	} else if err != nil {
		l.end(fmt.Errorf("connect: %w", err))
	}
	close(l.ready)
	if err != nil {
		return
	}
	if ended {
		conn.Close()
		return
	}
	// Closing the forwarder ends the reading.
	stop := context.AfterFunc(l.u.f.ctx, func() { l.end(errEnded) })
	defer stop()
	if l.stream {
		l.touch()
		err = l.readStream()
	} else {
		conn.SetReadDeadline(l.born.Add(laneTime + 2*l.u.f.o.Timeout)) // later than any question can wait
		err = l.readDatagrams()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		err = errEnded
	} else if err != nil {
		err = fmt.Errorf("%w: %w", errEnded, err)
	}
	l.end(err)
}

func (l *link) readDatagrams() error {
	buf := make([]byte, udpBuffer)
	for {
		n, err := l.conn.Read(buf)
		if err != nil {
			return err
		}
		if n == len(buf) {
			buf[2] |= 2 // the rest is lost: as if it had been cut short
		}
		l.deliver(buf[:n])
	}
}

func (l *link) readStream() error {
	r := bufio.NewReaderSize(l.conn, udpBuffer)
	for {
		var length [2]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return err
		}
		msg := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(r, msg); err != nil {
			return err
		}
		l.touch()
		if !l.deliver(msg) {
			return errors.New("a message came that answers no question")
		}
	}
}

// deliver hands a message to the call it answers, and reports whether it was any question's.
func (l *link) deliver(msg []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(msg) < headerSize || msg[2]&0xf8 != 0x80 { // a response, to a query
		l.suspect()
		return false
	}
	id := binary.BigEndian.Uint16(msg)
	c, known := l.waiting[id]
	switch {
	case !known:
		l.suspect()
		return false
	case c == nil:
		if l.stream {
			delete(l.waiting, id)
		}
		return true
	}
	a := answer{}
	switch same := match(msg, c.question); {
	case same == exact:
	case same == bare:
	case same == folded && (l.stream || !c.mixed):
		a.recased = c.mixed
	case same == folded:
		l.u.counts.suspect.Add(1)
		a.err = errCase
	default:
		l.u.counts.suspect.Add(1)
		if l.stream {
			return false
		}
		if c.strange++; c.strange < suspectAfter {
			return true
		}
		a.err = errSuspect
	}
	if a.err == nil {
		a.msg = append([]byte(nil), msg...)
		if len(msg) > headerSize {
			lower(a.msg[headerSize : headerSize+len(c.question)-4])
		}
		l.answered++
	}
	if l.waiting[id] = nil; l.stream {
		delete(l.waiting, id)
	}
	c.done <- a
	return true
}

// suspect counts a message that belongs to no question, for all those that it may have been made for. The lock is held.
func (l *link) suspect() {
	l.u.counts.suspect.Add(1)
	if l.stream {
		return
	}
	for id, c := range l.waiting {
		if c == nil {
			continue
		}
		if c.strange++; c.strange >= suspectAfter {
			l.waiting[id] = nil
			c.done <- answer{err: errSuspect}
		}
	}
}

// secrets are random octets of the kernel's, fetched many at a time: a question needs a few, and a system call for them costs a tenth of it.
var secrets struct {
	sync.Mutex
	octets [1024]byte
	left   int
}

// secret fills b, which is short, with octets that nobody can foretell. None is given twice.
func secret(b []byte) {
	secrets.Lock()
	defer secrets.Unlock()
	if secrets.left < len(b) {
		rand.Read(secrets.octets[:]) // never fails
		secrets.left = len(secrets.octets)
	}
	secrets.left -= len(b)
	taken := secrets.octets[secrets.left:][:len(b)]
	copy(b, taken)
	clear(taken)
}

type likeness int

const (
	other likeness = iota
	folded
	exact
	bare // no question at all, which is how one that cannot read a message says so
)

// match compares the question of a message with the one that was sent.
func match(msg, question []byte) likeness {
	rcode := int(msg[3] & 0xf)
	if msg[4] == 0 && msg[5] == 0 && len(msg) == headerSize && (rcode == mdns.RcodeFormatError || rcode == mdns.RcodeNotImplemented) {
		return bare
	}
	if msg[4] != 0 || msg[5] != 1 || len(msg) < headerSize+len(question) {
		return other
	}
	got := msg[headerSize : headerSize+len(question)]
	if string(got) == string(question) {
		return exact
	}
	name := len(question) - 4
	if string(got[name:]) != string(question[name:]) {
		return other
	}
	for i := range name {
		if lowered(got[i]) != lowered(question[i]) {
			return other
		}
	}
	return folded
}

func lowered(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 0x20
	}
	return c
}

// lower brings a name in wire form to lower case. Lengths are below 64, and so are no letters.
func lower(name []byte) {
	for i, c := range name {
		name[i] = lowered(c)
	}
}

// mixCase gives each letter of a name in wire form a random case: a forger has to guess that too.
func mixCase(name []byte) {
	var bits [32]byte
	secret(bits[:(len(name)+7)/8])
	for i, c := range name {
		if 'a' <= c && c <= 'z' && bits[i/8]>>(i%8)&1 != 0 {
			name[i] = c - 0x20
		}
	}
}

// message makes a query, with two octets of room before it and two for the id.
func message(q Question, mixed, edns, pad bool) (msg, question []byte) {
	msg = make([]byte, 2+headerSize, 2+headerSize+len(q.Name)+4+11+padTo+4)
	h := msg[2:]
	h[2], h[3] = 1, bitAD // RD, and what the upstream has verified is to be said (RFC 6840, section 5.7)
	if q.CD {
		h[3] |= 0x10
	}
	h[5] = 1
	start := len(msg)
	msg = append(msg, q.Name...)
	if mixed {
		mixCase(msg[start:])
	}
	msg = binary.BigEndian.AppendUint16(msg, q.Type)
	msg = binary.BigEndian.AppendUint16(msg, mdns.ClassINET)
	end := len(msg)
	if edns {
		msg[2+11] = 1
		flags := byte(0)
		if q.DO {
			flags = 0x80
		}
		msg = append(msg, 0, 0, byte(mdns.TypeOPT), udpSize>>8, udpSize&0xff, 0, 0, flags, 0, 0, 0)
		if pad {
			n := (padTo - (len(msg)-2+4)%padTo) % padTo
			msg[len(msg)-1] = byte(4 + n)
			msg = append(msg, 0, byte(mdns.EDNS0PADDING), 0, byte(n))
			msg = append(msg, make([]byte, n)...)
		}
	}
	return msg, msg[start:end]
}
