// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/program"
)

const (
	// Patience is how long sockets are held while nobody answers them. It is less than the five seconds after which resolvers ask again, so that the second
	// question reaches somebody else.
	Patience = 4 * time.Second
	// burst agents may be started in window after others have ended; more is a fault that starting again does not mend.
	burst  = 20
	window = 10 * time.Second
	// replaceTimeout is how long an agent may take to get ready beside the one that it is to replace. Listing a large cluster takes seconds.
	replaceTimeout = 2 * time.Minute
	// obeyTimeout is how long an agent may take to do what it was told so that the next one can go on; one that takes longer hangs, or was stopped.
	obeyTimeout = 10 * time.Second
)

// stateVariable carries what a holder knows through its own replacement.
const stateVariable = "FAIRLEAD_HOLDER_STATE"

// same is the program that this process runs, also if another one is at its path by now.
const same = "/proc/self/exe"

func init() {
	if len(os.Args) < 2 || os.Args[1] != "agent" || slices.ContainsFunc(os.Args[2:], asksForHelp) {
		return
	}
	if _, ok := os.LookupEnv(variable); ok {
		return // this is the agent
	}
	os.Exit(run())
}

func asksForHelp(arg string) bool { return arg == "-h" || arg == "--help" }

// holder is the parent. All is done by one goroutine on the process's first thread: the kernel ends an agent with the thread that started it.
type holder struct {
	log     *slog.Logger
	program string // the path that the program was started from
	files   map[string]int
	agents  []*agent // oldest first
	refused []*agent // other holders', which may not take over and have not ended yet
	events  chan event
	guests  chan *net.UnixConn // other holders' agents, which want to take over
	door    *net.UnixListener

	answered time.Time // when somebody last answered
	starts   []time.Time
	told     bool // nobody answers, and that has been said
	again    bool // SIGHUP came, and the agent is to be replaced
	ending   bool // SIGTERM came
	over     bool // another holder has it all
	code     int  // the last agent's exit code
}

// agent is a child, or the child of another holder that wants to take over.
type agent struct {
	pid     int // 0: another holder's
	link    *link
	started time.Time

	wantsWrite, writes, asked bool // asked: to yield
	wantsAnswer, answers      bool // answers: it may
	serving, stopped          bool
	ended                     bool      // it has been told to end
	told                      time.Time // when it was last told to yield, or to end
	granted                   time.Time // when it was told that it may answer
	reaped, silent            bool      // its process has ended; its link has
	fresh                     bool      // it is of the program at the path, which may be another one than the holder's
}

// event is what an agent says, or with an error, that it says nothing any more.
type event struct {
	from *agent
	message
	err error
}

// run is the holder: it runs the agent, with the process's own arguments and environment, until SIGTERM or until there is nothing left to do for it. It returns
// the exit code. It is to be called by the process's first thread, from an init function, and once.
func run() int {
	runtime.LockOSThread()
	h := &holder{
		log:   slog.New(slog.NewTextHandler(os.Stderr, nil)).With("holder", os.Getpid()),
		files: map[string]int{}, events: make(chan event), guests: make(chan *net.UnixConn), answered: time.Now(),
	}
	var err error
	if h.program, err = os.Executable(); err != nil {
		h.log.Error("cannot find the program", "err", err)
		return 1
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if text, ok := os.LookupEnv(stateVariable); ok {
		os.Unsetenv(stateVariable)
		if err := h.resume(text); err != nil {
			h.log.Error("cannot go on as the next holder", "err", err)
			return 1
		}
		h.reap() // those whose end nobody was told of meanwhile
	}
	resting := false
	for {
		wake, done := h.settle(time.Now())
		if done {
			return h.code
		}
		if !resting && wake == 0 {
			_ = program.Release() // what it cannot give up it keeps
		}
		resting = wake == 0
		var timer <-chan time.Time
		if wake > 0 {
			timer = time.After(wake)
		}
		select {
		case s := <-signals:
			h.signal(s.(syscall.Signal))
		case e := <-h.events:
			h.hear(e)
		case conn := <-h.guests:
			h.admit(conn)
		case <-timer:
		}
	}
}

func (h *holder) signal(s syscall.Signal) {
	switch s {
	case syscall.SIGCHLD:
		h.reap()
	case syscall.SIGHUP:
		h.again = true
	default:
		h.ending = true
	}
}

// reap takes note of children that have ended, also of those that it is given as the first process of a container.
func (h *holder) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, a := range h.agents {
			if a.pid == pid && (status.Exited() || status.Signaled()) {
				h.code = exitCode(status)
				a.reaped = true
				h.bury(a)
				break
			}
		}
	}
}

