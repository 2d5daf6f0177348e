// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The agent's words. A word that asks is answered by the same one.
const (
	wordKeep    = "keep"    // and a name and a descriptor: hold it
	wordDrop    = "drop"    // and a name: let it go
	wordWrite   = "write"   // may I write to the kernel? As an answer to yield: I do not any more, and may I again?
	wordAnswer  = "answer"  // I could answer from now on. May I?
	wordServing = "serving" // I answer
	wordStopped = "stopped" // I answer no more, and will end
)

// The holder's words, besides the answers.
const (
	wordFiles = "files"  // and names and descriptors: what is held; the last such message, at the beginning, has none
	wordYield = "yield"  // another one wants to write
	wordLast  = "last"   // no agent follows: what is still in the sockets when this one ends is lost
	wordLetGo = "let go" // nobody has answered for too long: close what is not in use yet
	// wordRefused is for another holder's agent, and the last one: it may not take over, and is to end.
	wordRefused = "refused"
)

const (
	// maxFiles is how many descriptors one message carries; the kernel takes 253.
	maxFiles = 100
	// maxName is how long a name may be, in octets.
	maxName = 200
	// maxMessage is how long the longest message is.
	maxMessage = 64 + maxFiles*(maxName+1)
	// sendTimeout is how long a peer that does not read is waited for. The kernel's buffer takes far more than there is to say, so such a peer hangs.
	sendTimeout = time.Second
)

// message is a word with what belongs to it. With files, there is one for each name.
type message struct {
	word  string
	names []string
	files []int
}

// link is one end of a conversation. Sending is safe for concurrent use; one goroutine receives.
type link struct {
	conn        *net.UnixConn
	buf, rights []byte // for receiving; a holder lives long and should not leave garbage
}

func talkOn(conn *net.UnixConn) *link {
	return &link{conn, make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxFiles))}
}

// newLink takes over a descriptor.
func newLink(fd int) (*link, error) {
	f := os.NewFile(uintptr(fd), "hold")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use descriptor %d: %w", fd, err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("use descriptor %d: not a unix socket", fd)
	}
	return talkOn(conn), nil
}

// send says one thing. Names longer than [maxName], or with a line feed, are refused.
func (l *link) send(m message) error {
	for _, n := range m.names {
		if len(n) > maxName || strings.Contains(n, "\n") {
			return fmt.Errorf("say %s: %q is no name", m.word, n)
		}
	}
	var rights []byte
	if len(m.files) > 0 {
		rights = unix.UnixRights(m.files...)
	}
	if err := l.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("say %s: %w", m.word, err)
	}
	if _, _, err := l.conn.WriteMsgUnix([]byte(strings.Join(append([]string{m.word}, m.names...), "\n")), rights, nil); err != nil {
		return fmt.Errorf("say %s: %w", m.word, err)
	}
	return nil
}

// errMessage is about a message that this package does not send.
var errMessage = errors.New("malformed message")

// receive hears one thing. At the peer's end it returns io.EOF. The descriptors are the caller's, and are closed on exec.
func (l *link) receive() (message, error) {
	n, rn, flags, _, err := l.conn.ReadMsgUnix(l.buf, l.rights)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			return message{}, io.EOF
		}
		return message{}, fmt.Errorf("hear: %w", err)
	}
	if n == 0 {
		return message{}, io.EOF
	}
	files, err := parseRights(l.rights[:rn])
	m := parseMessage(string(l.buf[:n]))
	m.files = files
	if err == nil && (flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) > 0 && len(files) != len(m.names)) {
		err = errMessage
	}
	if err != nil {
		m.close()
		return message{}, fmt.Errorf("hear %q: %w", m.word, err)
	}
	return m, nil
}

func parseMessage(text string) message {
	parts := strings.Split(text, "\n")
	return message{word: parts[0], names: parts[1:]}
}

func parseRights(b []byte) (fds []int, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	controls, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil, fmt.Errorf("parse descriptors: %w", err)
	}
	for _, c := range controls {
		got, err := unix.ParseUnixRights(&c)
		if err != nil {
			return fds, fmt.Errorf("parse descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// close closes the files that came with a message.
func (m message) close() {
	for _, fd := range m.files {
		unix.Close(fd)
	}
}

// sendFiles says all that is held, and that this is all.
func (l *link) sendFiles(files map[string]int) error {
	m := message{word: wordFiles}
	for name, fd := range files {
		m.names, m.files = append(m.names, name), append(m.files, fd)
		if len(m.files) == maxFiles {
			if err := l.send(m); err != nil {
				return err
			}
			m.names, m.files = nil, nil
		}
	}
	if len(m.files) > 0 {
		if err := l.send(m); err != nil {
			return err
		}
	}
	return l.send(message{word: wordFiles})
}

// receiveFiles hears what sendFiles says.
func (l *link) receiveFiles() (map[string]int, error) {
	files := map[string]int{}
	for {
		m, err := l.receive()
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("receive what is held: %w", err)
		}
		if m.word != wordFiles {
			m.close()
			closeAll(files)
			return nil, fmt.Errorf("receive what is held: %w: %q", errMessage, m.word)
		}
		if len(m.names) == 0 {
			return files, nil
		}
		for i, name := range m.names {
			if i < len(m.files) {
				files[name] = m.files[i]
			}
		}
	}
}

func closeAll(files map[string]int) {
	for name, fd := range files {
		unix.Close(fd)
		delete(files, name)
	}
}
