// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package shortcut

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/bpf"
	"github.com/fairlead/fairlead/model"
)

// Maps are those of the program that is loaded.
type Maps struct {
	Answers, Slots, Counts, Pods, Askers *ebpf.Map
}

// Answers are those in the kernel. Without a program that is loaded there are none, and everything is in vain.
type Answers struct {
	pods  atomic.Pointer[map[netip.Addr]struct{}]
	kinds atomic.Uint32
	full  atomic.Bool

	mu     sync.RWMutex // writing: the maps come or go, or alike changes
	alike  map[netip.Addr]uint32
	maps   *Maps
	loads  uint64
	serial atomic.Uint64
	slots  []atomic.Uint64 // the kernel's own memory
}

// New has no program yet.
func New() *Answers { return new(Answers) }

// Load uses the maps of a program that was loaded, which has no answers. It is for the caller to close them after [Answers.Unload].
func (a *Answers) Load(m Maps) error {
	mem, err := unix.Mmap(m.Slots.FD(), 0, Slots*int(unsafe.Sizeof(uint64(0))), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map memory of eBPF program: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.maps, a.slots = &m, unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(mem))), Slots)
	a.loads++
	a.slots[serial].Store(a.serial.Load())
	alike := a.alike
	a.alike = nil
	_ = a.setAlike(alike) // what is not there is not answered
	return nil
}

// SetAlike says which pods are answered alike where not everybody is: those with the same number, which is not 0. The map is not to be changed afterwards. The error is
// that the kernel has no room.
func (a *Answers) SetAlike(alike map[netip.Addr]uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.setAlike(alike)
}

func (a *Answers) setAlike(alike map[netip.Addr]uint32) error {
	if a.maps == nil {
		a.alike = alike
		return nil
	}
	// What is wrong goes first, and what could not be written is not said to be there.
	now := make(map[netip.Addr]uint32, len(alike))
	var errs []error
	for addr, n := range a.alike {
		if alike[addr] == n {
			now[addr] = n
			continue
		}
		if err := bpf.IgnoreMissing(a.maps.Askers.Delete(addr.As16())); err != nil {
			now[addr] = n
			errs = append(errs, err)
		}
	}
	for addr, n := range alike {
		if now[addr] != 0 {
			continue
		}
		if err := a.maps.Askers.Put(addr.As16(), n); err != nil {
			errs = append(errs, err)
			continue
		}
		now[addr] = n
	}
	if a.alike = now; len(errs) > 0 {
		return fmt.Errorf("write %d pods that are answered alike: %w", len(errs), errs[0])
	}
	return nil
}

// Alike is the number of the pods that are answered as the one at an address is; 0: there is none.
func (a *Answers) Alike(pod netip.Addr) uint32 {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.alike[pod]
}

// Unload forgets the program, and ends every answer: it may still be on devices, and is told of no change any more.
func (a *Answers) Unload() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.maps == nil {
		return
	}
	a.pods.Store(nil)
	a.slots[All].Add(1)
	unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(a.slots))), Slots*int(unsafe.Sizeof(uint64(0)))))
	a.maps, a.slots = nil, nil
}

// SetPods says which pods are asked for by the program. The map is not to be changed afterwards.
func (a *Answers) SetPods(pods map[netip.Addr]struct{}) { a.pods.Store(&pods) }

// Asks reports whether the questions of a pod at an address come by the program.
func (a *Answers) Asks(pod netip.Addr) bool {
	pods := a.pods.Load()
	if pods == nil {
		return false
	}
	_, ok := (*pods)[pod]
	return ok
}

// What an answer can depend on: slots. The others are Services', several of which may have one.
const (
	// All is the slot of everything.
	All uint32 = iota
	serial
	// Any is the slot of any Service.
	Any
	services
	// Slots is how many there are.
	Slots = 1 << 14
)

var seed = maphash.MakeSeed()

// Slot is that of a Service, whether there is one of the name or not. The name's strings are not kept.
func Slot(name model.Name) uint32 {
	var h maphash.Hash
	h.SetSeed(seed)
	h.WriteString(name.Namespace)
	h.WriteByte('/')
	h.WriteString(name.Name)
	return services + uint32(h.Sum64()%(Slots-uint64(services)))
}

// Basis is what an answer was made from.
type Basis struct {
	load              uint64
	all, number, slot uint32
}

// Basis is the one of an answer that depends on a slot, as it is at this moment.
func (a *Answers) Basis(slot uint32) Basis {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.maps == nil {
		return Basis{}
	}
	return Basis{a.loads, uint32(a.slots[All].Load()), uint32(a.slots[slot].Load()), slot}
}

