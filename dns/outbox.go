// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// outbox is where the answers to a batch are written, and sent from.
type outbox struct {
	*outboxMemory
	n      int // messages to be sent
	unsent int // of those sent last, the ones that the kernel did not take
	send   func(fd uintptr)
	room   [1]unix.PollFd
}

type outboxMemory struct {
	headers [batchSize]mmsghdr
	iovecs  [batchSize]unix.Iovec
	slots   [batchSize][slotSize]byte
	source  [unix.SizeofCmsghdr + unix.SizeofInet6Pktinfo + 4]byte // a control message, the same for all
}

// roomLimit is how long a batch waits for room in its socket. What keeps it full is packets for hosts that do not say where they are, for seconds; who
// asks meanwhile gets no answer, and asks again.
const roomLimit = 100 * time.Millisecond

// mostWaits is how often a batch waits when it is told that there is room, and there is none.
const mostWaits = 10

// openOutbox maps memory that the collector need not look at, and the kernel gives only when it is used. All answers are from one address.
func openOutbox(from netip.Addr) (*outbox, error) {
	mem, err := unix.Mmap(-1, 0, int(unsafe.Sizeof(outboxMemory{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map memory for answers: %w", err)
	}
	out := &outbox{outboxMemory: (*outboxMemory)(unsafe.Pointer(unsafe.SliceData(mem)))}
	out.send = out.sendAll
	size := putSource(out.source[:], from)
	for i := range out.headers {
		h := &out.headers[i]
		h.Iov = &out.iovecs[i]
		h.SetIovlen(1)
		h.Control = &out.source[0]
		h.SetControllen(size)
		out.iovecs[i].Base = &out.slots[i][0]
	}
	return out, nil
}

// putSource writes the control message that says where a datagram is from (ip(7), RFC 3542 section 6.2), and returns its size.
func putSource(buf []byte, from netip.Addr) int {
	level, kind, size := unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo
	if from.Is6() {
		level, kind, size = unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(buf)))
	h.Level, h.Type = int32(level), int32(kind)
	h.SetLen(unix.CmsgLen(size))
	data := buf[unix.CmsgLen(0):]
	if from.Is6() {
		copy(data, from.AsSlice())
	} else {
		copy(data[4:], from.AsSlice()) // after the interface's index: ipi_spec_dst
	}
	return unix.CmsgSpace(size)
}

func (out *outbox) close() {
	unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(out.outboxMemory)), unsafe.Sizeof(outboxMemory{})))
}

// next is where the next answer is to be written.
func (out *outbox) next() []byte { return out.slots[out.n][:] }

// put adds an answer, which may be what was written to [outbox.next]. The address must stay as it is until it is sent.
func (out *outbox) put(to *unix.RawSockaddrInet6, msg []byte) {
	i := out.n
	if unsafe.SliceData(msg) != &out.slots[i][0] {
		copy(out.slots[i][:], msg)
	}
	out.iovecs[i].SetLen(len(msg))
	h := &out.headers[i]
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(to)), nameLength(to)
	out.n++
}

func nameLength(a *unix.RawSockaddrInet6) uint32 {
	if a.Family == unix.AF_INET {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}

// flush sends what has been put.
func (out *outbox) flush(by syscall.RawConn) error {
	defer func() { out.n = 0 }()
	return by.Control(out.send)
}

// sendAll sends what has been put. An answer that cannot be sent is an answer lost: the client asks again. The others go on.
func (out *outbox) sendAll(fd uintptr) {
	waits := 0
	out.unsent = 0
	for sent := 0; sent < out.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&out.headers[sent])), uintptr(out.n-sent), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			sent, waits = sent+int(n), 0
		case unix.EINTR:
		case unix.EAGAIN:
			if waits == mostWaits {
				out.unsent += out.n - sent
				return
			}
			out.room[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
			limit := unix.NsecToTimespec(roomLimit.Nanoseconds())
			n, err := unix.Ppoll(out.room[:], &limit, nil)
			if waits++; n == 0 || err != nil && err != unix.EINTR {
				waits = mostWaits
			}
		default:
			out.unsent++
			sent++
		}
	}
}
