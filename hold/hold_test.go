// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes this test's program three: the test; a holder, by the arguments; and, started by one, the agent of it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		os.Exit(testAgent(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// socketName is what a test's agent has held.
const socketName = "dns/udp/test"

// testAgent answers each datagram with its process id and version, but for orders. It reports what it does, a line each, on its output.
func testAgent(dir, mode string) int {
	life, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	say := func(format string, args ...any) {
		fmt.Printf("%d "+format+"\n", append([]any{os.Getpid()}, args...)...)
	}
	fail := func(err error) int {
		say("failed: %v", err)
		return 9
	}
	held, err := Inherited(life)
	if err != nil {
		return fail(err)
	}
	version, _ := os.ReadFile(filepath.Join(dir, "version"))
	if string(version) == "broken" && held.Beside() {
		return fail(errors.New("broken"))
	}
	door := filepath.Join(dir, "door")
	if !held.Has(Door) {
		if conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: door, Net: "unixpacket"}); err == nil {
			if err := held.TakeOver(conn); err != nil {
				return fail(err)
			}
		} else {
			os.Remove(door)
			l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: door, Net: "unixpacket"})
			if err != nil {
				return fail(err)
			}
			l.SetUnlinkOnClose(false)
			if err := held.Keep(Door, l); err != nil {
				return fail(err)
			}
			l.Close()
		}
	}
	say("started beside=%v holder=%v inherited=%v", held.Beside(), held.Holder() == os.Getppid(), held.Has(socketName))
	go func() {
		<-held.Refused()
		say("is refused")
		os.Exit(8)
	}()
	if mode == "fail" {
		return 7
	}
	if held.Write(life) != nil {
		return 0
	}
	say("writes")
	go func() {
		for range held.Yield() {
			say("yields")
			if held.Write(life) == nil {
				say("writes again")
			}
		}
	}()
	if string(version) == "hang" && held.Beside() {
		say("hangs")
		select {}
	}
	if string(version) == "pause" && held.Beside() {
		say("pauses")
		for goOn := filepath.Join(dir, "go on"); !exists(goOn); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if mode == "slow" && held.Has(socketName) {
		// Never ready: the holder must not wait for ever.
		for held.Has(socketName) {
			time.Sleep(10 * time.Millisecond)
		}
		say("let go")
	}
	if held.Answer(life) != nil {
		return 0
	}
	var conn net.PacketConn
	for _, f := range held.Take(socketName) {
		conn, err = net.FilePacketConn(f)
		f.Close()
	}
	if conn == nil && err == nil {
		conn, err = net.ListenPacket("udp", mustRead(filepath.Join(dir, "address")))
		if err == nil {
			err = held.Keep(socketName, conn.(*net.UDPConn))
		}
	}
	if err != nil {
		return fail(err)
	}
	context.AfterFunc(life, func() { conn.SetReadDeadline(time.Unix(1, 0)) }) // what was read is answered
	if err := held.Serving(); err != nil {
		return fail(err)
	}
	held.Rest()
	say("serves")
	if mode == "busy" { // it says much, and each word counts
		r, w, _ := os.Pipe()
		begun := time.Now()
		for i := 0; time.Since(begun) < 500*time.Millisecond; i++ {
			name := fmt.Sprint("pipe", i)
			held.Keep(name, w)
			held.Drop(name)
		}
		w.Close()
		go func() {
			io.Copy(io.Discard, r)
			say("pipe closed")
		}()
	}
	for buf := make([]byte, 1500); ; {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			last := held.Last()
			held.Stopped()
			if mode == "linger" && held.Holder() != 0 {
				time.Sleep(time.Second) // something that nobody has to wait for
			}
			say("ends last=%v", last)
			return 0
		}
		switch order := string(buf[:n]); order {
		case "die":
			return 3
		case "keep":
			r, w, _ := os.Pipe()
			held.Keep("pipe", w)
			w.Close()
			go func() { // its end is seen when nobody holds the other one
				io.Copy(io.Discard, r)
				say("pipe closed")
			}()
		case "drop":
			held.Drop("pipe")
		case "reopen":
			var failures []error
			for range 500 {
				l, err := held.Listen(life, "tcp", conn.LocalAddr().String())
				if err == nil {
					err = l.Close()
				}
				if err != nil {
					failures = append(failures, err)
				}
			}
			say("reopened with %d failures %v", len(failures), failures[:min(1, len(failures))])
		default:
			conn.WriteTo(fmt.Appendf(nil, "%d %s %s", os.Getpid(), version, order), from)
		}
	}
}

