// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// variable is the environment variable that tells an agent that it has a holder: the link's descriptor, and "beside" if another agent runs.
const variable = "FAIRLEAD_HOLDER"

// Door is the name under which a listening sequenced-packet socket is kept where the agents of other holders ask to take over. The holder
// accepts on it itself.
const Door = "door"

// Held are an agent's ties to its holder. A process without a holder has them too: it keeps nothing, and may do everything. Its methods may be
// called concurrently.
type Held struct {
	life context.Context

	mu     sync.Mutex
	holder *parent // nil: none
	other  *parent // the holder of the agent that is being taken over; nil: none
	files  map[string]int
	own    map[string]int // while taking over: what is to be kept once that is done
	beside bool
}

// parent is a holder as its agent sees it. A channel with a place for one hears each word; those of answers are closed when the holder is gone.
type parent struct {
	link                 *link
	write, answer, yield chan struct{}
	last                 chan struct{} // closed when no agent follows
	refused              chan struct{} // closed when this agent may not take over any more
	yielded              atomic.Bool   // another one wants to write, or does
}

// Inherited returns what the process was started with. What the process closes after the end of life stays with the holder for the next one.
// The environment is cleared of it, for the process's own children.
func Inherited(life context.Context) (*Held, error) {
	h := &Held{life: life}
	text, ok := os.LookupEnv(variable)
	if !ok {
		return h, nil
	}
	os.Unsetenv(variable)
	var fd int
	if _, err := fmt.Sscanf(text, "%d", &fd); err != nil {
		return nil, fmt.Errorf("read %s=%q: %w", variable, text, err)
	}
	unix.CloseOnExec(fd)
	l, err := newLink(fd)
	if err != nil {
		return nil, fmt.Errorf("talk to the holder: %w", err)
	}
	if h.files, err = l.receiveFiles(); err != nil {
		l.conn.Close()
		return nil, fmt.Errorf("talk to the holder: %w", err)
	}
	h.beside = strings.HasSuffix(text, beside)
	h.holder = h.attend(l)
	return h, nil
}

// takeOverTimeout is how long another holder may take to say what it holds.
const takeOverTimeout = 5 * time.Second

// beside marks, in the variable, an agent that is started while another one runs.
const beside = " beside"

// attend listens to a holder.
func (h *Held) attend(l *link) *parent {
	p := &parent{link: l, write: make(chan struct{}, 1), answer: make(chan struct{}, 1), yield: make(chan struct{}, 1), last: make(chan struct{}), refused: make(chan struct{})}
	last := sync.OnceFunc(func() { close(p.last) })
	go func() {
		for {
			m, err := l.receive()
			if err != nil {
				break
			}
			m.close()
			switch m.word {
			case wordWrite:
				p.yielded.Store(false)
				poke(p.write)
			case wordAnswer:
				poke(p.answer)
			case wordYield:
				p.yielded.Store(true)
				poke(p.yield)
			case wordLast:
				last()
			case wordLetGo:
				h.letGo(p)
			case wordRefused:
				close(p.refused)
				return
			}
		}
		close(p.write)
		close(p.answer)
		h.parted(p)
	}()
	return p
}

// letGo does what a holder says when nobody has answered for too long. While taking over, that is for the other one to say: this agent's own holder knows of
// nobody who answers.
func (h *Held) letGo(p *parent) {
	h.mu.Lock()
	mine := h.other == nil || h.other == p
	h.mu.Unlock()
	if mine {
		h.Rest()
	}
}

// parted bounds how long sockets are held after the end of a holder that is being taken over from, and with it of the agent that answered.
func (h *Held) parted(p *parent) {
	time.AfterFunc(Patience, func() {
		h.mu.Lock()
		waits := h.other == p
		h.mu.Unlock()
		if waits {
			h.Rest()
		}
	})
}

// ErrRefused is of an agent that was about to take over from another holder's, and may not any more: that one has an agent that goes on.
var ErrRefused = errors.New("the agent that was to be taken over goes on")

