// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
)

// How soon an API server that is gone is noticed. The kernel asks the other machine after silent, and ends a connection on which nothing that was sent, or asked, has
// been acknowledged for twice that: a server that lost its power is left after ten seconds, and no process wakes up for it, on either side. A machine that is
// there again after a reboot knows nothing of the connection and says so to the first question.
//
// A machine may answer whose program does not, or which only passes on what is sent to another one. So the program is asked too, after speechless: by a ping of HTTP/2, 17
// bytes, that must be answered within pingPatience. Of 5,000 nodes, an API server of three gets 111 a second.
const (
	silent       = 5 * time.Second
	speechless   = 15 * time.Second
	pingPatience = 5 * time.Second
	// connectPatience bounds one attempt to connect to one address, and shakePatience the TLS handshake, which a server that is starting may be slow with.
	connectPatience = 2 * time.Second
	shakePatience   = 5 * time.Second
)

// dialer makes connections that end when the other machine has been silent for twice this long, rounded up to seconds.
func dialer(silent time.Duration) *net.Dialer {
	return &net.Dialer{
		Timeout:         connectPatience,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silent, Interval: silent, Count: 2},
		Control: func(_, _ string, raw syscall.RawConn) (err error) {
			// Without it, what was sent is sent again for a quarter of an hour, and nothing is asked meanwhile (tcp(7)).
			set := func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int((2 * silent).Milliseconds()))
			}
			if failed := raw.Control(set); failed != nil {
				return failed
			}
			return os.NewSyscallError("setsockopt TCP_USER_TIMEOUT", err)
		},
	}
}

// servers is the API servers of a cluster, of which one is used at a time. It makes the connections.
//
// The addresses are tried in this order: the one that worked last; those that were configured; and, if none are, those that the cluster itself names (the
// endpoints of Service default/kubernetes) and the one of the configuration. In a cluster, that one is a virtual address, which works only once a service
// proxy does, maybe this very agent: so it comes last there, and first elsewhere.
type servers struct {
	cfg        *rest.Config
	host       string // of the configuration, HOST:PORT
	name       string // what certificates are to be for
	secure     bool
	configured []string
	virtual    bool                    // host is a virtual address
	known      func() []netip.AddrPort // what the cluster itself names; nil: nothing
	changed    func()                  // is told, without the lock, when what problems says may have changed; nil: nobody is
	dial       func(ctx context.Context, network, addr string) (net.Conn, error)

	speechless, pingPatience time.Duration // the constants, but for tests

	attempt sync.Mutex // held by whoever connects: the others get what it gets

	mu      sync.Mutex
	current string    // the address that worked last
	tried   time.Time // when all were tried in vain last
	failure error     // what came of that; nil if one works since
	skew    string    // what is wrong with a clock; empty if nothing is
	conns   map[*tracked]time.Time
}

func newServers(cfg *rest.Config, configured []string, virtual bool) (*servers, error) {
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("read the API server's address %q: %w", cfg.Host, err)
	}
	s := &servers{cfg: cfg, host: authority(base), name: base.Hostname(), secure: base.Scheme == "https", configured: configured, virtual: virtual, speechless: speechless, pingPatience: pingPatience,
		conns: make(map[*tracked]time.Time)}
	if cfg.ServerName != "" {
		s.name = cfg.ServerName
	}
	if !s.secure || strings.Trim(base.Path, "/") != "" {
		// What is behind a path is one server's own, and what is not encrypted shows nobody's name.
		s.known = func() []netip.AddrPort { return nil }
	}
	s.dial = dialer(silent).DialContext
	if cfg.Dial != nil {
		s.dial = cfg.Dial
	}
	return s, nil
}

