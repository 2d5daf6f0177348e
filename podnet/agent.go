// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// How long the agent may take to answer.
const (
	deliverTimeout = 10 * time.Second
	readyTimeout   = 2 * time.Second
)

// maxSaid bounds how much of an answer is read.
const maxSaid = 4096

// deliver waits until the node can deliver for the pod. Without a name, as when a
// person calls the plugin, it asks for the node as a whole.
func deliver(socket, podNamespace, podName string) error {
	query := url.Values{"timeout": {(deliverTimeout - time.Second).String()}} // so that it is the agent who says why
	if podName != "" {
		query.Set("pod", podNamespace+"/"+podName)
	}
	return ask(socket, "/v1/deliver?"+query.Encode(), deliverTimeout)
}

// ready asks whether the agent has set up the node.
func ready(socket string) error { return ask(socket, "/v1/ready", readyTimeout) }

// ask sends one request to the agent and wants the status 200. An empty socket is
// nobody to ask.
func ask(socket, path string, timeout time.Duration) error {
	if socket == "" {
		return nil
	}
	said, err := get(socket, path, timeout)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the agent of this node is not running: there is no socket %s", socket)
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the agent of this node did not answer within %s", timeout)
	case err != nil:
		return fmt.Errorf("the agent of this node does not answer: %w", err)
	case said != "":
		return fmt.Errorf("the agent of this node is not ready: %s", said)
	}
	return nil
}

// get does one HTTP request by hand: the library's client would cost more than the request, and its package more than the whole of the rest when
// the plugin starts. Version 1.0 has the answer end where the connection does. It returns the first line of an answer other than 200.
func get(socket, path string, timeout time.Duration) (said string, err error) {
	end := time.Now().Add(timeout)
	conn, err := (&net.Dialer{Deadline: end}).Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: agent\r\n\r\n", path); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, maxSaid))
	if err != nil {
		return "", err
	}
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	first, _, _ := strings.Cut(head, "\r\n")
	version, status, _ := strings.Cut(first, " ")
	switch {
	case !strings.HasPrefix(version, "HTTP/"):
		return "", fmt.Errorf("it said %.40q, which is not HTTP", first)
	case status == "200" || strings.HasPrefix(status, "200 "):
		return "", nil
	}
	said, _, _ = strings.Cut(strings.TrimSpace(body), "\n")
	if said == "" {
		said = status
	}
	return said, nil
}