func mustRead(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// stand is a holder under test and a client of its agent's.
type stand struct {
	t    *testing.T
	dir  string
	conn net.Conn

	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func newStand(t *testing.T) *stand {
	t.Helper()
	s := &stand{t: t, dir: t.TempDir(), more: make(chan struct{}, 1)}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.Addr().String()
	probe.Close()
	s.write("address", addr)
	s.write("version", "v1")
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := install(s.program(), program); err != nil {
		t.Fatal(err)
	}
	if s.conn, err = net.Dial("udp", addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	return s
}

func (s *stand) program() string { return filepath.Join(s.dir, "program") }

// install writes a program. Nobody may be forked meanwhile: a child has the open file too until it executes something, and a file that is open for writing
// cannot be executed.
func install(path string, program []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, program, 0o700)
}

// reinstall puts another file with the same program in its place, as package managers do it.
func (s *stand) reinstall() {
	s.t.Helper()
	program, err := os.ReadFile(s.program())
	if err == nil {
		err = install(s.program()+".new", program)
	}
	if err == nil {
		err = os.Rename(s.program()+".new", s.program())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stand) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// start starts a holder.
func (s *stand) start(mode string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(s.program(), "agent", s.dir, mode)
	out, in, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	in.Close()
	go func() {
		defer out.Close()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.mu.Lock()
			s.lines = append(s.lines, lines.Text())
			s.mu.Unlock()
			poke(s.more)
		}
	}()
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if s.t.Failed() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.t.Logf("said:\n%s", strings.Join(s.lines, "\n"))
		}
	})
	return cmd
}

// await waits until the holder or an agent has said something, and forgets that.
func (s *stand) await(what string) string {
	s.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		i := slices.IndexFunc(s.lines, func(l string) bool { return strings.Contains(l, what) })
		if i >= 0 {
			line := s.lines[i]
			s.lines = slices.Delete(s.lines, i, i+1)
			s.mu.Unlock()
			return line
		}
		s.mu.Unlock()
		select {
		case <-s.more:
		case <-limit:
			s.t.Fatalf("nobody says %q", what)
		}
	}
}

// forget drops what has been said until now.
func (s *stand) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = nil
}

func (s *stand) ask(text string) {
	s.t.Helper()
	if _, err := s.conn.Write([]byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

// answer is the process and its version that answered, which must be to this question.
func (s *stand) answer(want string) (pid int, version string) {
	s.t.Helper()
	buf := make([]byte, 1500)
	s.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := s.conn.Read(buf)
	if err != nil {
		s.t.Fatalf("%q is not answered: %v", want, err)
	}
	var question string
	if _, err := fmt.Sscan(string(buf[:n]), &pid, &version, &question); err != nil || question != want {
		s.t.Fatalf("%q to %q", buf[:n], want)
	}
	return pid, version
}

// answeredBy asks, and wants the answer of a process.
func (s *stand) answeredBy(pid int, question string) {
	s.t.Helper()
	s.ask(question)
	if got, _ := s.answer(question); got != pid {
		s.t.Errorf("%d answers, not %d", got, pid)
	}
}

func pidOf(t *testing.T, line string) int {
	t.Helper()
	pid, err := strconv.Atoi(strings.Fields(line)[0])
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return pid
}

// end tells a holder to end, and wants that to be no failure.
func end(t *testing.T, holder *exec.Cmd) {
	t.Helper()
	if err := holder.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := holder.Wait(); err != nil {
		t.Errorf("the end of holder %d: %v", holder.Process.Pid, err)
	}
}

// TestKilled: what is asked while no agent lives is answered by the next one, in order and all of it.
func TestKilled(t *testing.T) {
	s := newStand(t)
	holder := s.start("")
	pid := pidOf(t, s.await("serves"))
	for i := range 5 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for q := range 20 {
			s.ask(fmt.Sprintf("%d/%d", i, q))
		}
		next := 0
		for q := range 20 {
			next, _ = s.answer(fmt.Sprintf("%d/%d", i, q))
		}
		if next == pid {
			t.Fatalf("answered by %d, which was killed", pid)
		}
		pid = next
	}
	end(t, holder)
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the agent outlived its holder: %v", err)
	}
}