// Changed ends every answer that depends on a slot.
func (a *Answers) Changed(slot uint32) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.maps != nil {
		a.slots[slot].Add(1)
	}
}

// SetSerial has denials tell another number of the state from now on.
func (a *Answers) SetSerial(n uint32) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	a.serial.Store(uint64(n))
	if a.maps != nil {
		a.slots[serial].Store(uint64(n))
	}
}

// Put adds an answer, which is counted as of a kind, unless its basis is of a program that is gone. There may be no room for it.
func (a *Answers) Put(q *Question, e *Answer, kind uint16, b Basis) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.maps == nil || b.load != a.loads || a.full.Load() {
		return
	}
	e.kind, e.all, e.slot, e.number = kind, b.all, b.slot, b.number
	e.seal = sealed(q, e)
	err := a.maps.Answers.Update(unsafe.Pointer(q), unsafe.Pointer(e), ebpf.UpdateAny)
	if errors.Is(err, unix.E2BIG) && a.full.CompareAndSwap(false, true) {
		go a.clear()
	}
}

// Has reports whether a question is answered by the program.
func (a *Answers) Has(q *Question) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var e Answer
	if a.maps == nil || a.maps.Answers.Lookup(unsafe.Pointer(q), unsafe.Pointer(&e)) != nil || e.slot >= Slots {
		return false
	}
	if e.until != 0 && Clock() >= e.until {
		return false
	}
	return e.all == uint32(a.slots[All].Load()) && e.number == uint32(a.slots[e.slot].Load())
}

// Clock is the kernel's monotonic one, in nanoseconds, or a moment before.
func Clock() uint64 { return kernelClock + uint64(time.Since(began)) }

// The runtime reads the same clock, faster than by a system call, and does not say from when it counts.
var (
	kernelClock = func() uint64 {
		var t unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
			panic(err) // there is no kernel without
		}
		return uint64(t.Nano())
	}()
	began = time.Now()
)

// clear makes room: what is still asked for comes again.
func (a *Answers) clear() {
	defer a.full.Store(false)
	const chunk = 512
	keys, values := make([][unsafe.Sizeof(Question{})]byte, chunk), make([][unsafe.Sizeof(Answer{})]byte, chunk)
	load, cursor := a.Basis(All).load, ebpf.MapBatchCursor{}
	// By parts, so that nobody waits for all of it.
	part := func() error {
		a.mu.RLock()
		defer a.mu.RUnlock()
		if a.maps == nil || a.loads != load {
			return unix.ENOENT
		}
		_, err := a.maps.Answers.BatchLookupAndDelete(&cursor, keys, values, nil)
		return err
	}
	for part() == nil {
	}
}

// NewKind is one more kind of answers to be counted, and false if there are too many.
func (a *Answers) NewKind() (uint16, bool) {
	for {
		n := a.kinds.Load()
		if n == maxKinds {
			return 0, false
		}
		if a.kinds.CompareAndSwap(n, n+1) {
			return uint16(n), true
		}
	}
}

// Count is how many answers were given, and the octets of their questions and of themselves, since the program was loaded for the so many-th time.
type Count struct{ Answers, Asked, Said, Load uint64 }

// Count is that of a kind.
func (a *Answers) Count(kind uint16) (sum Count) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var each []struct{ Answers, Asked, Said uint64 }
	if a.maps == nil || a.maps.Counts.Lookup(uint32(kind), &each) != nil {
		return Count{}
	}
	sum.Load = a.loads
	for _, c := range each {
		sum.Answers += c.Answers
		sum.Asked += c.Asked
		sum.Said += c.Said
	}
	return sum
}

// Answered is how many answers were given since the program was loaded.
func (a *Answers) Answered() (n uint64) {
	for kind := range a.kinds.Load() {
		n += a.Count(uint16(kind)).Answers
	}
	return n
}

// Asked is how many answers the program has given the pod behind a device, and how many of them with NXDOMAIN, since it was loaded for the so many-th time.
type Asked struct {
	Answers, Denials, Load uint64
	Dev                    uint32
}

// Pods yields what the program has answered its pods, by their addresses.
func (a *Answers) Pods(yield func(netip.Addr, Asked) bool) {
	pods := a.pods.Load()
	if pods == nil {
		return
	}
	for addr := range *pods {
		if n, ok := a.pod(addr); ok && !yield(addr, n) {
			return
		}
	}
}

func (a *Answers) pod(addr netip.Addr) (Asked, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var p Pod
	if a.maps == nil || a.maps.Pods.Lookup(addr.As16(), &p) != nil {
		return Asked{}, false
	}
	return Asked{p.Asked, p.Denied, a.loads, p.Dev}, true
}
