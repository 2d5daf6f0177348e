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
)

// How long the agent may take to answer.
const (
	deliverTimeout = 10 * time.Second
	readyTimeout   = 2 * time.Second
)

// maxSaid bounds how much of an answer is read.
const maxSaid = 4096

// deliver asks whether the node can deliver for the pod; the agent answers when it can. Without a name, as when a person calls the plugin, it asks for the node
// as a whole.
func deliver(socket, podNamespace, podName string) (*question, error) {
	query := url.Values{"timeout": {(deliverTimeout - time.Second).String()}} // so that it is the agent who says why
	if podName != "" {
		query.Set("pod", podNamespace+"/"+podName)
	}
	return ask(socket, "/v1/deliver?"+query.Encode(), deliverTimeout)
}

// ready asks whether the agent has set up the node.
func ready(socket string) error {
	q, err := ask(socket, "/v1/ready", readyTimeout)
	if err != nil {
		return err
	}
	return q.answer()
}

// question is one that was put to the agent. While it is answered, the plugin can do something else.
type question struct {
	fd      int // -1: nobody was asked
	timeout time.Duration
	end     time.Time
}

// ask sends one request to the agent. An empty socket is nobody to ask.
//
// The connection and the HTTP are by hand: the library's client, with its pool and its goroutines, would cost more than the request, and its package more than
// the whole of the rest when the plugin starts. Version 1.0 has the answer end where the connection does.
func ask(socket, path string, timeout time.Duration) (*question, error) {
	if socket == "" {
		return &question{fd: -1}, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	q := &question{fd: fd, timeout: timeout, end: time.Now().Add(timeout)}
	request := fmt.Appendf(nil, "GET %s HTTP/1.0\r\nHost: agent\r\n\r\n", path)
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
	}
	if err == nil {
		_, err = unix.SendmsgN(fd, request, nil, nil, unix.MSG_NOSIGNAL)
	}
	if err != nil {
		q.close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the agent of this node is not running: there is no socket %s", socket)
		}
		return nil, q.failed(err)
	}
	return q, nil
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