// exitCode is a shell's: 128 and the signal's number if there was one.
func exitCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// bury forgets a child when it has ended and all has been heard that it had said.
func (h *holder) bury(a *agent) {
	if !a.reaped || !a.silent {
		return
	}
	if !a.ended {
		h.log.Warn("agent ended", "pid", a.pid, "code", h.code, "held", len(h.files))
	}
	h.gone(a)
}

// gone forgets an agent.
func (h *holder) gone(a *agent) {
	if a.serving {
		h.answered = time.Now()
	}
	a.link.conn.Close()
	h.agents = without(h.agents, a)
}

func without(agents []*agent, a *agent) []*agent {
	return slices.DeleteFunc(agents, func(b *agent) bool { return a == b })
}

// refuse tells another holder's agent that it may not take over. As long as it has not ended, it may be writing.
func (h *holder) refuse(a *agent, now time.Time) {
	a.link.send(message{word: wordRefused})
	a.told = now
	h.agents, h.refused = without(h.agents, a), append(h.refused, a)
}

// forget forgets an agent that was refused.
func (h *holder) forget(a *agent) {
	a.link.conn.Close()
	h.refused = without(h.refused, a)
}

// outwait forgets agents that were refused and do not end.
func (h *holder) outwait(now time.Time) (until []time.Time) {
	for _, a := range slices.Clone(h.refused) {
		if limit := a.told.Add(obeyTimeout); limit.After(now) {
			until = append(until, limit)
		} else {
			h.log.Error("another holder's agent was refused, and does not end")
			h.forget(a)
		}
	}
	return until
}

// hear does what an agent says.
func (h *holder) hear(e event) {
	a := e.from
	if !slices.Contains(h.agents, a) {
		e.close()
		if e.err != nil {
			h.forget(a)
		}
		return
	}
	if e.err != nil {
		if a.pid == 0 {
			h.log.Warn("another agent gave up taking over", "err", e.err)
			h.gone(a)
		}
		a.silent = true
		h.bury(a)
		return
	}
	switch e.word {
	case wordKeep:
		if len(e.files) != 1 || a.pid == 0 {
			e.close()
			return
		}
		h.keep(e.names[0], e.files[0])
	case wordDrop:
		if len(e.names) == 1 && a.pid != 0 && !a.ended {
			h.drop(e.names[0])
		}
	case wordWrite:
		a.wantsWrite, a.writes, a.asked = true, false, false
	case wordAnswer:
		a.wantsAnswer = true
	case wordServing:
		h.serving(a)
	case wordStopped:
		a.serving, a.stopped, h.answered = false, true, time.Now()
	default:
		e.close()
		h.log.Warn("an agent says what this holder does not know", "word", e.word)
	}
}

func (h *holder) serving(a *agent) {
	a.serving, h.answered, h.told = true, time.Now(), false
	if a.pid == 0 {
		h.gone(a)
		h.over = true
		h.shut()
		closeAll(h.files)
		h.log.Info("another holder's agent has taken over; nothing is left to do here")
		return
	}
	if len(h.starts) > 1 || a.fresh {
		h.log.Info("agent answers", "pid", a.pid, "held", len(h.files), "took", time.Since(a.started))
	}
}