// TestHolderKilled: an agent does not live without its holder.
func TestHolderKilled(t *testing.T) {
	s := newStand(t)
	holder := s.start("")
	pid := pidOf(t, s.await("serves"))
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	holder.Process.Kill()
	holder.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); n != 1 {
		t.Errorf("the agent lives: %d, %v", n, err)
	}
	s.start("")
	if line := s.await("started"); !strings.Contains(line, "beside=false") {
		t.Errorf("after that: %s", line)
	}
	s.await("serves")
}

// TestReplaced: with SIGHUP, the program at the path takes over, each question being answered once, and then the holder is that program too.
func TestReplaced(t *testing.T) {
	s := newStand(t)
	holder := s.start("")
	old := pidOf(t, s.await("serves"))
	s.forget()
	for i := range 3 {
		s.reinstall()
		version := fmt.Sprint("v", 2+i)
		s.write("version", version)
		holder.Process.Signal(syscall.SIGHUP)
		asked := 0
		for answered := 0; ; answered++ {
			if asked == answered {
				s.ask(fmt.Sprint(asked))
				asked++
			}
			if _, v := s.answer(fmt.Sprint(answered)); v == version {
				break
			}
		}
		if line := s.await("started"); !strings.Contains(line, "beside=true") || !strings.Contains(line, "inherited=true") {
			t.Errorf("the next agent: %s", line)
		}
		// The old one writes until it is asked, and the new one only then.
		yields := pidOf(t, s.await("yields"))
		writes := pidOf(t, s.await("writes"))
		ended := s.await("ends")
		if !strings.Contains(ended, "last=false") {
			t.Errorf("one that is replaced: %s", ended)
		}
		if ends := pidOf(t, ended); yields != old || ends != old || writes == old {
			t.Errorf("%d yielded, %d wrote, %d ended; the old one is %d", yields, writes, ends, old)
		}
		old = pidOf(t, s.await("serves"))
		s.await("another program now")
		s.forget()
		if at, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", holder.Process.Pid)); err != nil || at != s.program() {
			t.Errorf("the holder is %s, %v", at, err)
		}
	}
	// The last holder still holds all that the first one did.
	syscall.Kill(old, syscall.SIGKILL)
	s.ask("after")
	if pid, _ := s.answer("after"); pid == old {
		t.Error("answered by the dead")
	}
	s.forget()
	end(t, holder)
	if ended := s.await("ends"); !strings.Contains(ended, "last=true") {
		t.Errorf("the last one: %s", ended)
	}
}

// TestRenewedWhileToldMuch: nothing of what an agent says is lost while its holder becomes another program.
func TestRenewedWhileToldMuch(t *testing.T) {
	s := newStand(t)
	holder := s.start("busy")
	for range 4 {
		s.await("serves")
		s.await("pipe closed")
		s.reinstall()
		holder.Process.Signal(syscall.SIGHUP)
		s.await("another program now")
	}
	s.await("pipe closed")
	end(t, holder)
}

// TestReplacementFails: a next agent that ends before it answers, or is killed while it may write, leaves the old one as it was.
func TestReplacementFails(t *testing.T) {
	for _, how := range []string{"broken", "hang"} {
		t.Run(how, func(t *testing.T) {
			s := newStand(t)
			holder := s.start("")
			old := pidOf(t, s.await("serves"))
			s.write("version", how)
			holder.Process.Signal(syscall.SIGHUP)
			if how == "broken" {
				s.await("failed: broken")
				s.await("agent ended")
			} else {
				s.await("yields")
				syscall.Kill(pidOf(t, s.await("hangs")), syscall.SIGKILL)
				s.await("agent ended")
				if again := pidOf(t, s.await("writes again")); again != old {
					t.Errorf("%d writes, the old one is %d", again, old)
				}
			}
			s.ask("still")
			if pid, _ := s.answer("still"); pid != old {
				t.Errorf("%d answers, not %d", pid, old)
			}
			s.write("version", "v3")
			holder.Process.Signal(syscall.SIGHUP)
			s.await("serves")
			s.ask("then")
			if _, v := s.answer("then"); v != "v3" {
				t.Errorf("%s answers", v)
			}
			if how == "hang" { // who was asked to yield in vain is the last one all the same
				s.forget()
				s.write("version", how)
				holder.Process.Signal(syscall.SIGHUP)
				syscall.Kill(pidOf(t, s.await("hangs")), syscall.SIGKILL)
				s.await("writes again")
				s.forget()
				end(t, holder)
				if ended := s.await("ends"); !strings.Contains(ended, "last=true") {
					t.Errorf("the last one: %s", ended)
				}
			}
		})
	}
}

