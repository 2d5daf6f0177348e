// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"
	"unsafe"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const childVariable = "FAIRLEAD_TEST_DNS_CHILD"

// TestKilledChild is the process that is killed by [TestKilledLosesNothing]: it serves the socket and the inbox that it is given, and publishes only
// a while after its start, so that queries wait too.
func TestKilledChild(t *testing.T) {
	pause, err := strconv.Atoi(os.Getenv(childVariable))
	if err != nil {
		return // not started by it
	}
	c, err := net.FilePacketConn(os.NewFile(3, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	s := dual(t, nil)
	snap := s.Published()
	s = newServer(t, s.options)
	time.AfterFunc(time.Duration(pause)*time.Millisecond, func() { s.Publish(snap) })
	var sockets Sockets
	if err := sockets.addUDP(c.(*net.UDPConn), os.NewFile(4, "inbox")); err != nil {
		t.Fatal(err)
	}
	if err := s.serveUDP(t.Context(), sockets.udp[0]); err != nil {
		t.Fatal(err)
	}
}

// A process that answers is killed again and again, in the middle of whatever it does. Each query, which is sent once, is answered.
func TestKilledLosesNothing(t *testing.T) {
	r := random(t)
	// The server's ids are the test's: no other server in this process uses the socket.
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := conn.SetReadBuffer(readBuffer); err != nil {
		t.Fatal(err)
	}
	socket, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	defer socket.Close()
	inbox, err := newInboxFile()
	if err != nil {
		t.Fatal(err)
	}
	defer inbox.Close()

	client, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.SetReadBuffer(readBuffer); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		open     = make(map[uint16]bool) // the ids without an answer
		all      = make(chan struct{})
		answered int
		sending  = true
		done     bool
		window   = make(chan struct{}, 400)
	)
	wg.Go(func() { // sends, never more than the window at a time
		req := message(t, nil)
		for id := uint16(0); ; id++ {
			select {
			case window <- struct{}{}:
			case <-ctx.Done():
				return
			}
			mu.Lock()
			if !sending {
				mu.Unlock()
				return
			}
			for open[id] { // one that is lost stays open
				id++
			}
			open[id] = true
			mu.Unlock()
			binary.BigEndian.PutUint16(req, id)
			if _, err := client.Write(req); err != nil {
				t.Errorf("send query %d: %v", id, err)
			}
		}
	})
	wg.Go(func() { // takes the answers
		buf, m := make([]byte, 4096), new(mdns.Msg)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			if err := m.Unpack(buf[:n]); err != nil || m.Rcode != mdns.RcodeSuccess || len(m.Answer) != 1 {
				t.Errorf("answer %v, %v", m, err)
				continue
			}
			mu.Lock()
			if open[m.Id] { // not one more for a query that a killed process had just answered
				delete(open, m.Id)
				answered++
				<-window
			}
			if !sending && !done && len(open) == 0 {
				close(all)
				done = true
			}
			mu.Unlock()
		}
	})

	start := func(pause int) *exec.Cmd {
		child := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
		child.Env = append(os.Environ(), childVariable+"="+strconv.Itoa(pause))
		child.ExtraFiles = []*os.File{socket, inbox}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		return child
	}
	for range 30 {
		child := start(r.IntN(15))
		time.Sleep(time.Duration(20+r.IntN(60)) * time.Millisecond) // the moment is the test's choice
		child.Process.Kill()
		child.Wait()
	}
	last := start(0)
	defer func() {
		last.Process.Kill()
		last.Wait()
	}()
	mu.Lock()
	sending = false
	rest, before := len(open), answered
	mu.Unlock()
	t.Logf("%d queries answered over 30 kills, %d under way at the end", before, rest)
	if rest > 0 {
		select {
		case <-all:
		case <-time.After(30 * time.Second):
			mu.Lock()
			t.Errorf("%d queries are lost", len(open))
			mu.Unlock()
		}
	}
	if before == 0 {
		t.Error("nothing was answered")
	}
	cancel()
	client.Close()
	wg.Wait()
}

// newInbox is an empty inbox and its file.
func newInbox(t *testing.T) (*os.File, *inbox) {
	t.Helper()
	file, err := newInboxFile()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	in, err := openInbox(file)
	if err != nil {
		t.Fatal(err)
	}
	return file, in
}

// What is left in an inbox is yielded once: messages of the last batch that are not ticked off, and those that waited.
func TestInboxLeft(t *testing.T) {
	file, in := newInbox(t)
	in.prepare()
	server, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("[::1]:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := net.DialUDP("udp6", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, text := range []string{"one", "two", "three"} {
		if _, err := client.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if err := in.receive(fd); in.n != 3 || err != nil {
			t.Errorf("%d messages, %v", in.n, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	from, msg := in.message(1)
	if string(msg) != "two" || address(from) != client.LocalAddr().(*net.UDPAddr).AddrPort() {
		t.Errorf("message %q from %v", msg, address(from))
	}
	done := in.wait(in.message(0))
	in.wait(in.message(1))
	in.free(2) // answered
	done()     // answered, too
	in.free(0)

	again, err := openInbox(file)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	in.close()
	var got []string
	for from, msg := range again.left() {
		if address(from) != client.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("%q is from %v", msg, address(from))
		}
		got = append(got, string(msg))
	}
	if len(got) != 2 || got[0] != "two" || got[1] != "two" {
		t.Errorf("left is %q, want what is in the batch and what waits", got)
	}
	for _, msg := range again.left() {
		t.Errorf("%q is left twice", msg)
	}
}

// More queries than there is room for wait without being remembered, and nothing is overwritten.
func TestInboxFull(t *testing.T) {
	file, in := newInbox(t)
	defer in.close()
	var done []func()
	for i := range 2 * pendingSlots {
		done = append(done, in.wait(new(unix.RawSockaddrInet6), []byte(strconv.Itoa(i+1))))
	}
	for i, d := range done {
		if i%2 == 1 {
			d()
		}
	}
	again, err := openInbox(file)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	left := make(map[string]bool)
	for _, msg := range again.left() {
		left[string(msg)] = true
	}
	if len(left) != pendingSlots/2 || !left["1"] || left["2"] || left[strconv.Itoa(pendingSlots+1)] {
		t.Errorf("%d are left", len(left))
	}
}

// What the kernel knows as struct mmsghdr and struct sockaddr_in.
func TestKernelLayout(t *testing.T) {
	if size, want := unsafe.Sizeof(mmsghdr{}), (unsafe.Sizeof(unix.Msghdr{})+4+unsafe.Alignof(unix.Msghdr{})-1)&^(unsafe.Alignof(unix.Msghdr{})-1); size != want {
		t.Errorf("mmsghdr has %d octets, want %d", size, want)
	}
	a := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: 0x3500, Addr: [4]byte{10, 96, 0, 1}}
	var b unix.RawSockaddrInet6
	*(*unix.RawSockaddrInet4)(unsafe.Pointer(&b)) = a
	if got := address(&b); got != netip.MustParseAddrPort("10.96.0.1:53") {
		t.Errorf("the address is %v", got)
	}
}

// TestInboxMemory: an inbox takes memory for what was received in it, and not for all that could be.
func TestInboxMemory(t *testing.T) {
	file, err := newInboxFile()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	in, err := openInbox(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.close()
	in.prepare()
	for range in.left() {
		t.Error("something is left in a new inbox")
	}
	in.wait(new(unix.RawSockaddrInet6), []byte("query"))()
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	if most := int64(32 << 10); stat.Blocks*512 > most {
		t.Errorf("an inbox that one query waited in takes %d octets, want %d at most", stat.Blocks*512, most)
	}
}
