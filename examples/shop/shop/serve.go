// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// answer is the one line a server sends back: who answered and whom it saw.
type answer struct {
	Pod       string   `json:"pod"`
	Node      string   `json:"node,omitempty"`
	Namespace string   `json:"namespace,omitempty"`
	Version   string   `json:"version,omitempty"`
	Client    string   `json:"client"`             // address and port the request came from, as this server saw it
	Server    string   `json:"server,omitempty"`   // address and port the request arrived at, after every translation
	Echo      string   `json:"echo,omitempty"`     // UDP only: the datagram's text
	Error     string   `json:"error,omitempty"`    // why the upstream part of the answer is missing
	Upstream  []answer `json:"upstream,omitempty"` // answers of the services asked on the way
}

// maxDatagram bounds what a UDP server reads and echoes, in bytes.
const maxDatagram = 1024

// server answers as one pod of a service.
type server struct {
	self      answer
	upstreams []string
	client    *http.Client
	draining  atomic.Bool
	owed      owed
}

// newServer describes this pod from the environment that the manifests fill
// (POD_NAME, NODE_NAME, POD_NAMESPACE, VERSION); without POD_NAME it is the
// host name, which is the pod's name in Kubernetes.
func newServer(version string, upstreams []string, env func(string) string) *server {
	s := &server{
		self: answer{
			Pod:       env("POD_NAME"),
			Node:      env("NODE_NAME"),
			Namespace: env("POD_NAMESPACE"),
			Version:   version,
		},
		upstreams: upstreams,
		// A connection per request: the chain then shows the choice the
		// node makes for each one, rather than one choice kept for ever.
		client: &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
	}
	if s.self.Version == "" {
		s.self.Version = env("VERSION")
	}
	if s.self.Pod == "" {
		s.self.Pod, _ = os.Hostname()
	}
	return s
}

// ServeHTTP answers /ready with 200 (503 while shutting down), /self with this
// pod's answer, and every other path with the same after asking the upstreams.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/ready" {
		if s.draining.Load() {
			http.Error(w, "shutting down", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
		return
	}
	a := s.self
	a.Client = r.RemoteAddr
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		a.Server = local.String()
	}
	status := http.StatusOK
	upstreams := s.upstreams
	if r.URL.Path == "/self" {
		upstreams = nil
	}
	for _, url := range upstreams {
		up, err := fetch(r.Context(), s.client, url)
		if err != nil {
			status = http.StatusBadGateway
			a.Error = fmt.Sprintf("ask %s: %v", url, err)
			continue
		}
		a.Upstream = append(a.Upstream, up)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(a)
}

// serveUDP answers each datagram on conn until it is closed.
func (s *server) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		a := s.self
		a.Client = unmap(from).String()
		a.Server = conn.LocalAddr().String()
		a.Echo = string(buf[:n])
		if line, err := json.Marshal(a); err == nil {
			conn.WriteToUDPAddrPort(append(line, '\n'), from)
		}
	}
}

// serveMain serves until ctx ends, then stops accepting and finishes the
// requests it has: what an ordinary program does on SIGTERM, without a pause
// that would hide a late removal from the Service.
func serveMain(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	httpAddrs := fs.String("http", ":8080", "comma-separated TCP addresses to answer HTTP on")
	udpAddr := fs.String("udp", ":7007", "UDP address to answer datagrams on; empty for none")
	version := fs.String("version", "", "version to report (default $VERSION)")
	upstream := fs.String("upstream", os.Getenv("UPSTREAM"), "comma-separated URLs to ask before answering (default $UPSTREAM)")
	grace := fs.Duration("grace", 10*time.Second, "longest time to finish requests after SIGTERM")
	if rest, err := parse(fs, args); err != nil {
		return err
	} else if len(rest) > 0 {
		return fmt.Errorf("serve: unexpected argument %q", rest[0])
	}
	s := newServer(*version, list(*upstream), os.Getenv)

	var listeners []net.Listener
	for _, addr := range list(*httpAddrs) {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("serve http: %w", err)
		}
		defer ln.Close()
		listeners = append(listeners, ln)
		fmt.Fprintln(out, "http", ln.Addr())
	}
	if *udpAddr != "" {
		pc, err := net.ListenPacket("udp", *udpAddr)
		if err != nil {
			return fmt.Errorf("serve udp: %w", err)
		}
		defer pc.Close()
		fmt.Fprintln(out, "udp", pc.LocalAddr())
		go s.serveUDP(pc.(*net.UDPConn))
	}
	return s.serve(ctx, listeners, *grace)
}

// serve answers on every listener until ctx ends, and returns once the
// requests in hand are finished or grace has passed.
//
// http.Server.Shutdown alone would not do: the kernel resets what was connected
// and not accepted yet when a listener is closed, and a request is dropped that
// arrives, on a connection that was accepted, after the shutdown began. Such
// clients did nothing wrong and must get their answers, so a listener is closed
// once nobody waits at it, which is at once unless the processors are busy, and
// Shutdown comes when no connection is owed one.
func (s *server) serve(ctx context.Context, listeners []net.Listener, grace time.Duration) error {
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second, ConnState: s.owed.note}
	failed := make(chan error, len(listeners))
	var accepting sync.WaitGroup
	for _, ln := range listeners {
		accepting.Go(func() {
			if err := srv.Serve(ln); !s.draining.Load() {
				failed <- err
			}
		})
	}
	defer accepting.Wait()
	select {
	case err := <-failed:
		srv.Close()
		return err
	case <-ctx.Done():
	}
	s.draining.Store(true)
	end, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	for _, ln := range listeners {
		for waiting(ln) && sleepUntil(end, time.Now().Add(time.Millisecond)) {
		}
		ln.Close()
	}
	accepting.Wait() // all that was accepted is known to be owed an answer
	srv.SetKeepAlivesEnabled(false)
	for s.owed.count() > 0 && sleepUntil(end, time.Now().Add(5*time.Millisecond)) {
	}
	if err := srv.Shutdown(end); err != nil && !errors.Is(err, net.ErrClosed) { // the listeners are, if it still knows them
		return err
	}
	return nil
}

// waiting reports whether somebody is connected to a listener's address and has
// not been accepted.
func waiting(ln net.Listener) bool {
	conn, ok := ln.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var n int
	raw.Control(func(fd uintptr) {
		var set syscall.FdSet // of 1,024, of which listeners have the first
		if word := int(fd) / 64; word < len(set.Bits) {
			set.Bits[word] = 1 << (fd % 64)
			n, _ = syscall.Select(int(fd)+1, &set, nil, nil, &syscall.Timeval{})
		}
	})
	return n > 0
}

// owed is the set of connections that may expect an answer: new ones, and those
// with a request.
type owed struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
}

// note keeps the set; it is an http.Server's ConnState.
func (o *owed) note(c net.Conn, state http.ConnState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if state == http.StateNew || state == http.StateActive {
		if o.conns == nil {
			o.conns = map[net.Conn]bool{}
		}
		o.conns[c] = true
	} else {
		delete(o.conns, c)
	}
}

// count is the size of the set.
func (o *owed) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.conns)
}

// list splits a comma-separated flag, leaving out what is empty.
func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}
