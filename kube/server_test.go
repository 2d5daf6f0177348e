// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/testnet"
)

// ca issues certificates.
type ca struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t *testing.T) *ca {
	t.Helper()
	c := &ca{t: t}
	raw, key := c.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	c.key = key
	c.cert, _ = x509.ParseCertificate(raw)
	c.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
	return c
}

func (c *ca) issue(template *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<60))
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, by := c.cert, c.key
	if parent == nil {
		parent, by = template, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		c.t.Fatal(err)
	}
	return raw, key
}

// server is a certificate for names and addresses, valid at a time.
func (c *ca) server(at time.Time, names ...string) tls.Certificate {
	c.t.Helper()
	template := &x509.Certificate{NotBefore: at.Add(-time.Hour), NotAfter: at.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	raw, key := c.issue(template)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}

// client writes a client's certificate and key.
func (c *ca) client(cn, certFile, keyFile string) {
	c.t.Helper()
	raw, key := c.issue(&x509.Certificate{Subject: pkix.Name{CommonName: cn}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: raw}, keyFile: {Type: "EC PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}

// serveTLS serves a handler with a certificate on a loopback address, over HTTP/2.
func serveTLS(t *testing.T, ip string, cert tls.Certificate, h http.Handler) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(h)
	_ = web.Listener.Close()
	web.Listener = l
	web.EnableHTTP2 = true
	web.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.StartTLS()
	t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	return web
}

func addrOf(s *httptest.Server) string { return s.Listener.Addr().String() }

// get asks for something and returns what came of it.
func get(c *Client) error {
	_, err := c.servesServiceCIDRs(context.Background())
	return err
}

// TestNames: a server is trusted that has a certificate for the configuration's name, or for the address that is really asked; and no other.
func TestNames(t *testing.T) {
	authority, other := newCA(t), newCA(t)
	for _, tt := range []struct {
		name       string
		ca         *ca
		cert       []string
		serverName string
		wrong      string
	}{
		{"for the name", authority, []string{"api.example"}, "", ""},
		{"for the address", authority, []string{"127.0.0.2"}, "", ""},
		{"for both", authority, []string{"127.0.0.2", "api.example"}, "", ""},
		{"for neither", authority, []string{"127.0.0.9", "else.example"}, "", "127.0.0.2"},
		{"for the address, where a name is demanded", authority, []string{"127.0.0.2"}, "must.example", "must.example"},
		{"for the name that is demanded", authority, []string{"must.example"}, "must.example", ""},
		{"of another authority", other, []string{"127.0.0.2", "api.example"}, "", "unknown authority"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			web := serveTLS(t, "127.0.0.2", tt.ca.server(time.Now(), tt.cert...), newAPI(t))
			c, err := NewClientFor(&rest.Config{Host: "https://api.example", TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem, ServerName: tt.serverName}}, addrOf(web))
			if err != nil {
				t.Fatal(err)
			}
			err = get(c)
			if (err != nil) != (tt.wrong != "") || err != nil && !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%v, want %q", err, tt.wrong)
			}
			if err == nil && c.Server() != "https://api.example at "+addrOf(web) {
				t.Errorf("uses %s", c.Server())
			}
		})
	}
}