func (h *holder) keep(name string, fd int) {
	h.drop(name)
	h.files[name] = fd
	if name == Door {
		h.open(fd)
	}
}

func (h *holder) drop(name string) {
	if fd, ok := h.files[name]; ok {
		if name == Door {
			h.shut()
		}
		unix.Close(fd)
		delete(h.files, name)
	}
}

// open accepts agents of other holders at the door.
func (h *holder) open(fd int) {
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		h.log.Error("the door stays shut", "err", err)
		return
	}
	f := os.NewFile(uintptr(copied), Door)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		h.log.Error("the door stays shut", "err", err)
		return
	}
	door, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return
	}
	h.door = door
	go func() {
		for {
			conn, err := door.AcceptUnix()
			if err != nil {
				return
			}
			h.guests <- conn
		}
	}()
}

// admit lets another holder's agent take over, unless somebody else is about to.
func (h *holder) admit(conn *net.UnixConn) {
	a := &agent{link: talkOn(conn), started: time.Now()}
	if h.ending || h.over || len(h.agents) != 1 || !h.agents[0].serving || a.link.sendFiles(h.files) != nil {
		conn.Close()
		return
	}
	h.log.Info("another holder's agent takes over")
	h.agents = append(h.agents, a)
	h.listen(a)
}

func (h *holder) shut() {
	if h.door != nil {
		h.door.Close()
		h.door = nil
	}
}

// listen passes on what an agent says.
func (h *holder) listen(a *agent) {
	go func() {
		for {
			m, err := a.link.receive()
			h.events <- event{a, m, err}
			if err != nil {
				return
			}
		}
	}()
}

// start starts an agent with everything that is held.
func (h *holder) start(program string) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("start agent: make link: %w", err)
	}
	defer unix.Close(pair[1])
	l, err := newLink(pair[0])
	if err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	value := variable + "=3"
	if len(h.agents) > 0 {
		value += beside
	}
	pid, err := syscall.ForkExec(program, os.Args, &syscall.ProcAttr{
		Env:   append(os.Environ(), value),
		Files: []uintptr{0, 1, 2, uintptr(pair[1])},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true},
	})
	if err != nil {
		l.conn.Close()
		return fmt.Errorf("start agent from %s: %w", program, err)
	}
	a := &agent{pid: pid, link: l, started: time.Now()}
	if err := l.sendFiles(h.files); err != nil {
		h.log.Error("the agent was not given what is held", "pid", pid, "err", err)
	}
	h.agents = append(h.agents, a)
	h.listen(a)
	return nil
}

// settle does what is to be done next, however it came about. It returns when it wants to be called again at the latest (0: when something happens), and whether
// the holder's work is done.
func (h *holder) settle(now time.Time) (wake time.Duration, done bool) {
	if h.ending {
		for _, a := range slices.Clone(h.agents) {
			if !a.ended {
				a.link.send(message{word: wordLast})
			}
			h.end(a)
		}
		h.shut()
		return 0, !slices.ContainsFunc(h.agents, func(a *agent) bool { return a.pid != 0 })
	}
	if h.over {
		return 0, false // until somebody says so: whoever started this process would start it again
	}
	var until []time.Time // what to wake up for
	if len(h.agents) == 1 && h.agents[0].pid == 0 && !h.agents[0].wantsAnswer {
		h.log.Warn("the agent has ended while another holder's was getting ready; the next one comes first")
		h.refuse(h.agents[0], now)
	}
	if len(h.agents) == 0 {
		at, why := h.next(now)
		switch {
		case why != "":
			if len(h.files) > 0 {
				h.log.Error("giving up: "+why, "held", len(h.files), "code", h.code)
			}
			return 0, true
		case at.After(now):
			until = append(until, at)
		default:
			h.starts = append(h.starts, now)
			if err := h.start(same); err != nil {
				h.log.Error("giving up", "err", err)
				h.code = 1
				return 0, true
			}
		}
	}
	until = append(until, h.replace(now)...)
	until = append(until, h.outwait(now)...)
	h.arbitrate(now)
	until = append(until, h.insist(now)...)
	if !h.told && !slices.ContainsFunc(h.agents, func(a *agent) bool { return a.serving }) {
		if limit := h.answered.Add(Patience); limit.After(now) {
			until = append(until, limit)
		} else {
			h.told = true
			if len(h.starts) > 1 {
				h.log.Error("nobody has answered for too long: what is held and not in use is closed", "since", h.answered)
			}
			for _, a := range h.agents {
				a.link.send(message{word: wordLetGo})
			}
			if !slices.ContainsFunc(h.agents, func(a *agent) bool { return a.pid != 0 }) {
				h.shut()
				closeAll(h.files) // which none of its own agents is there to drop
			}
		}
	}
	if len(until) > 0 {
		wake = max(slices.MinFunc(until, time.Time.Compare).Sub(now), time.Millisecond)
	}
	return wake, false
}

