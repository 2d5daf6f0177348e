// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// maxBody bounds how much of an HTTP answer is read, in bytes.
const maxBody = 1 << 20

// statusError is an HTTP answer that is not a 2xx.
type statusError struct {
	code int
	body string
}

// Error implements error.
func (e statusError) Error() string { return fmt.Sprintf("status %d: %s", e.code, e.body) }

// request makes one HTTP request and returns the body of its answer.
func request(ctx context.Context, c *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, statusError{resp.StatusCode, string(body)}
	}
	return body, nil
}

// fetch makes one request and reads the shop's answer out of it. An answer of
// another program counts as one without a pod.
func fetch(ctx context.Context, c *http.Client, url string) (answer, error) {
	body, err := request(ctx, c, url)
	if err != nil {
		return answer{}, err
	}
	var a answer
	if json.Unmarshal(body, &a) != nil {
		return answer{}, nil
	}
	return a, nil
}

// getMain requests each URL once and prints what came back, or makes many
// requests (to the URLs in turn) and prints the summary.
func getMain(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("get", flag.ContinueOnError)
	var l load
	l.flags(fs)
	fresh := fs.Bool("fresh-conn", false, "a new connection, and so a new lookup, for each request")
	plain := fs.Bool("plain", false, "with -n, -rate or -duration: as -fresh-conn, with so little work that thousands a second can be made")
	urls, err := parse(fs, args)
	if err != nil {
		return err
	}
	if len(urls) == 0 {
		return errors.New("get: which URL?")
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives:   *fresh,
		MaxIdleConnsPerHost: 1024,
		DialContext:         (&net.Dialer{}).DialContext,
	}}
	defer client.CloseIdleConnections()
	if !l.many() {
		return each(ctx, urls, l.timeout, out, func(ctx context.Context, url string) ([]byte, error) {
			return request(ctx, client, url)
		})
	}
	if err := l.check(); err != nil {
		return fmt.Errorf("get: %w", err)
	}
	return shoot(ctx, l, func(ctx context.Context, i int) (answer, error) {
		if *plain {
			return fetchPlain(ctx, urls[i%len(urls)])
		}
		return fetch(ctx, client, urls[i%len(urls)])
	}).print(out)
}

// fetchPlain is fetch by hand: a connection, a request in the oldest form of HTTP, and all that comes until the server closes.
func fetchPlain(ctx context.Context, target string) (answer, error) {
	u, err := url.Parse(target)
	if err != nil {
		return answer{}, err
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "80")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return answer{}, err
		}
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", u.RequestURI(), u.Host); err != nil {
		return answer{}, err
	}
	text, err := io.ReadAll(io.LimitReader(conn, maxBody))
	if err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	head, body, whole := bytes.Cut(text, []byte("\r\n\r\n"))
	if !whole {
		return answer{}, fmt.Errorf("read answer: %w", io.EOF)
	}
	var version string
	var status statusError
	if _, err := fmt.Sscan(string(head), &version, &status.code); err != nil || status.code/100 != 2 {
		status.body = string(body)
		return answer{}, status
	}
	var a answer
	if json.Unmarshal(body, &a) != nil {
		return answer{}, nil
	}
	return a, nil
}

// each asks every target once, in order, and prints a line for each: the answer
// as it came, or an object with the target, the kind of failure and the error.
func each(ctx context.Context, targets []string, timeout time.Duration, out io.Writer, ask func(context.Context, string) ([]byte, error)) error {
	var failed error
	for _, t := range targets {
		one, cancel := context.WithTimeout(ctx, timeout)
		start := time.Now()
		body, err := ask(one, t)
		cancel()
		if err != nil {
			failed = errFailed
			body, _ = json.Marshal(map[string]any{"target": t, "kind": kindOf(err), "error": err.Error(), "took_ms": ms(time.Since(start))})
		}
		if len(body) == 0 || body[len(body)-1] != '\n' {
			body = append(body, '\n')
		}
		if _, err := out.Write(body); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
	}
	return failed
}