// TestReplacedWhileStopped: an agent that hangs, here because it is stopped, keeps nobody from replacing it: neither one that writes and has been told to yield,
// nor one that has yielded and has been told to end.
func TestReplacedWhileStopped(t *testing.T) {
	for _, when := range []string{"yields", "ends"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			s := newStand(t)
			holder := s.start("")
			old := pidOf(t, s.await("serves"))
			if when == "yields" {
				syscall.Kill(old, syscall.SIGSTOP)
			} else {
				s.write("version", "pause")
			}
			holder.Process.Signal(syscall.SIGHUP)
			if when == "ends" {
				s.await("pauses")
				syscall.Kill(old, syscall.SIGSTOP)
				s.write("go on", "")
			}
			if killed := s.await("does not do what it is told"); !strings.Contains(killed, fmt.Sprint("pid=", old)) {
				t.Errorf("%s, want %d", killed, old)
			}
			s.await("serves")
			s.ask("then")
			if pid, _ := s.answer("then"); pid == old {
				t.Errorf("the old one, %d, answers", pid)
			}
			end(t, holder)
		})
	}
}

// TestTakenOver: a second holder's agent takes over from the first's, with everything that is held; the first one holds nothing any more and waits to be
// ended.
func TestTakenOver(t *testing.T) {
	s := newStand(t)
	first := s.start("")
	old := pidOf(t, s.await("serves"))
	s.write("version", "v2")
	second := s.start("")
	s.await("writes")
	s.ask("one")
	s.await("nothing is left to do")
	if pid, v := s.answer("one"); pid == old && v != "v1" || pid != old && v != "v2" {
		t.Errorf("answered by %d %s", pid, v)
	}
	s.ask("two")
	pid, v := s.answer("two")
	if v != "v2" {
		t.Errorf("answered by %d %s", pid, v)
	}
	for _, e := range sockets(t, first.Process.Pid) {
		if strings.Contains(e, "udp") {
			t.Errorf("the first holder still has %s", e)
		}
	}
	// The second one is a holder like any other, and gives it on.
	syscall.Kill(pid, syscall.SIGKILL)
	s.ask("three")
	if next, _ := s.answer("three"); next == pid {
		t.Error("answered by the dead")
	}
	end(t, first)
	s.await("serves")
	third := s.start("")
	s.await("nothing is left to do")
	end(t, second)
	s.ask("four")
	s.answer("four")
	end(t, third)
}

// TestTakenOverLate: another holder's agent may take longer to get ready than sockets are held while nobody answers, since somebody does. Its own holder does not know.
func TestTakenOverLate(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	first := s.start("")
	old := pidOf(t, s.await("serves"))
	s.write("version", "pause")
	began := time.Now()
	second := s.start("")
	s.await("pauses")
	time.Sleep(time.Until(began.Add(Patience + Patience/4))) // its own holder has given up by then
	s.answeredBy(old, "meanwhile")
	s.write("go on", "")
	s.await("nothing is left to do")
	s.ask("then")
	if pid, _ := s.answer("then"); pid == old {
		t.Errorf("%d still answers", pid)
	}
	end(t, first)
	end(t, second)
}

// TestParted: when the holder that is being taken over from is gone, and with it the agent that answered, what was received from it is closed like anything that nobody answers.
func TestParted(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	first := s.start("")
	old := pidOf(t, s.await("serves"))
	began := time.Now()
	s.start("slow")
	s.await("inherited=true")
	time.Sleep(time.Until(began.Add(Patience + Patience/4)))
	s.answeredBy(old, "meanwhile")
	first.Process.Kill()
	next := pidOf(t, s.await("let go"))
	s.await("serves")
	s.answeredBy(next, "then")
}