// next says when the next agent is to be started after the last one has ended, or why none is.
func (h *holder) next(now time.Time) (at time.Time, why string) {
	limit := h.answered.Add(Patience)
	switch {
	case len(h.starts) == 0:
		return now, ""
	case len(h.files) == 0:
		return now, "nothing is held"
	case !limit.After(now):
		return now, "the agent has ended and nobody has answered for " + Patience.String()
	}
	if n := len(h.starts); n >= burst {
		h.starts = h.starts[n-burst:]
		if at = h.starts[0].Add(window); at.After(limit) {
			at = limit
		}
	}
	return at, ""
}

// replace begins to replace the agent if that was asked for, and ends a replacement that takes too long.
func (h *holder) replace(now time.Time) (until []time.Time) {
	if len(h.agents) > 1 {
		a := h.agents[len(h.agents)-1]
		if a.serving || a.ended || a.wantsAnswer && !a.answers { // the last one waits for the end of those before it
			return nil
		}
		limit := a.started.Add(replaceTimeout)
		if late := a.granted.Add(obeyTimeout); late.After(limit) {
			limit = late
		}
		if limit.After(now) {
			return []time.Time{limit}
		}
		h.log.Error("the next agent does not get ready; the one before goes on", "pid", a.pid)
		if a.pid == 0 {
			h.refuse(a, now)
		} else {
			a.ended = true
			a.kill(unix.SIGKILL)
		}
		return nil
	}
	if len(h.agents) == 0 || !h.agents[0].serving {
		return nil // one that has not answered yet needs no replacement
	}
	if h.again {
		h.again = false
		if err := h.start(h.program); err != nil {
			h.log.Error("cannot replace the agent", "err", err)
		} else {
			h.agents[1].fresh = true
		}
		return nil
	}
	if a := h.agents[0]; a.fresh && !a.silent {
		a.fresh = false
		h.renew(a)
	}
	return nil
}

// arbitrate decides who may write and who may answer: the newest that asks. Until agents that were refused have ended, nobody may begin to write.
func (h *holder) arbitrate(now time.Time) {
	var writer *agent
	for _, a := range h.agents {
		if a.writes {
			writer = a
		}
	}
	for i, a := range slices.Backward(h.agents) {
		if a.wantsWrite && (writer == nil || slices.Index(h.agents, writer) < i) {
			if writer != nil {
				if !writer.asked {
					writer.asked, writer.told = true, now
					writer.link.send(message{word: wordYield})
				}
			} else if !slices.ContainsFunc(h.refused, func(r *agent) bool { return r.writes }) {
				a.wantsWrite, a.writes = false, true
				a.link.send(message{word: wordWrite})
			}
			break
		}
	}
	if len(h.agents) == 0 {
		return
	}
	newest := h.agents[len(h.agents)-1]
	if !newest.wantsAnswer || newest.answers {
		return
	}
	alone := true
	for _, a := range h.agents[:len(h.agents)-1] {
		h.end(a)
		alone = alone && a.stopped
	}
	if alone {
		newest.answers, newest.granted = true, now
		newest.link.send(message{word: wordAnswer})
	}
}

