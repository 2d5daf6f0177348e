// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// slotsOfSocket is how many queries of one socket can be without answer: the low byte of an id says which.
	slotsOfSocket = 256
	// batchSize is how many messages one system call takes or gives.
	batchSize = 64
	// answerSize is above every answer without EDNS.
	answerSize = 1024
	// dnsDrain is how long the last answers may take before they count as lost.
	dnsDrain = time.Second
)

// dnsResult is what the client measured.
type dnsResult struct {
	Answers    int     `json:"answers"` // counted
	All        int     `json:"all"`     // also those before counting
	Seconds    float64 `json:"seconds"`
	Lost       int     `json:"lost"`
	Wrong      int     `json:"wrong"`
	FirstWrong string  `json:"firstWrong,omitempty"`
	// Stall is the longest time, in milliseconds, for which the client itself did not run while it should have asked at a rate: the processor was another's.
	Stall float64 `json:"stall,omitempty"`
	P50   float64 `json:"p50"` // microseconds
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
}

func (r dnsResult) perSecond() float64 { return float64(r.Answers) / r.Seconds }

// mostStall is what a client may stand still without its times being about itself; in milliseconds.
const mostStall = 20

// fault is an error where any answer was not right, or the times are not the server's.
func (r dnsResult) fault() error {
	switch {
	case r.Stall > mostStall:
		return fmt.Errorf("the client stood still for %.0f ms: its processor was busy with something else", r.Stall)
	case r.Wrong > 0:
		return fmt.Errorf("%d answers of %d are wrong; the first %s", r.Wrong, r.All, r.FirstWrong)
	case r.Lost > 0:
		return fmt.Errorf("%d answers of %d are lost", r.Lost, r.All+r.Lost)
	case r.Answers == 0:
		return errors.New("there was no answer")
	}
	return nil
}

// dnsload is the program in the client pod that asks a DNS server: as fast as answers come, with a number of questions always on their way,
// or at a rate, whatever becomes of them, at times as of many independent clients (exponential gaps, the same for every server). Latency at a rate is
// counted from when a question was due. One thread, which at a rate never sleeps; several messages to a system call; every answer is
// checked.
func dnsload(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("dnsload", flag.ContinueOnError)
	to := flags.String("to", "", "address of the server")
	path := flags.String("questions", "", "file of questions, taken in turn")
	sources := flags.Int("sources", 10, "sockets, each with a port of its own")
	window := flags.Int("window", 100, "questions on their way, without a rate")
	rate := flags.Float64("rate", 0, "questions per second; 0 for as many as are answered")
	most := flags.Int("n", 0, "end after so many questions; 0 for no end")
	warm := flags.Duration("warm", 200*time.Millisecond, "time before counting")
	count := flags.Duration("count", time.Second, "time of counting")
	echo := flags.Bool("echo", false, "the server is an echo, which knows no answers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	addr, err := netip.ParseAddrPort(*to)
	if err != nil {
		return fmt.Errorf("parse address of server: %w", err)
	}
	file, err := os.Open(*path)
	if err != nil {
		return fmt.Errorf("open questions: %w", err)
	}
	defer file.Close()
	c := &dnsClient{window: *window, rate: *rate, most: *most, echo: *echo, begin: warm.Nanoseconds(), end: (*warm + *count).Nanoseconds()}
	if c.questions, err = readQuestions(file); err != nil {
		return err
	}
	if len(c.questions) == 0 || *window < *sources || *window > *sources*slotsOfSocket {
		return errors.New("dnsload: want questions, and a window of 1 to 256 for each source")
	}
	if err := c.open(addr, *sources); err != nil {
		return err
	}
	defer c.close()
	// A pause for garbage would be taken for the server's; there is next to none.
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	result, err := c.run()
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

// dnsClient is one thread's work. Times are nanoseconds since the start.
type dnsClient struct {
	questions  []question
	window     int
	rate       float64
	most       int
	echo       bool
	begin, end int64

	epoll   int
	sockets []*dnsSocket
	in      *batch
	start   time.Time
	turn    int // of questions
	sent    int
	flying  int // asked and not answered
	latency []int32
	result  dnsResult
}

// dnsSocket is a source port and its questions on their way.
type dnsSocket struct {
	fd    int
	slots [slotsOfSocket]slot
	free  []byte
	out   *batch
}

type slot struct {
	question *question // nil when free
	turn     byte      // the high byte of the id
	due      int64
	packet   [headerSize + 255 + 4]byte
}

// batch is memory for sendmmsg and recvmmsg.
type batch struct {
	headers [batchSize]mmsghdr
	vectors [batchSize]unix.Iovec
	buffers [batchSize][answerSize]byte
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	size uint32
	_    [4]byte
}

func newBatch() *batch {
	b := new(batch)
	for i := range b.headers {
		b.headers[i].Iov = &b.vectors[i]
		b.headers[i].Iovlen = 1
		b.vectors[i].Base = &b.buffers[i][0]
		b.vectors[i].Len = answerSize
	}
	return b
}

// transfer sends or receives up to n messages and returns how many it did; none when it would have to wait.
func (b *batch) transfer(call uintptr, fd, n int) (int, error) {
	for {
		done, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(done), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, errno
		}
	}
}

func (c *dnsClient) open(to netip.AddrPort, sources int) (err error) {
	if c.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("make epoll: %w", err)
	}
	for i := range sources {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		s := &dnsSocket{fd: fd, out: newBatch()}
		c.sockets = append(c.sockets, s)
		for n := range slotsOfSocket {
			s.free = append(s.free, byte(n))
		}
		err = errors.Join(
			unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}),
			unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}),
		)
		if err != nil {
			return fmt.Errorf("connect to %s: %w", to, err)
		}
	}
	c.in = newBatch()
	return nil
}