// TestEndsWhileTakenOver: when the agent ends that is about to be taken over, the next one on its sockets is its own holder's, and the other holder's is refused.
func TestEndsWhileTakenOver(t *testing.T) {
	t.Parallel()
	s := newStand(t)
	first := s.start("")
	old := pidOf(t, s.await("serves"))
	s.write("version", "pause")
	second := s.start("")
	guest := pidOf(t, s.await("pauses"))
	s.write("version", "v3")
	syscall.Kill(old, syscall.SIGKILL)
	if pid := pidOf(t, s.await("is refused")); pid != guest {
		t.Errorf("%d is refused, not %d", pid, guest)
	}
	s.ask("then")
	if pid, version := s.answer("then"); pid == old || pid == guest || version != "v3" {
		t.Errorf("%d %s answers", pid, version)
	}
	var exit *exec.ExitError
	if err := second.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 8 {
		t.Errorf("the second holder's end: %v", err)
	}
	end(t, first)
}

// TestRefused: another holder's agent that does not get ready for too long is told that the agent before goes on. It may neither write nor answer then, and until it has ended, or
// hangs, nobody else writes.
func TestRefused(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		atHolder, atGuest := pair(t)
		atHolder2, atAgent := pair(t)
		guest := &agent{link: atHolder, started: time.Now(), writes: true}
		before := &agent{pid: os.Getpid(), link: atHolder2, serving: true, wantsWrite: true}
		h := &holder{log: slog.New(slog.DiscardHandler), agents: []*agent{before, guest}}
		held := &Held{}
		held.other = held.attend(atGuest)
		h.replace(guest.started.Add(replaceTimeout - time.Millisecond))
		if len(h.agents) != 2 {
			t.Fatal("refused before the time")
		}
		now := guest.started.Add(replaceTimeout)
		h.replace(now)
		if len(h.agents) != 1 || h.agents[0] != before {
			t.Errorf("%d agents are left", len(h.agents))
		}
		<-held.Refused()
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		time.AfterFunc(50*time.Millisecond, func() { cancel(gone) })
		for _, may := range []func(context.Context) error{held.Write, held.Answer} {
			if err := may(ctx); !errors.Is(err, gone) {
				t.Errorf("it may: %v", err)
			}
		}
		held.holder = held.attend(atAgent)
		if err := held.Serving(); !errors.Is(err, ErrRefused) {
			t.Errorf("it serves: %v", err)
		}
		until := h.outwait(now)
		if h.arbitrate(now); before.writes || len(until) != 1 || !until[0].Equal(now.Add(obeyTimeout)) {
			t.Errorf("while the refused one may be writing, another one may: %t; to be looked at %v", before.writes, until)
		}
		if hangs {
			now = now.Add(obeyTimeout)
		} else {
			h.hear(event{from: guest, err: io.EOF})
		}
		h.outwait(now)
		if h.arbitrate(now); !before.writes || len(h.refused) != 0 {
			t.Errorf("hangs %t: the one that goes on may write: %t; %d are refused", hangs, before.writes, len(h.refused))
		}
	}
}

// TestNotRefused: an agent that could answer waits for the end of the one before, however long that takes, and is not refused meanwhile; nor at the moment when it may.
func TestNotRefused(t *testing.T) {
	atHolder, _ := pair(t)
	guest := &agent{link: atHolder, started: time.Now(), writes: true, wantsAnswer: true}
	before := &agent{pid: os.Getpid(), reaped: true, serving: true, ended: true}
	h := &holder{log: slog.New(slog.DiscardHandler), agents: []*agent{before, guest}}
	now := guest.started.Add(2 * replaceTimeout)
	if h.replace(now); len(h.agents) != 2 {
		t.Fatal("refused while the one before ends")
	}
	before.stopped = true
	h.arbitrate(now)
	if h.replace(now.Add(obeyTimeout - 1)); !guest.answers || len(h.agents) != 2 {
		t.Fatalf("may answer: %t, %d agents", guest.answers, len(h.agents))
	}
	if h.replace(now.Add(obeyTimeout)); len(h.agents) != 1 {
		t.Error("one that may answer and does not is waited for for ever")
	}
}

// TestNobodyDrops: what is held is closed when nobody has answered for too long and only another holder's agent is left, which cannot have it dropped.
func TestNobodyDrops(t *testing.T) {
	atHolder, atGuest := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	guest := &agent{link: atHolder, started: time.Now(), wantsAnswer: true, answers: true}
	h := &holder{log: slog.New(slog.DiscardHandler), agents: []*agent{guest}, files: map[string]int{socketName: fd}, answered: time.Now()}
	if h.settle(h.answered.Add(Patience - 1)); len(h.files) != 1 {
		t.Error("closed before the time")
	}
	h.settle(h.answered.Add(Patience))
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF || len(h.files) != 0 {
		t.Errorf("%d files are held, of one the end is %v", len(h.files), err)
	}
	if m, err := atGuest.receive(); err != nil || m.word != wordLetGo {
		t.Errorf("the agent is told %q, %v", m.word, err)
	}
}