// TestServersOrder: the configured addresses are tried in order, the one that worked last first; without any, those that the cluster names and the
// configuration's, which comes last where it is a virtual one.
func TestServersOrder(t *testing.T) {
	known := func() []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443"), netip.MustParseAddrPort("192.0.2.2:6443")}
	}
	for _, tt := range []struct {
		host       string
		configured []string
		virtual    bool
		current    string
		want       string
	}{
		{"https://10.96.0.1:443", nil, true, "", "192.0.2.1:6443 192.0.2.2:6443 10.96.0.1:443"},
		{"https://10.96.0.1:443", nil, true, "10.96.0.1:443", "10.96.0.1:443 192.0.2.1:6443 192.0.2.2:6443"},
		{"https://lb.example", nil, false, "", "lb.example:443 192.0.2.1:6443 192.0.2.2:6443"},
		{"https://lb.example", nil, false, "192.0.2.2:6443", "192.0.2.2:6443 lb.example:443 192.0.2.1:6443"},
		{"https://lb.example", nil, false, "192.0.2.3:6443", "lb.example:443 192.0.2.1:6443 192.0.2.2:6443"}, // it is gone
		{"https://192.0.2.1:6443", nil, false, "", "192.0.2.1:6443 192.0.2.2:6443"},
		{"https://10.96.0.1:443", []string{"b:1", "a:1", "b:1"}, true, "", "b:1 a:1"},
		{"https://10.96.0.1:443", []string{"b:1", "a:1"}, true, "a:1", "a:1 b:1"},
		{"https://[fd00::1]", []string{"[fd00::2]:6443"}, true, "", "[fd00::2]:6443"},
		{"https://[fd00::1]", nil, true, "", "192.0.2.1:6443 192.0.2.2:6443 [fd00::1]:443"},
		{"https://rancher.example/k8s/clusters/c1", nil, false, "", "rancher.example:443"},
		{"http://127.0.0.1:8080", nil, false, "", "127.0.0.1:8080"},
	} {
		s, err := newServers(&rest.Config{Host: tt.host}, tt.configured, tt.virtual)
		if err != nil {
			t.Fatal(err)
		}
		if s.known == nil {
			s.known = known
		}
		s.current = tt.current
		got := s.order()
		// Those that the cluster names are in no order.
		if i, j := slices.Index(got, "192.0.2.1:6443"), slices.Index(got, "192.0.2.2:6443"); i > j && j >= 0 && tt.current != "192.0.2.2:6443" {
			got[i], got[j] = got[j], got[i]
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestSpread: nodes that know the same API servers do not all begin with the same one.
func TestSpread(t *testing.T) {
	s, err := newServers(&rest.Config{Host: "https://10.96.0.1"}, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	s.known = func() []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443"), netip.MustParseAddrPort("192.0.2.2:6443")}
	}
	first := make(map[string]int)
	for range 200 {
		first[s.order()[0]]++
	}
	if len(first) != 2 {
		t.Error(first)
	}
}

// TestFailOver: when an API server ends, the next one is used, and what is heard goes on; when all are away it is said, once; status names the one
// that is used.
func TestFailOver(t *testing.T) {
	authority := newCA(t)
	one, two := newAPI(t), newAPI(t)
	first := serveTLS(t, "127.0.0.2", authority.server(time.Now(), "127.0.0.2"), one)
	second := serveTLS(t, "127.0.0.3", authority.server(time.Now(), "127.0.0.3"), two)
	l := listenTo(t, &rest.Config{Host: "https://10.96.0.1", TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem}}, addrOf(first), addrOf(second))
	l.wait("list", l.has("web"))
	if got := l.client.Server(); got != "https://10.96.0.1 at "+addrOf(first) {
		t.Errorf("uses %s", got)
	}
	if n := two.count(""); n > 0 {
		t.Errorf("%d requests at the second server", n)
	}
	one.send("services", "ADDED", fmt.Sprintf(webJSON, "old", 19))
	l.wait("event", l.has("web", "old"))
	_ = first.Listener.Close()
	first.CloseClientConnections()
	two.send("services", "ADDED", fmt.Sprintf(webJSON, "new", 20))
	l.wait("what the second server says", l.has("web", "old", "new"))
	if got := l.client.Server(); got != "https://10.96.0.1 at "+addrOf(second) {
		t.Errorf("uses %s", got)
	}
	if n := two.count("services stream"); n > 0 {
		t.Errorf("listed %d times at the second server, where a watch can go on", n)
	}
	_ = second.Listener.Close()
	second.CloseClientConnections()
	l.wait("trouble", l.troubled(fmt.Sprintf("no API server can be reached: %s: connect: connection refused; %s: connect: connection refused", addrOf(second), addrOf(first))))
	if !l.has("web", "old", "new")() {
		t.Error("what was known is gone")
	}
	if n := strings.Count(l.log.String(), "no API server can be reached"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, l.log)
	}
}