// insist kills agents that do not do what they were told, if another one waits for it.
func (h *holder) insist(now time.Time) (until []time.Time) {
	if len(h.agents) == 0 {
		return nil
	}
	for _, a := range h.agents[:len(h.agents)-1] {
		limit := a.told.Add(obeyTimeout)
		switch {
		case !a.asked && (!a.ended || a.stopped):
		case limit.After(now):
			until = append(until, limit)
		case !a.reaped:
			h.log.Error("the agent before does not do what it is told, and is killed", "pid", a.pid)
			a.kill(unix.SIGKILL)
		}
	}
	return until
}

// end tells an agent to end, once.
func (h *holder) end(a *agent) {
	if a.ended {
		return
	}
	a.ended, a.told = true, time.Now()
	if a.pid == 0 {
		h.gone(a)
		return
	}
	a.kill(unix.SIGTERM)
}

// kill signals a child, unless its process is gone and the number may be another's.
func (a *agent) kill(s unix.Signal) {
	if !a.reaped {
		unix.Kill(a.pid, s)
	}
}

// state is what a holder passes on to the next one in its process.
type state struct {
	Files   map[string]int
	PID     int // of the only agent, which answers
	Link    int
	Program string
}

// renew replaces the holder by the program at its path if that is another one, while the only agent answers. It does not return then.
func (h *holder) renew(a *agent) {
	if h.sameProgram() {
		return
	}
	h.pause(a)
	defer h.listen(a)
	if !a.writes || a.stopped {
		a.fresh = true // what it has just said comes first
		return
	}
	file, err := a.link.conn.File()
	if err != nil {
		h.log.Error("cannot replace the holder", "err", err)
		return
	}
	defer file.Close()
	s := state{Files: h.files, PID: a.pid, Link: int(file.Fd()), Program: h.program}
	text, err := json.Marshal(s)
	if err != nil {
		h.log.Error("cannot replace the holder", "err", err)
		return
	}
	inherit := func(flags int) {
		unix.FcntlInt(uintptr(s.Link), unix.F_SETFD, flags)
		for _, fd := range h.files {
			unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
		}
	}
	inherit(0)
	err = syscall.Exec(h.program, os.Args, append(os.Environ(), stateVariable+"="+string(text)))
	inherit(unix.FD_CLOEXEC)
	h.log.Error("cannot replace the holder", "err", err)
}

// pause does what has been received from an agent, and leaves the rest of what it says in the link, for whoever listens next.
func (h *holder) pause(a *agent) {
	a.link.conn.SetReadDeadline(time.Unix(1, 0))
	for e := range h.events {
		if e.from == a && e.err != nil {
			break // if the agent has ended, the next one to listen hears it again
		}
		h.hear(e)
	}
	a.link.conn.SetReadDeadline(time.Time{})
}

func (h *holder) sameProgram() bool {
	at, err1 := os.Stat(h.program)
	own, err2 := os.Stat(same)
	return err1 != nil || err2 != nil || os.SameFile(at, own)
}

// resume goes on where another program in this process has stopped.
func (h *holder) resume(text string) error {
	var s state
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return fmt.Errorf("read %s: %w", stateVariable, err)
	}
	l, err := newLink(s.Link)
	if err != nil {
		return err
	}
	h.program, h.starts = s.Program, []time.Time{time.Now()}
	for name, fd := range s.Files {
		unix.CloseOnExec(fd)
		h.files[name] = fd
	}
	a := &agent{pid: s.PID, link: l, started: time.Now(), writes: true, answers: true, serving: true}
	h.agents = []*agent{a}
	h.listen(a)
	if fd, ok := h.files[Door]; ok {
		h.open(fd)
	}
	h.log.Info("the holder is another program now", "program", s.Program, "agent", s.PID)
	return nil
}