// sockets are the UDP sockets among a process's descriptors.
func sockets(t *testing.T, pid int) (out []string) {
	t.Helper()
	table := mustRead(fmt.Sprintf("/proc/%d/net/udp", pid))
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) < 3 {
		t.Fatalf("descriptors of %d: %v, %v", pid, fds, err)
	}
	for _, fd := range fds {
		to, _ := os.Readlink(fd)
		if inode, ok := strings.CutPrefix(to, "socket:["); ok && strings.Contains(table, " "+strings.TrimSuffix(inode, "]")+" ") {
			out = append(out, "udp "+fd)
		}
	}
	return out
}

// TestTakeOverFails: another holder's agent that ends before it answers changes nothing.
func TestTakeOverFails(t *testing.T) {
	s := newStand(t)
	s.start("")
	old := pidOf(t, s.await("serves"))
	s.write("version", "hang")
	second := s.start("")
	s.await("hangs")
	second.Process.Kill()
	second.Wait()
	s.await("writes again")
	s.answeredBy(old, "still")
}

// TestEndsWithAgent: with nothing held, the holder is as if it were not there.
func TestEndsWithAgent(t *testing.T) {
	s := newStand(t)
	s.write("door", "in the way") // so that no door is kept
	if err := os.Remove(filepath.Join(s.dir, "door")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "door", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := s.start("fail").Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("the holder's end: %v", err)
	}
}

// TestCrashLoop: an agent that answers and then always ends again is started again as long as that may help, and then the sockets are closed.
func TestCrashLoop(t *testing.T) {
	s := newStand(t)
	holder := s.start("")
	done := make(chan error, 1)
	go func() { done <- holder.Wait() }()
	deaths := 0
	for end := time.After(60 * time.Second); ; {
		s.conn.Write([]byte("die")) // refused once the socket is closed
		select {
		case err := <-done:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 3 {
				t.Errorf("the holder's end: %v", err)
			}
			if strings.Contains(mustRead("/proc/net/udp"), portHex(s.conn.RemoteAddr())) {
				t.Error("the socket is still open")
			}
			s.mu.Lock()
			for _, l := range s.lines {
				if strings.Contains(l, "agent ended") {
					deaths++
				}
			}
			s.mu.Unlock()
			if deaths != burst {
				t.Errorf("%d agents ended, want %d", deaths, burst)
			}
			return
		case <-end:
			t.Fatal("the holder goes on for ever")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func portHex(a net.Addr) string {
	return fmt.Sprintf("0100007F:%04X 00000000:0000", a.(*net.UDPAddr).Port)
}

// TestLetGo: an agent that does not get ready closes what it has inherited, so that others are asked; when it is ready it begins anew.
func TestLetGo(t *testing.T) {
	s := newStand(t)
	s.start("slow")
	pid := pidOf(t, s.await("serves"))
	syscall.Kill(pid, syscall.SIGKILL)
	s.await("nobody has answered for too long")
	s.await("let go")
	pid = pidOf(t, s.await("serves"))
	s.answeredBy(pid, "again")
}

// TestKeepAndDrop: the holder has a copy until it is told to close it, also when the agent's is closed.
func TestKeepAndDrop(t *testing.T) {
	s := newStand(t)
	s.start("")
	s.await("serves")
	s.ask("keep")
	s.ask("between")
	s.answer("between")
	s.mu.Lock()
	early := slices.ContainsFunc(s.lines, func(l string) bool { return strings.Contains(l, "pipe closed") })
	s.mu.Unlock()
	if early {
		t.Error("the pipe is closed although it is held")
	}
	s.ask("drop")
	s.await("pipe closed")
}

// TestReopen: a port that was closed can be opened again at once, although the holder may not have closed its copy yet.
func TestReopen(t *testing.T) {
	s := newStand(t)
	s.start("")
	s.await("serves")
	s.ask("reopen")
	if line := s.await("reopened"); !strings.Contains(line, "with 0 failures") {
		t.Error(line)
	}
}

// TestLast: an agent that has been asked to yield knows at once that another one follows, until it may write again; any other one waits for the word.
func TestLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &parent{last: make(chan struct{})}
		h := &Held{holder: p}
		took := func(when string, want bool, within time.Duration) {
			t.Helper()
			began := time.Now()
			if got := h.Last(); got != want || time.Since(began) != within {
				t.Errorf("%s: %v after %v, want %v after %v", when, got, time.Since(began), want, within)
			}
		}
		p.yielded.Store(true)
		took("another one writes", false, 0)
		p.yielded.Store(false)
		took("nobody says anything", false, lastTimeout)
		close(p.last)
		took("no agent follows", true, 0)
	})
}