// TestBehindTheVirtualAddress: in a cluster whose virtual address leads nowhere yet, the API servers are reached that were known before; with those
// moved, the virtual one.
func TestBehindTheVirtualAddress(t *testing.T) {
	authority := newCA(t)
	for name, tt := range map[string]struct {
		known   string // what the cluster named
		virtual bool   // the virtual address works
		real    bool   // the real one is used
	}{
		"the virtual address does not work": {"127.0.0.2", false, true},
		"both work":                         {"127.0.0.2", true, true},
		"the real one has moved":            {"127.0.0.4", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			web := serveTLS(t, "127.0.0.2", authority.server(time.Now(), "10.96.0.1"), a)
			at := netip.MustParseAddrPort(addrOf(web))
			// Connections are made after the list too, and go where it says then.
			a.slice = fmt.Sprintf(`{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"kubernetes","namespace":"default","resourceVersion":"2",
				"labels":{"kubernetes.io/service-name":"kubernetes"}},"addressType":"IPv4","endpoints":[{"addresses":[%q],"conditions":{"ready":true}}],
				"ports":[{"name":"https","protocol":"TCP","port":%d}]}`, at.Addr(), at.Port())
			// The test's network has no virtual address: the dialer stands for the rules that lead from it.
			dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == "10.96.0.1:443" {
					if !tt.virtual {
						return nothing(ctx, network, addr)
					}
					addr = addrOf(web)
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			client, err := newClient(&rest.Config{Host: "https://10.96.0.1", Dial: dial, TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem}}, nil, true)
			if err != nil {
				t.Fatal(err)
			}
			l := listenWith(t, client, func(s *Source) {
				s.builder.SetSlice(model.Slice{Name: model.Name{Namespace: "default", Name: "kubernetes"}, Service: "kubernetes",
					Ports: []model.Port{{Name: "https", Protocol: model.TCP, Port: at.Port()}}, Endpoints: []model.Endpoint{{Addr: netip.MustParseAddr(tt.known), Ready: true}}})
			})
			l.wait("list", l.has("web"))
			want := "https://10.96.0.1"
			if tt.real {
				want += " at " + at.String()
			}
			if got := client.Server(); got != want {
				t.Errorf("uses %s, want %s", got, want)
			}
		})
	}
}

// wire is a link to a server that can be cut without a sign to either end.
type wire struct {
	mu  sync.Mutex
	cut chan struct{}
}

func newWire() *wire { return &wire{cut: make(chan struct{})} }

type wired struct {
	net.Conn
	cut <-chan struct{}
	end chan struct{}
	one sync.Once
}

func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return &wired{Conn: c, cut: w.cut, end: make(chan struct{})}, nil
}

// sever cuts the connections that are there; new ones work.
func (w *wire) sever() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.cut)
	w.cut = make(chan struct{})
}

func (c *wired) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case <-c.cut: // what came is lost, and nothing comes any more
		<-c.end
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *wired) Write(b []byte) (int, error) {
	select {
	case <-c.cut:
		return len(b), nil
	default:
		return c.Conn.Write(b)
	}
}

func (c *wired) Close() error {
	c.one.Do(func() { close(c.end) })
	return c.Conn.Close()
}

// TestHalfOpen: a connection on which nothing comes any more is noticed by a ping that gets no answer, and the watches go on over another one.
func TestHalfOpen(t *testing.T) {
	authority := newCA(t)
	a := newAPI(t)
	web := serveTLS(t, "127.0.0.2", authority.server(time.Now(), "127.0.0.2"), a)
	w := newWire()
	cfg := &rest.Config{Host: web.URL, Dial: w.dial, TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem}}
	servers, err := newServers(cfg, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	servers.speechless, servers.pingPatience = 100*time.Millisecond, 100*time.Millisecond
	client, err := newClientOf(cfg, servers)
	if err != nil {
		t.Fatal(err)
	}
	l := listenWith(t, client)
	l.wait("list", l.has("web"))
	a.send("services", "ADDED", fmt.Sprintf(webJSON, "old", 19))
	l.wait("event", l.has("web", "old"))
	w.sever()
	a.until("watch that goes on", func() bool { return slices.Contains(a.asked, "services watch@19") })
	a.send("services", "ADDED", fmt.Sprintf(webJSON, "new", 20))
	l.wait("event", l.has("web", "old", "new"))
	if silent > 5*time.Second || speechless+pingPatience > 20*time.Second {
		t.Errorf("a dead machine is noticed after %v, a dead program after %v", 2*silent, speechless+pingPatience)
	}
}