func (c *dnsClient) close() {
	for _, s := range c.sockets {
		unix.Close(s.fd)
	}
	unix.Close(c.epoll)
}

func (c *dnsClient) now() int64 { return time.Since(c.start).Nanoseconds() }

// asking says whether there are still questions to ask.
func (c *dnsClient) asking(now int64) bool { return now < c.end && (c.most == 0 || c.sent < c.most) }

func (c *dnsClient) run() (dnsResult, error) {
	c.latency = make([]int32, 0, 1<<20)
	c.start = time.Now()
	gaps := rand.New(rand.NewPCG(3, 4))
	gap := func() int64 { return int64(gaps.ExpFloat64() / c.rate * 1e9) }
	var due int64
	if c.rate > 0 {
		due = gap()
	} else {
		for i, s := range c.sockets {
			share := c.window / len(c.sockets)
			if i < c.window%len(c.sockets) {
				share++
			}
			if err := c.ask(s, share, 0); err != nil {
				return c.result, err
			}
		}
	}
	events := make([]unix.EpollEvent, len(c.sockets))
	var last int64
	for {
		now := c.now()
		if c.rate > 0 && last < c.end {
			c.result.Stall = max(c.result.Stall, float64(now-last)/1e6)
			last = now
		}
		asking := c.asking(now)
		if !asking && c.flying == 0 || now > c.end+dnsDrain.Nanoseconds() {
			break
		}
		wait := 10 // milliseconds
		if c.rate > 0 && asking {
			wait = 0
			for ; due <= now && c.asking(due); due += gap() {
				if err := c.ask(c.sockets[c.sent%len(c.sockets)], 1, due); err != nil {
					return c.result, err
				}
			}
		}
		n, err := unix.EpollWait(c.epoll, events, wait)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return c.result, fmt.Errorf("wait for answers: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			s := c.sockets[e.Fd]
			got, err := c.hear(s)
			if err != nil {
				return c.result, err
			}
			if c.rate == 0 && c.asking(c.now()) {
				if err := c.ask(s, got, c.now()); err != nil {
					return c.result, err
				}
			}
		}
	}
	return c.sum(), nil
}

// ask sends the next n questions from a socket. They were due at a time.
func (c *dnsClient) ask(s *dnsSocket, n int, due int64) error {
	for n > 0 {
		size := min(n, batchSize)
		if size > len(s.free) {
			return fmt.Errorf("ask: %d questions are without an answer: the server is too slow for the rate, or ends", c.flying)
		}
		for i := range size {
			number := s.free[len(s.free)-1-i]
			slot := &s.slots[number]
			q := &c.questions[c.turn]
			if c.turn++; c.turn == len(c.questions) {
				c.turn = 0
			}
			slot.question, slot.due = q, due
			slot.turn++
			copy(slot.packet[:], q.packet)
			slot.packet[0], slot.packet[1] = slot.turn, number
			s.out.vectors[i].Base, s.out.vectors[i].Len = &slot.packet[0], uint64(len(q.packet))
		}
		s.free = s.free[:len(s.free)-size]
		for size > 0 {
			sent, err := s.out.transfer(unix.SYS_SENDMMSG, s.fd, size)
			if err != nil {
				return fmt.Errorf("send: %w", err)
			}
			copy(s.out.vectors[:], s.out.vectors[sent:size])
			size, n, c.sent, c.flying = size-sent, n-sent, c.sent+sent, c.flying+sent
		}
	}
	return nil
}

// hear takes the answers that have come to a socket, and returns how many questions they were for.
func (c *dnsClient) hear(s *dnsSocket) (answered int, err error) {
	n, err := c.in.transfer(unix.SYS_RECVMMSG, s.fd, batchSize)
	if err != nil {
		return 0, fmt.Errorf("receive: %w", err)
	}
	now := c.now()
	for i := range n {
		msg := c.in.buffers[i][:c.in.headers[i].size]
		if len(msg) < headerSize {
			c.wrong(nil, errShort)
			continue
		}
		id := binary.BigEndian.Uint16(msg)
		slot := &s.slots[byte(id)]
		q := slot.question
		if q == nil || slot.turn != byte(id>>8) {
			c.wrong(nil, errors.New("has an id that nothing waits for"))
			continue
		}
		slot.question = nil
		s.free = append(s.free, byte(id))
		c.flying--
		answered++
		c.result.All++
		if c.echo {
			err = q.echoed(msg)
		} else {
			err = q.check(msg)
		}
		if err != nil {
			c.wrong(q, err)
			continue
		}
		if now >= c.begin && now < c.end {
			c.result.Answers++
		}
		if slot.due >= c.begin && slot.due < c.end && len(c.latency) < cap(c.latency) {
			c.latency = append(c.latency, int32(min(now-slot.due, 1<<31-1)))
		}
	}
	return answered, nil
}

func (c *dnsClient) wrong(q *question, err error) {
	if c.result.Wrong++; c.result.Wrong > 1 {
		return
	}
	c.result.FirstWrong = err.Error()
	if q != nil {
		c.result.FirstWrong = fmt.Sprintf("to %s %s: %v", q.name, typeNames[q.qtype], err)
	}
}

func (c *dnsClient) sum() dnsResult {
	r := c.result
	r.Lost = c.flying
	r.Seconds = float64(c.end-c.begin) / 1e9
	if len(c.latency) > 0 {
		slices.Sort(c.latency)
		micros := func(share float64) float64 { return float64(c.latency[int(share*float64(len(c.latency)-1))]) / 1000 }
		r.P50, r.P99, r.P999 = micros(0.5), micros(0.99), micros(0.999)
	}
	return r
}
