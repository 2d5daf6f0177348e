// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// batchSize is how many messages one system call takes or gives at most.
	batchSize = 64
	// slotSize is how long a message may be over UDP. A longer query is no query: what is cut off does not parse.
	slotSize = 1280
	// pendingSlots is how many queries of a socket that have to wait are remembered beyond the life of the process.
	pendingSlots = 1024
)

// mmsghdr is the kernel's struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	// Len is how long the message is, which the kernel writes when it has copied it.
	Len uint32
}

// inbox is where the queries of a UDP socket are received into. It is memory of a file, so that it can outlive the process: what is received lies
// in it until it has been answered. A query of a process that was killed is either still in its socket or here, and [inbox.left] gives it to the
// next one. At the moment between an answer and its being ticked off the next process answers once more, which does no harm.
//
// The kernel itself writes down that a slot is full, by the length in its header, so there is no moment at which a query is nowhere.
type inbox struct {
	*inboxMemory
	n int // messages of the last batch

	waited []uint16 // the waiting ones of the process before
	mu     sync.Mutex
	vacant []uint16 // of the waiting ones, the next one last: the fewer are used, the less memory it takes
}

type inboxMemory struct {
	headers [batchSize]mmsghdr
	iovecs  [batchSize]unix.Iovec
	names   [batchSize]unix.RawSockaddrInet6
	slots   [batchSize][slotSize]byte
	// lengths are 0 for the free ones of waiting, and otherwise those of their queries. They are written last, and read first. They are together because
	// all are looked at when an inbox is opened, and a page of the file that is looked at takes memory.
	lengths [pendingSlots]atomic.Uint32
	waiting [pendingSlots]struct {
		name unix.RawSockaddrInet6
		slot [slotSize]byte
	}
}

// newInboxFile makes the file of an inbox, which has no name and is gone with its last descriptor.
func newInboxFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("fairlead-dns-inbox", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory for queries: %w", err)
	}
	f := os.NewFile(uintptr(fd), "fairlead-dns-inbox")
	if err := f.Truncate(int64(unsafe.Sizeof(inboxMemory{}))); err != nil {
		f.Close()
		return nil, fmt.Errorf("make memory for queries: %w", err)
	}
	return f, nil
}

// openInbox maps a file. What another process has left in it is kept until [inbox.prepare].
func openInbox(f *os.File) (*inbox, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(unsafe.Sizeof(inboxMemory{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map memory for queries: %w", err)
	}
	in := &inbox{inboxMemory: (*inboxMemory)(unsafe.Pointer(unsafe.SliceData(mem)))}
	for i := pendingSlots - 1; i >= 0; i-- {
		if in.lengths[i].Load() == 0 {
			in.vacant = append(in.vacant, uint16(i))
		} else {
			in.waited = append(in.waited, uint16(i))
		}
	}
	return in, nil
}

// close gives the memory back to the system. The file keeps what is in it.
func (in *inbox) close() {
	unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(in.inboxMemory)), unsafe.Sizeof(inboxMemory{})))
}

// left yields what has been received and not been answered, and forgets it.
func (in *inbox) left() iter.Seq2[*unix.RawSockaddrInet6, []byte] {
	return func(yield func(*unix.RawSockaddrInet6, []byte) bool) {
		for i := range in.headers {
			if n := in.headers[i].Len; n > 0 && n <= slotSize && !yield(&in.names[i], in.slots[i][:n]) {
				return
			}
			in.headers[i].Len = 0
		}
		for len(in.waited) > 0 {
			i := in.waited[0]
			w := &in.waiting[i]
			if n := in.lengths[i].Load(); n <= slotSize && !yield(&w.name, w.slot[:n]) {
				return
			}
			in.waited = in.waited[1:]
			in.vacate(i)
		}
	}
}

// prepare points the headers at the slots of this process's mapping.
func (in *inbox) prepare() {
	for i := range in.headers {
		in.iovecs[i].Base = &in.slots[i][0]
		in.iovecs[i].SetLen(slotSize)
		h := &in.headers[i]
		h.Name = (*byte)(unsafe.Pointer(&in.names[i]))
		h.Iov = &in.iovecs[i]
		h.SetIovlen(1)
		in.free(i)
	}
}

// free makes a slot ready for another message.
func (in *inbox) free(i int) {
	h := &in.headers[i]
	h.Namelen = uint32(unsafe.Sizeof(in.names[i]))
	h.Flags = 0
	h.Len = 0
}

// answered makes the slots of the last batch ready for others.
func (in *inbox) answered() {
	for i := range in.n {
		in.free(i)
	}
	in.n = 0
}

// receive takes as many messages as are there, after the last ones have been [inbox.answered].
func (in *inbox) receive(fd uintptr) error {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.headers)), batchSize, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			in.n = int(n)
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// message is one of those received, and its sender.
func (in *inbox) message(i int) (from *unix.RawSockaddrInet6, msg []byte) {
	return &in.names[i], in.slots[i][:min(in.headers[i].Len, slotSize)]
}

// wait remembers a message for longer than its batch, until done is called. If there are too many, it is not remembered.
func (in *inbox) wait(from *unix.RawSockaddrInet6, msg []byte) (done func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	last := len(in.vacant) - 1
	if last < 0 {
		return func() {}
	}
	i := in.vacant[last]
	in.vacant = in.vacant[:last]
	w := &in.waiting[i]
	w.name = *from
	copy(w.slot[:], msg)
	in.lengths[i].Store(uint32(len(msg)))
	return func() { in.vacate(i) }
}

func (in *inbox) vacate(i uint16) {
	in.lengths[i].Store(0)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.vacant = append(in.vacant, i)
}

// address is that of a socket address as the kernel has it, IPv4 or IPv6.
func address(from *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&from.Port))[:])
	if from.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(from)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(from.Addr).Unmap(), port)
}