// TestDeadMachine: a server whose machine is gone, which nobody says, is left for the next one without a ping: when nothing was sent to it any more, and when something was.
func TestDeadMachine(t *testing.T) {
	testnet.MustRoot(t)
	for what, sent := range map[string]bool{"idle": false, "asked": true} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			world := testnet.New(t)
			node := world.Host("node")
			authority := newCA(t)
			var apis []*api
			var addrs []string
			var machines []*testnet.Host
			for i, ip := range []string{"192.0.2.1", "192.0.2.5"} {
				m, dev := world.Host(fmt.Sprint("machine-", i)), fmt.Sprint("api", i)
				world.Cable(node, dev, m, "eth0")
				node.Addr(dev, netip.MustParseAddr(ip).Next().String()+"/30")
				m.Addr("eth0", ip+"/30")
				a := newAPI(t)
				var web *httptest.Server
				m.Do(func() error { web = serveTLS(t, ip, authority.server(time.Now(), ip), a); return nil })
				apis, addrs, machines = append(apis, a), append(addrs, addrOf(web)), append(machines, m)
			}
			cfg := &rest.Config{Host: "https://" + addrs[0], TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem}}
			servers, err := newServers(cfg, addrs, false)
			if err != nil {
				t.Fatal(err)
			}
			servers.speechless, servers.pingPatience = time.Hour, time.Hour
			servers.dial = func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
				failed := node.NS.Do(func() error { conn, err = dialer(time.Second).DialContext(ctx, network, addr); return nil })
				return conn, errors.Join(failed, err)
			}
			client, err := newClientOf(cfg, servers)
			if err != nil {
				t.Fatal(err)
			}
			l := listenWith(t, client)
			l.wait("list", l.has("web"))
			link, err := machines[0].Link.LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			if err := machines[0].Link.LinkSetDown(link); err != nil {
				t.Fatal(err)
			}
			if sent {
				go func() { _ = get(client) }()
			}
			apis[1].until("watches at the other server", func() bool {
				return slices.ContainsFunc(apis[1].asked, func(a string) bool { return strings.HasPrefix(a, "services watch") })
			})
		})
	}
}

// TestStuckHandshake: a server that takes connections and says nothing is left for the next one.
func TestStuckHandshake(t *testing.T) {
	t.Parallel()
	authority := newCA(t)
	stuck, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	web := serveTLS(t, "127.0.0.3", authority.server(time.Now(), "127.0.0.3"), newAPI(t))
	c, err := NewClientFor(&rest.Config{Host: "https://api.example", TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem}}, stuck.Addr().String(), addrOf(web))
	if err != nil {
		t.Fatal(err)
	}
	if err := get(c); err != nil || c.Server() != "https://api.example at "+addrOf(web) {
		t.Errorf("%v; uses %s", err, c.Server())
	}
}