func authority(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// client is what requests are sent with. It has credentials and, over TLS, HTTP/2.
func (s *servers) client() (*http.Client, error) {
	tc, err := s.cfg.TransportConfig()
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	t := &http.Transport{
		Proxy:       s.cfg.Proxy,
		DialContext: s.plainly,
		DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return s.connect(ctx, network)
		},
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: s.speechless, PingTimeout: s.pingPatience},
		MaxIdleConnsPerHost: 10,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  s.cfg.DisableCompression,
	}
	switch {
	case len(s.configured) > 0:
		t.Proxy = nil // these are reached directly
	case t.Proxy == nil:
		t.Proxy = http.ProxyFromEnvironment
	}
	if s.secure {
		if t.TLSClientConfig, err = s.tls(s.name); err != nil { // through a proxy; and what cannot be read is said at once
			return nil, err
		}
	}
	var wire http.RoundTripper = &observed{RoundTripper: t, servers: s}
	if tc.BearerTokenFile != "" {
		// It is read again every minute, and at once when the API server does not accept what it had.
		wire = transport.ResettableTokenSourceWrapTransport(transport.NewCachedFileTokenSource(tc.BearerTokenFile))(wire)
		tc.BearerToken, tc.BearerTokenFile = "", ""
	}
	authorized, err := transport.HTTPWrappersForConfig(tc, wire)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	return &http.Client{Transport: authorized}, nil
}

// plainly connects without TLS: to the API server, if that is how it is, or to a proxy before it.
func (s *servers) plainly(ctx context.Context, network, addr string) (net.Conn, error) {
	if !s.secure && addr == s.host {
		return s.connect(ctx, network)
	}
	return s.dial(ctx, network, addr)
}

// order is what is tried, each once.
func (s *servers) order() []string {
	s.mu.Lock()
	first, known := s.current, s.known
	s.mu.Unlock()
	all := s.configured
	if len(all) == 0 {
		var named []string
		if known != nil {
			for _, a := range known() {
				named = append(named, a.String())
			}
		}
		// All nodes know the same ones, and should not all go to the same.
		rand.Shuffle(len(named), func(i, j int) { named[i], named[j] = named[j], named[i] })
		if s.virtual {
			all = append(named, s.host)
		} else {
			all = append([]string{s.host}, named...)
		}
	}
	if slices.Contains(all, first) {
		all = append([]string{first}, all...)
	}
	var once []string
	for _, a := range all {
		if !slices.Contains(once, a) {
			once = append(once, a)
		}
	}
	return once
}

// connect returns a connection to the first API server that takes one, with TLS where it is to be. Of several that ask for one at the same time, one
// tries; the others hear of its failure, and are not each a try more for a server that is away.
func (s *servers) connect(ctx context.Context, network string) (net.Conn, error) {
	asked := time.Now()
	s.attempt.Lock()
	defer s.attempt.Unlock()
	s.mu.Lock()
	tried, failure := s.tried, s.failure
	s.mu.Unlock()
	if failure != nil && tried.After(asked) {
		return nil, failure
	}
	var errs []error
	for _, addr := range s.order() {
		conn, err := s.connectTo(ctx, network, addr)
		if err == nil {
			s.works(addr)
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	failure = &unreachableError{errs}
	s.mu.Lock()
	s.tried, s.failure = time.Now(), failure
	s.mu.Unlock()
	s.tell()
	return nil, failure
}

// unreachableError says of each address why it does not work.
type unreachableError struct{ errs []error }

func (e *unreachableError) Error() string {
	parts := make([]string, len(e.errs))
	for i, err := range e.errs {
		parts[i] = err.Error()
	}
	return strings.Join(parts, "; ")
}

func (e *unreachableError) Unwrap() []error { return e.errs }

func (s *servers) connectTo(ctx context.Context, network, addr string) (net.Conn, error) {
	raw, err := s.dial(ctx, network, addr)
	if err != nil {
		return nil, plain(err)
	}
	conn := s.track(raw)
	if !s.secure {
		return conn, nil
	}
	secure, err := s.shake(ctx, conn, addr)
	if err != nil {
		_ = conn.Close()
		return nil, clockOrCertificate(err, time.Now())
	}
	return secure, nil
}

func (s *servers) shake(ctx context.Context, conn net.Conn, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	cfg, err := s.tls(host)
	if err != nil {
		return nil, err
	}
	patient, cancel := context.WithTimeoutCause(ctx, shakePatience, errors.New("it takes the connection, and does not answer the TLS handshake"))
	defer cancel()
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(patient); err != nil {
		if patient.Err() != nil {
			return nil, context.Cause(patient)
		}
		return nil, plain(err)
	}
	return secure, nil
}

// plain leaves out of an error what is said anyway: dial tcp ADDR.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// tls is what a connection to a host is made with. Files are read anew for each: certificates and authorities that have been renewed are then those used.
//
// The server's certificate must be for the name of the configuration or for the host that is really asked: behind one name there may be several servers,
// and each has a certificate for its own addresses, which are trusted like the name. Where the configuration demands a name, nothing else will do.
func (s *servers) tls(host string) (*tls.Config, error) {
	tc, err := s.cfg.TransportConfig()
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	cfg, err := transport.TLSConfigFor(tc)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	cfg.NextProtos = []string{"h2", "http/1.1"}
	if cfg.ServerName == "" {
		cfg.ServerName = s.name
	}
	if cfg.InsecureSkipVerify {
		return cfg, nil // the configuration asks for it
	}
	cfg.InsecureSkipVerify = true // verified below: crypto/tls knows one name only
	cfg.VerifyConnection = func(c tls.ConnectionState) error {
		chain := x509.NewCertPool()
		for _, cert := range c.PeerCertificates[1:] {
			chain.AddCert(cert)
		}
		verify := func(name string) error {
			_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: cfg.RootCAs, Intermediates: chain, DNSName: name})
			return err
		}
		err := verify(s.name)
		var wrong x509.HostnameError
		if errors.As(err, &wrong) && s.cfg.ServerName == "" && host != s.name {
			err = verify(host)
		}
		return err
	}
	return cfg, nil
}