// TestAlone: without a holder nothing is kept, and everything is allowed.
func TestAlone(t *testing.T) {
	h, err := Inherited(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l, err := h.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Write(t.Context()), h.Answer(t.Context()), h.Serving(), l.Close()); err != nil {
		t.Error(err)
	}
	if !h.Last() || h.Beside() || h.Holder() != 0 || h.Yield() != nil || h.Has("x") || len(h.Take("")) != 0 {
		t.Errorf("%+v", h)
	}
	h.Rest()
}

// pair is both ends of a link.
func pair(t testing.TB) (a, b *link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range []**link{&a, &b} {
		if *l, err = newLink(fds[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*l).conn.Close() })
	}
	return a, b
}

// TestFiles: any number of files goes over a link, each under its name.
func TestFiles(t *testing.T) {
	for _, n := range []int{0, 1, maxFiles, 2*maxFiles + 1} {
		a, b := pair(t)
		files := map[string]int{}
		for i := range n {
			fd, err := unix.MemfdCreate(fmt.Sprint("m", i), unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fd, fmt.Appendf(nil, "%0*d", maxName, i)); err != nil {
				t.Fatal(err)
			}
			files[fmt.Sprintf("%0*d", maxName, i)] = fd
		}
		sent := make(chan error, 1)
		go func() { sent <- a.sendFiles(files) }()
		got, err := b.receiveFiles()
		if err := errors.Join(err, <-sent); err != nil || len(got) != n {
			t.Fatalf("%d of %d files: %v", len(got), n, err)
		}
		for name, fd := range got {
			text := make([]byte, maxName)
			if _, err := unix.Pread(fd, text, 0); err != nil || string(text) != name {
				t.Errorf("%s holds %s, %v", name, text, err)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s would be inherited by others: %v", name, err)
			}
		}
		closeAll(got)
		closeAll(files)
	}
}

// TestLinkRefuses: what is not a message is an error and leaks no descriptor.
func TestLinkRefuses(t *testing.T) {
	a, b := pair(t)
	for _, name := range []string{strings.Repeat("x", maxName+1), "two\nlines"} {
		if err := a.send(message{word: wordDrop, names: []string{name}}); err == nil {
			t.Errorf("the name %q is sent", name)
		}
	}
	before := descriptors(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Two files for one name.
	if _, _, err := a.conn.WriteMsgUnix([]byte("keep\nx"), unix.UnixRights(int(w.Fd()), int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if m, err := b.receive(); !errors.Is(err, errMessage) {
		t.Errorf("%+v, %v", m, err)
	}
	r.Close()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	if err := a.send(message{word: wordWrite}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.receiveFiles(); !errors.Is(err, errMessage) {
		t.Errorf("another word for files: %v", err)
	}
	a.conn.Close()
	if _, err := b.receive(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// FuzzMessage: whatever arrives is read without a crash, and what is read can be said again and means the same.
func FuzzMessage(f *testing.F) {
	f.Add("keep\ndns/udp/10.96.0.10:53/0")
	f.Fuzz(func(t *testing.T, text string) {
		if text == "" || len(text) > maxMessage {
			return
		}
		a, b := pair(t)
		if _, err := a.conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		m, err := b.receive()
		if err != nil {
			t.Fatal(err)
		}
		if err := a.send(m); err != nil {
			if slices.ContainsFunc(m.names, func(n string) bool { return len(n) > maxName }) {
				return // it is not said by this package, and no holder is hurt by hearing it
			}
			t.Fatal(err)
		}
		again, err := b.receive()
		if err != nil || again.word != m.word || !slices.Equal(again.names, m.names) {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}