// TestClock: a certificate that is not valid by this clock, and an API server with another time, are named as what they are.
func TestClock(t *testing.T) {
	authority := newCA(t)
	for _, by := range []time.Duration{-48 * time.Hour, 48 * time.Hour} {
		web := serveTLS(t, "127.0.0.2", authority.server(time.Now().Add(by), "127.0.0.2"), newAPI(t))
		c, err := NewClientFor(&rest.Config{Host: web.URL, TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem}})
		if err != nil {
			t.Fatal(err)
		}
		if err := get(c); err == nil || !strings.Contains(err.Error(), "its certificate is valid from ") || !strings.Contains(err.Error(), "set the clock if it is wrong, or renew the certificate") {
			t.Error(err)
		}
	}
	for by, says := range map[time.Duration]string{
		time.Hour:        "this node's clock is 1h0m0s behind the API server's: one of them is wrong, and certificates and tokens may not count",
		-time.Hour:       "this node's clock is 1h0m0s ahead of the API server's",
		30 * time.Second: "",
	} {
		a := newAPI(t)
		web := serveTLS(t, "127.0.0.2", authority.server(time.Now(), "127.0.0.2"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(by).UTC().Format(http.TimeFormat))
			a.ServeHTTP(w, r)
		}))
		l := listenTo(t, &rest.Config{Host: web.URL, TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem}})
		l.wait("list", l.has("web"))
		if says == "" {
			if !l.fine() {
				t.Errorf("troubles %q", l.Troubles())
			}
			continue
		}
		l.wait("trouble", l.troubled(says))
		if n := strings.Count(l.log.String(), "clock is"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, l.log)
		}
	}
}

// TestTokenRotation: a token file that is written anew is read anew, also when the API server has already refused the old one.
func TestTokenRotation(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	accept := a.demand(func(r *http.Request) string { return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") })
	accept("first")
	authority := newCA(t)
	web := serveTLS(t, "127.0.0.2", authority.server(time.Now(), "127.0.0.2"), a)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := listenTo(t, &rest.Config{Host: web.URL, BearerTokenFile: token, TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem}})
	l.wait("list", l.has("web"))
	accept("second")
	a.send("services", "", "")
	l.wait("trouble", l.troubled("does not accept this agent's credentials"))
	if err := os.WriteFile(token, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.send("services", "ADDED", fmt.Sprintf(webJSON, "new", 20))
	l.wait("event", l.has("web", "new"))
}

// TestCertificateRotation: a client certificate that was renewed is used once the API server refuses the old one, though the connection is there.
func TestCertificateRotation(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	accept := a.demand(func(r *http.Request) string {
		if len(r.TLS.PeerCertificates) == 0 {
			return ""
		}
		return r.TLS.PeerCertificates[0].Subject.CommonName
	})
	accept("first")
	authority := newCA(t)
	web := serveTLS(t, "127.0.0.2", authority.server(time.Now(), "127.0.0.2"), a)
	cert, key := filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
	authority.client("first", cert, key)
	l := listenTo(t, &rest.Config{Host: web.URL, TLSClientConfig: rest.TLSClientConfig{CAData: authority.pem, CertFile: cert, KeyFile: key}})
	l.wait("list", l.has("web"))
	authority.client("second", cert, key)
	accept("second")
	// As if it had been there for long.
	s := l.client.servers
	s.mu.Lock()
	for c := range s.conns {
		s.conns[c] = time.Now().Add(-time.Hour)
	}
	s.mu.Unlock()
	a.send("services", "", "")
	a.send("services", "ADDED", fmt.Sprintf(webJSON, "new", 20))
	l.wait("event", l.has("web", "new"))
}

// TestOneTry: requests that are made at the same time while nothing answers are one try, not one each.
func TestOneTry(t *testing.T) {
	var mu sync.Mutex
	tries := 0
	waiting := make(chan struct{})
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		mu.Lock()
		tries++
		mu.Unlock()
		<-waiting
		return nothing(ctx, network, addr)
	}
	s, err := newServers(&rest.Config{Host: "https://api.example", Dial: dial}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var asked, done sync.WaitGroup
	for range 20 {
		asked.Add(1)
		done.Go(func() {
			asked.Done()
			if _, err := s.connect(t.Context(), "tcp"); err == nil || err.Error() != "api.example:443: nothing is there" {
				t.Error(err)
			}
		})
	}
	asked.Wait()
	for { // all but one wait for the one
		mu.Lock()
		begun := tries > 0
		mu.Unlock()
		if begun {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	close(waiting)
	done.Wait()
	if tries != 1 {
		t.Errorf("%d tries", tries)
	}
}