// clockOrCertificate says what is the matter with a certificate that is not valid now: it, or this clock.
func clockOrCertificate(err error, now time.Time) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		c := invalid.Cert
		return fmt.Errorf("its certificate is valid from %s to %s, and this node's clock says %s: set the clock if it is wrong, or renew the certificate",
			c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return err
}

// works remembers that an address does.
func (s *servers) works(addr string) {
	s.mu.Lock()
	s.current, s.failure = addr, nil
	s.mu.Unlock()
	s.tell()
}

func (s *servers) tell() {
	if s.changed != nil {
		s.changed()
	}
}

// server says which API server is used.
func (s *servers) server() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == "" || s.current == s.host {
		return s.cfg.Host
	}
	return fmt.Sprintf("%s at %s", s.cfg.Host, s.current)
}

// tracked is a connection until it is closed.
type tracked struct {
	net.Conn
	servers *servers
}

func (s *servers) track(c net.Conn) *tracked {
	t := &tracked{c, s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[t] = time.Now()
	return t
}

// Close implements net.Conn.
func (t *tracked) Close() error {
	t.servers.mu.Lock()
	delete(t.servers.conns, t)
	t.servers.mu.Unlock()
	return t.Conn.Close()
}

// renewAtMost is how often a connection is made anew because the API server does not accept its certificate.
const renewAtMost = 10 * time.Second

// renew ends the connections that are there for longer. The next ones are made with the credentials that are in the files then.
func (s *servers) renew() {
	s.mu.Lock()
	var old []*tracked
	for c, since := range s.conns {
		if time.Since(since) >= renewAtMost {
			old = append(old, c)
		}
	}
	s.mu.Unlock()
	for _, c := range old {
		_ = c.Close()
	}
}

// observed looks at answers for what says something about the two machines rather than about the question.
type observed struct {
	http.RoundTripper
	servers *servers
}

// skewMost is how far two clocks may differ. Those who judge tokens allow for a minute.
const skewMost = time.Minute

// RoundTrip implements http.RoundTripper.
func (o *observed) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := o.RoundTripper.RoundTrip(r)
	if err != nil {
		return resp, err
	}
	if resp.StatusCode == http.StatusUnauthorized {
		o.servers.renew()
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		o.servers.compare(time.Now(), at)
	}
	return resp, nil
}

// compare takes in what the API server's clock said just now.
func (s *servers) compare(here, there time.Time) {
	text := ""
	if by := here.Sub(there).Round(time.Second); by.Abs() > skewMost {
		how := "ahead of"
		if by < 0 {
			how = "behind"
		}
		// In steps, so that it is not another sentence with each answer.
		text = fmt.Sprintf("this node's clock is %s %s the API server's: one of them is wrong, and certificates and tokens may not count", by.Abs().Round(time.Minute), how)
	}
	s.mu.Lock()
	same := s.skew == text
	s.skew = text
	s.mu.Unlock()
	if !same {
		s.tell()
	}
}

// problems are why there are no answers, and what is wrong with a clock; empty if nothing is.
func (s *servers) problems() (away, skew string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		away = s.failure.Error()
	}
	return away, s.skew
}
