// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/explain"
	"github.com/fairlead/fairlead/model"
)

// Agent is what the socket needs from the agent behind it.
type Agent interface {
	Report() *Report
	// Attached takes in that these addresses are being given to a pod of this node, and Detached that a pod has them no more.
	Attached([]netip.Addr)
	Detached(model.Name, []netip.Addr)
	// WaitReady returns when the node can deliver for its pods.
	WaitReady(context.Context) error
	// WaitGone returns when no Service sends new connections to the address any more.
	WaitGone(context.Context, netip.Addr) error
	Explain(context.Context, model.Name, explain.Target) (*explain.Walk, error)
	// Tracked reads the real ends of a connection from the kernel's connection tracking; ok is false if it is not tracked.
	Tracked(proto model.Protocol, from, to netip.AddrPort) (t Translation, ok bool, err error)
	// Dump prints one part of the state: model, nft, routes, dns or fastpath.
	Dump(what string) (string, error)
}

// Translation is what the kernel has made of a connection: where it really goes, and the address that is seen there.
type Translation struct {
	Server netip.AddrPort `json:"server"`
	Client netip.AddrPort `json:"client"`
}

const (
	waitDefault = 2 * time.Second
	waitMost    = 60 * time.Second
)

// Handler serves an agent:
//
//	GET /v1/status                                 the Report, as JSON
//	GET /v1/ready                                  200, or 503 with the reason
//	GET /v1/deliver?pod=NS/NAME&addr=ADDR…         200 once the node can deliver for a new pod with these addresses, or 504; &timeout=D
//	POST /v1/detach?pod=NS/NAME&addr=ADDR…         200 once no Service leads to these addresses, which the pod has no more, or 504; &timeout=D
//	GET /v1/wait?gone=ADDR…                        200 once no Service sends new connections to these addresses, or 504; &timeout=D
//	GET /v1/explain?pod=NS/NAME&target=NAME:PORT   the walk, as JSON
//	GET /v1/tracked?proto=P&from=A:P&to=A:P         the Translation of a connection, or 404
//	GET /v1/dump?what=model|nft|routes|dns         text
//	GET /metrics                                   Prometheus text
func Handler(a Agent, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { reply(w, a.Report()) })
	mux.HandleFunc("GET /v1/ready", func(w http.ResponseWriter, r *http.Request) {
		if why := a.Report().Ready(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("GET /v1/deliver", func(w http.ResponseWriter, r *http.Request) {
		if addrs, ok := addrsOf(w, r, "addr"); ok {
			a.Attached(addrs)
			waitFor(w, r, a.WaitReady, func() string { return a.Report().Ready() })
		}
	})
	mux.HandleFunc("POST /v1/detach", func(w http.ResponseWriter, r *http.Request) {
		pod, ok := podOf(w, r)
		if !ok {
			return
		}
		if addrs, ok := addrsOf(w, r, "addr"); ok {
			a.Detached(pod, addrs)
			waitGone(w, r, a, addrs)
		}
	})
	mux.HandleFunc("GET /v1/wait", func(w http.ResponseWriter, r *http.Request) {
		if addrs, ok := addrsOf(w, r, "gone"); ok {
			waitGone(w, r, a, addrs)
		}
	})
	mux.HandleFunc("GET /v1/explain", func(w http.ResponseWriter, r *http.Request) { serveExplain(w, r, a) })
	mux.HandleFunc("GET /v1/tracked", func(w http.ResponseWriter, r *http.Request) { serveTracked(w, r, a) })
	mux.HandleFunc("GET /v1/dump", func(w http.ResponseWriter, r *http.Request) {
		text, err := a.Dump(r.FormValue("what"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, text)
	})
	return mux
}

// addrsOf are the addresses that a request has under a name; ok is false if one is none, and that has been answered.
func addrsOf(w http.ResponseWriter, r *http.Request, name string) (addrs []netip.Addr, ok bool) {
	_ = r.ParseForm() // what cannot be read is not there
	for _, text := range r.Form[name] {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			http.Error(w, fmt.Sprintf("%s: %v", name, err), http.StatusBadRequest)
			return nil, false
		}
		addrs = append(addrs, addr.Unmap())
	}
	return addrs, true
}

// podOf is the pod that a request names; ok is false if it names none, and that has been answered.
func podOf(w http.ResponseWriter, r *http.Request) (pod model.Name, ok bool) {
	if pod.Namespace, pod.Name, ok = strings.Cut(r.FormValue("pod"), "/"); !ok {
		http.Error(w, "pod: want NAMESPACE/NAME", http.StatusBadRequest)
	}
	return pod, ok
}

// waitGone answers once no Service leads to any of the addresses.
func waitGone(w http.ResponseWriter, r *http.Request, a Agent, addrs []netip.Addr) {
	if len(addrs) == 0 {
		http.Error(w, "no address is given", http.StatusBadRequest)
		return
	}
	wait := func(ctx context.Context) error {
		for _, addr := range addrs {
			if err := a.WaitGone(ctx, addr); err != nil {
				return err
			}
		}
		return nil
	}
	waitFor(w, r, wait, func() string { return fmt.Sprintf("a Service still sends new connections to one of %v", addrs) })
}

func serveExplain(w http.ResponseWriter, r *http.Request, a Agent) {
	target, err := explain.ParseTarget(r.FormValue("target"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod, ok := podOf(w, r)
	if !ok {
		return
	}
	walk, err := a.Explain(r.Context(), pod, target)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	reply(w, walk)
}

func serveTracked(w http.ResponseWriter, r *http.Request, a Agent) {
	proto, ok := model.ParseProtocol(strings.ToUpper(r.FormValue("proto")))
	from, err1 := netip.ParseAddrPort(r.FormValue("from"))
	to, err2 := netip.ParseAddrPort(r.FormValue("to"))
	if err := errors.Join(err1, err2); err != nil || !ok {
		http.Error(w, "tracked: want proto, and from and to as ADDR:PORT", http.StatusBadRequest)
		return
	}
	t, ok, err := a.Tracked(proto, from, to)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case !ok:
		http.Error(w, "the connection is not tracked", http.StatusNotFound)
	default:
		reply(w, t)
	}
}

// waitFor blocks for at most the request's timeout.
func waitFor(w http.ResponseWriter, r *http.Request, wait func(context.Context) error, why func() string) {
	limit := waitDefault
	if s := r.FormValue("timeout"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			http.Error(w, fmt.Sprintf("timeout: %q is no duration", s), http.StatusBadRequest)
			return
		}
		limit = min(d, waitMost)
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	served, ok := r.Context().Value(life{}).(context.Context)
	if ok {
		defer context.AfterFunc(served, cancel)()
	}
	if err := wait(ctx); err != nil {
		if ok && served.Err() != nil {
			panic(http.ErrAbortHandler) // this is no answer
		}
		http.Error(w, why(), http.StatusGatewayTimeout)
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}

// Listen makes the unix socket, in place of one that a killed agent left behind. A socket that is answered
// belongs to a running agent, and is an error.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory for socket: %w", err)
	}
	if Running(context.Background(), path) {
		return nil, fmt.Errorf("listen on %s: another agent answers there; one agent a node, end that one first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	defer syscall.Umask(syscall.Umask(0o177))
	var l net.Listener
	err := Near(path, func(short string) (err error) {
		l, err = net.Listen("unix", short)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l, nil
}

// endGrace is how long the answers may take that are being given when the agent ends.
const endGrace = 2 * time.Second

// life is the key of a request's context under which is one that ends once Serve no longer listens.
type life struct{}

// Serve answers on l until ctx ends, and what was asked until then; but who waits for something is cut off, and can ask the next agent. It closes l.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	open, closed := context.WithCancel(context.Background())
	defer closed()
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context {
		return context.WithValue(context.Background(), life{}, open)
	}}
	// Closed here and not by the server, because then whoever was accepted is known to it when it returns; and before those who wait are let go, who would ask here again.
	defer context.AfterFunc(ctx, func() { _ = l.Close(); closed() })()
	err := srv.Serve(l)
	if ctx.Err() == nil {
		return fmt.Errorf("serve status socket: %w", err)
	}
	grace, cancel := context.WithTimeout(context.Background(), endGrace)
	defer cancel()
	if srv.Shutdown(grace) != nil {
		_ = srv.Close()
	}
	return nil
}

// Client asks an agent on its socket.
type Client struct {
	path string
	http http.Client
}

// Dial returns a client for the socket at path. Nothing is sent yet.
func Dial(path string) *Client {
	c := &Client{path: path}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
	}
	return c
}

// Get asks for a path and decodes the answer: JSON into v, or text if v is a *string. An answer other than 200 is an error that
// holds what the agent said.
func (c *Client) Get(ctx context.Context, path string, query url.Values, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path+"?"+query.Encode(), nil)
	if err != nil {
		return fmt.Errorf("ask agent: %w", err)
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		resp, err = c.http.Do(req) // the agent was replaced just then, and the next one has the socket; or it has ended
	}
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("no agent runs at %s", c.path)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("the agent at %s runs but does not answer in time", c.path)
		}
		return fmt.Errorf("ask agent on %s: %w", c.path, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(body)))
	}
	if text, ok := v.(*string); ok {
		*text = string(body)
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode agent's answer: %w", err)
	}
	return nil
}

// Running reports whether somebody answers on the socket at path, however slowly.
func Running(ctx context.Context, path string) bool {
	c, err := dial(ctx, path)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// Report asks for the agent's report.
func (c *Client) Report(ctx context.Context) (*Report, error) {
	r := new(Report)
	return r, c.Get(ctx, "/v1/status", nil, r)
}

func dial(ctx context.Context, path string) (c net.Conn, err error) {
	err = Near(path, func(short string) error {
		var d net.Dialer
		c, err = d.DialContext(ctx, "unix", short)
		return err
	})
	return c, err
}

// Near calls f with a path to the same file short enough for a socket's address, which holds 107 bytes: a long one goes through its
// directory's file descriptor.
func Near(path string, f func(string) error) error {
	if len(path) <= 107 {
		return f(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}