// Refused is closed when another holder does not let this agent take over any more, see [ErrRefused]. The agent is to end then, and until it has, nobody else writes;
// [Held.Write] and [Held.Answer] do not return before their context ends.
func (h *Held) Refused() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.other == nil {
		return nil
	}
	return h.other.refused
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// TakeOver makes this agent the next one of another holder: it inherits what is held there, and Write and Answer ask there too. The
// connection is to that holder's [Door]. From [Held.Serving] on, this agent's own holder has it all, and the other one nothing.
func (h *Held) TakeOver(conn *net.UnixConn) error {
	l := talkOn(conn)
	conn.SetReadDeadline(time.Now().Add(takeOverTimeout))
	files, err := l.receiveFiles()
	conn.SetReadDeadline(time.Time{})
	if err != nil {
		conn.Close()
		return fmt.Errorf("take over from another agent: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.files, h.own, h.beside = files, map[string]int{}, true
	if fd, ok := files[Door]; ok {
		if copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			h.own[Door] = copied
		}
	}
	h.other = h.attend(l)
	return nil
}

// Beside reports whether another agent runs, which this one is to replace.
func (h *Held) Beside() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.beside
}

// Holder is the process id of the holder; 0 if there is none.
func (h *Held) Holder() int {
	if h.holder == nil {
		return 0
	}
	return os.Getppid()
}

// Write returns when this agent may write to the kernel, or with the error of ctx. An agent that has been asked to yield says by calling it that it
// does not write any more, and may again when it returns.
func (h *Held) Write(ctx context.Context) error {
	return h.ask(ctx, wordWrite, func(p *parent) chan struct{} { return p.write })
}

// Answer returns when no other agent answers, and this one may; or with the error of ctx. It is to be called when everything else is done, because
// the agent that answered before has been told to end when it returns, and everybody waits.
func (h *Held) Answer(ctx context.Context) error {
	return h.ask(ctx, wordAnswer, func(p *parent) chan struct{} { return p.answer })
}

func (h *Held) ask(ctx context.Context, word string, answer func(*parent) chan struct{}) error {
	h.mu.Lock()
	parents := []*parent{h.holder, h.other}
	h.mu.Unlock()
	for _, p := range parents {
		if p == nil {
			continue
		}
		p.link.send(message{word: word}) // a holder that is gone has nobody to protect: the channel is closed
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-answer(p):
		}
	}
	return nil
}

// Yield gets a value when another agent wants to write, which it may once this one has called Write again. It is nil without a holder.
func (h *Held) Yield() <-chan struct{} {
	if h.holder == nil {
		return nil
	}
	return h.holder.yield
}

// Serving says that this agent answers. It is an error if another holder does not let it.
func (h *Held) Serving() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holder == nil {
		return nil
	}
	if h.other != nil {
		select {
		case <-h.other.refused:
			return ErrRefused
		default:
		}
	}
	err := h.holder.link.send(message{word: wordServing})
	if h.other == nil {
		return err
	}
	for name, fd := range h.own {
		err = errors.Join(err, h.holder.link.send(message{wordKeep, []string{name}, []int{fd}}))
	}
	for name, fd := range h.files { // what is not taken yet, or will be dropped
		if name != Door {
			err = errors.Join(err, h.holder.link.send(message{wordKeep, []string{name}, []int{fd}}))
		}
	}
	closeAll(h.own)
	h.other.link.send(message{word: wordServing}) // if that holder is gone, it need not know
	h.other.link.conn.Close()
	h.other, h.own, h.beside = nil, nil, false
	return err
}

// lastTimeout bounds how long an agent that has been told to end waits to hear that it is the last one. The word comes before the signal.
const lastTimeout = 50 * time.Millisecond

// Last reports, to an agent that has been told to end, that no other follows on its sockets: its holder ends too, or it has none.
func (h *Held) Last() bool {
	if h.holder == nil {
		return true
	}
	if h.holder.yielded.Load() {
		return false
	}
	select {
	case <-h.holder.last:
		return true
	case <-time.After(lastTimeout):
		return false
	}
}

