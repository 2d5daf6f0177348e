// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
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

// get does one HTTP request by hand over a connection of its own, since a pool and
// its goroutines would cost more than the request. It returns the first line of an
// answer other than 200.
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
	req, err := http.NewRequest(http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return "", nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxSaid))
	if err != nil {
		return "", err
	}
	said, _, _ = strings.Cut(strings.TrimSpace(string(body)), "\n")
	if said == "" {
		said = resp.Status
	}
	return said, nil
}
