// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
)

// How long the agent may take to answer.
const (
	deliverTimeout = 10 * time.Second
	readyTimeout   = 2 * time.Second
	letGoTimeout   = time.Second
)

// maxSaid bounds how much of an answer is read.
const maxSaid = 4096

// deliver asks whether the node can deliver for the pod, and says which addresses it is being given; the agent answers when the node can. Without a name, as when
// a person calls the plugin, it asks for the node as a whole.
func (q *question) deliver(lease ipam.Lease) error {
	// A second less, so that it is the agent who says why.
	return q.ask("GET", "/v1/deliver?"+about(lease, deliverTimeout-time.Second))
}

// letGo tells the agent that the pod is about to have its addresses no more, and waits until no Service leads to them; for a moment only, as the pod is to go
// whatever the agent says.
func letGo(socket string, lease ipam.Lease) {
	if lease.PodName == "" {
		return // nobody's endpoint
	}
	q, err := dial(socket, letGoTimeout)
	if err != nil {
		return
	}
	defer q.close()
	if q.ask("POST", "/v1/detach?"+about(lease, letGoTimeout)) == nil {
		_ = q.answer()
	}
}

// about is a question's query: the pod, its addresses, and for how long the agent may think.
func about(lease ipam.Lease, timeout time.Duration) string {
	query := url.Values{"timeout": {timeout.String()}}
	if lease.PodName != "" {
		query.Set("pod", lease.PodNamespace+"/"+lease.PodName)
	}
	for _, a := range lease.Addrs {
		query.Add("addr", a.String())
	}
	return query.Encode()
}

// ready asks whether the agent has set up the node.
func ready(socket string) error {
	q, err := dial(socket, readyTimeout)
	if err != nil {
		return err
	}
	defer q.close()
	if err := q.ask("GET", "/v1/ready"); err != nil {
		return err
	}
	return q.answer()
}

// question is one that is put to the agent. While it is answered, the plugin can do something else.
type question struct {
	socket  string
	fd      int // -1: there is nobody to ask
	timeout time.Duration
	end     time.Time
}

// dial connects to the agent, so that a question can be put to it. An empty socket is nobody to ask.
//
// The connection and the HTTP are by hand: the library's client, with its pool and its goroutines, would cost more than the request, and its package more than
// the whole of the rest when the plugin starts. Version 1.0 has the answer end where the connection does.
func dial(socket string, timeout time.Duration) (*question, error) {
	q := &question{socket: socket, fd: -1, timeout: timeout}
	return q, q.redial()
}

// redial is for another question.
func (q *question) redial() (err error) {
	q.close()
	if q.socket == "" {
		return nil
	}
	if q.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	q.end = time.Now().Add(q.timeout)
	limit := unix.NsecToTimeval(q.timeout.Nanoseconds())
	err = unix.SetsockoptTimeval(q.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	if err == nil {
		err = unix.Connect(q.fd, &unix.SockaddrUnix{Name: q.socket})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("the agent of this node is not running: there is no socket %s", q.socket)
	default:
		err = q.failed(err)
	}
	q.close()
	return err
}

// ask sends the request.
func (q *question) ask(method, path string) error {
	if q.fd < 0 {
		return nil
	}
	request := fmt.Appendf(nil, "%s %s HTTP/1.0\r\nHost: agent\r\n\r\n", method, path)
	if _, err := unix.SendmsgN(q.fd, request, nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return q.failed(err)
	}
	return nil
}

// answer waits for the answer, and wants the status 200.
func (q *question) answer() error {
	if q.fd < 0 {
		return nil
	}
	defer q.close()
	text, err := q.read()
	if err != nil {
		return q.failed(err)
	}
	status, why, ok := parseAnswer(text)
	switch {
	case !ok:
		return q.failed(fmt.Errorf("it said %.40q, which is not HTTP", text))
	case status == "200":
		return nil
	}
	return fmt.Errorf("the agent of this node is not ready: %s", why)
}

// parseAnswer takes an HTTP answer apart: its status code, and the first line of its body or, without one, the words of the status.
func parseAnswer(text string) (status, why string, ok bool) {
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	first, _, _ := strings.Cut(head, "\r\n")
	version, words, ok := strings.Cut(first, " ")
	if !ok || !strings.HasPrefix(version, "HTTP/") {
		return "", "", false
	}
	status, _, _ = strings.Cut(words, " ")
	if why, _, _ = strings.Cut(strings.TrimSpace(body), "\n"); why == "" {
		why = words
	}
	return status, strings.TrimSpace(why), true
}

// read returns what the agent says until it closes, or the first of it.
func (q *question) read() (string, error) {
	var all []byte
	buf := make([]byte, maxSaid)
	for len(all) < maxSaid {
		left := time.Until(q.end)
		if left <= 0 {
			return "", unix.EAGAIN
		}
		limit := unix.NsecToTimeval(left.Nanoseconds())
		limit.Usec = max(limit.Usec, 1) // zero would be for ever
		if err := unix.SetsockoptTimeval(q.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return "", err
		}
		n, err := unix.Read(q.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		all = append(all, buf[:n]...)
	}
	return string(all), nil
}

func (q *question) failed(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("the agent of this node did not answer within %s", q.timeout)
	}
	return fmt.Errorf("the agent of this node does not answer: %w", err)
}

// close gives the question up.
func (q *question) close() {
	if q.fd >= 0 {
		unix.Close(q.fd)
	}
	q.fd = -1
}