// Stopped says that this agent, which has been told to end, answers no more. What it has yet to do holds up nobody.
func (h *Held) Stopped() {
	if h.holder != nil {
		h.holder.link.send(message{word: wordStopped}) // if it is not heard, the end of the process says the same
	}
}

// Has reports whether something of this name is inherited and not taken yet.
func (h *Held) Has(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.files[name]
	return ok
}

// Take gives away everything inherited whose name begins with prefix. The holder goes on holding it until it is dropped.
func (h *Held) Take(prefix string) map[string]*os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]*os.File{}
	for name := range h.files {
		if strings.HasPrefix(name, prefix) {
			out[name] = h.take(name)
		}
	}
	return out
}

// take gives one of the files away. While taking over, a copy is put aside for this agent's own holder.
func (h *Held) take(name string) *os.File {
	fd, ok := h.files[name]
	if !ok {
		return nil
	}
	delete(h.files, name)
	if h.own != nil {
		if copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			h.own[name] = copied
		}
	}
	return os.NewFile(uintptr(fd), name)
}

// Keep gives the holder a copy of the file, in place of one that it has by this name. The name is a line of at most 200 octets.
func (h *Held) Keep(name string, f syscall.Conn) error {
	if h.holder == nil {
		return nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.own == nil {
			sent = h.holder.link.send(message{wordKeep, []string{name}, []int{int(fd)}})
			return
		}
		var copied int
		if copied, sent = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); sent == nil {
			if old, ok := h.own[name]; ok {
				unix.Close(old)
			}
			h.own[name] = copied
		}
	})
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	return nil
}

// Drop lets the holder close what it has by this name. After the end of the agent's life it does nothing: the next one needs it.
func (h *Held) Drop(name string) {
	if h.holder == nil || h.life.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.own == nil {
		h.holder.link.send(message{word: wordDrop, names: []string{name}})
	} else if fd, ok := h.own[name]; ok {
		unix.Close(fd)
		delete(h.own, name)
	}
}

// Rest drops what is inherited and was not taken.
func (h *Held) Rest() {
	h.mu.Lock()
	files := maps.Clone(h.files)
	delete(files, Door) // the holder's own
	for name := range files {
		delete(h.files, name)
	}
	h.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h.Drop(name)
	}
	closeAll(files)
}

// Listen is net.Listen, but for sockets that outlive the process: one that is inherited is taken, and another one is kept. Closing it drops it.
func (h *Held) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	return h.ListenBy(network+"/"+address, func() (net.Listener, error) { return new(net.ListenConfig).Listen(ctx, network, address) })
}

// ListenBy is Listen for a socket that is made in another way if it is not inherited by this name.
func (h *Held) ListenBy(name string, open func() (net.Listener, error)) (net.Listener, error) {
	h.mu.Lock()
	f := h.take(name)
	h.mu.Unlock()
	if f != nil {
		l, err := net.FileListener(f)
		f.Close()
		if err == nil {
			return &listener{Listener: l, held: h, name: name}, nil
		}
	}
	l, err := open()
	if err != nil {
		return nil, err
	}
	if c, ok := l.(syscall.Conn); ok {
		if err := h.Keep(name, c); err != nil {
			l.Close()
			return nil, err
		}
	}
	return &listener{Listener: l, held: h, name: name}, nil
}

type listener struct {
	net.Listener
	held *Held
	name string
	drop sync.Once
}

// Close closes the listener here and, while the agent lives, at the holder. As that closes its copy a moment later, the socket itself is told
// to listen no more: its port is free at once.
func (l *listener) Close() error {
	l.drop.Do(func() {
		if c, ok := l.Listener.(syscall.Conn); ok && l.held.holder != nil && l.held.life.Err() == nil {
			if raw, err := c.SyscallConn(); err == nil {
				raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RDWR) })
			}
		}
		l.held.Drop(l.name)
	})
	return l.Listener.Close()
}
