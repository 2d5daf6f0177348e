// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ensure opens an authority as it is at a time.
func ensure(t testing.TB, dir string, now time.Time, addresses ...string) *PKI {
	t.Helper()
	o := Options{Now: func() time.Time { return now }}
	for _, a := range addresses {
		o.Addresses = append(o.Addresses, netip.MustParseAddr(a))
	}
	p, err := Ensure(dir, o)
	must(t, err)
	return p
}

// leaf is the certificate of a pair.
func leaf(t testing.TB, pair Pair) *x509.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(pair.Cert, pair.Key)
	must(t, err)
	cert, err := x509.ParseCertificate(c.Certificate[0])
	must(t, err)
	return cert
}

// trusts says that a certificate is good for a use, in the eyes of someone who
// has the authority's certificate ca.
func trusts(ca []byte, cert *x509.Certificate, name string, use x509.ExtKeyUsage, now time.Time) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return fmt.Errorf("no certificate in %q", ca)
	}
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{use}, CurrentTime: now})
	return err
}

func TestServerNames(t *testing.T) {
	now := time.Now()
	p := ensure(t, t.TempDir(), now, "10.96.0.1", "fd00:96::1", "172.30.0.1")
	cert := leaf(t, p.Server)
	for _, name := range []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"localhost", "127.0.0.1", "::1", "10.96.0.1", "fd00:96::1", "172.30.0.1",
	} {
		must(t, trusts(p.CA, cert, name, x509.ExtKeyUsageServerAuth, now))
	}
	if trusts(p.CA, cert, "10.96.0.2", x509.ExtKeyUsageServerAuth, now) == nil {
		t.Error("the certificate is for an address that nobody asked for")
	}
	if trusts(p.CA, cert, "localhost", x509.ExtKeyUsageClientAuth, now) == nil {
		t.Error("the server's certificate works for a client")
	}
}

// TestLife follows an authority through the years: what is replaced, and what
// a client that has the first authority's certificate still trusts.
func TestLife(t *testing.T) {
	begin := time.Now()
	dir := t.TempDir()
	first := ensure(t, dir, begin)
	client, err := first.Client("admin", "system:masters")
	must(t, err)
	for _, row := range []struct {
		years               float64
		ca, server, clients bool // renewed, compared with the beginning
		trusted             bool // by who has the first certificate
	}{
		{0, false, false, false, true},
		{3.5, false, false, false, true},
		{4.5, false, true, true, true},
		{7.5, false, true, true, true},
		{8.5, true, true, true, true},
		{30, true, true, true, false},
	} {
		t.Run(fmt.Sprint(row.years), func(t *testing.T) {
			copied := t.TempDir()
			must(t, os.CopyFS(copied, os.DirFS(dir)))
			now := begin.Add(time.Duration(row.years * 365 * float64(day)))
			p := ensure(t, copied, now)
			c, err := p.Client("admin", "system:masters")
			must(t, err)
			if got := !bytes.Equal(p.CA, first.CA); got != row.ca {
				t.Errorf("authority renewed: %v", got)
			}
			if got := !bytes.Equal(p.Server.Cert, first.Server.Cert); got != row.server {
				t.Errorf("server renewed: %v", got)
			}
			if got := !bytes.Equal(c.Cert, client.Cert); got != row.clients {
				t.Errorf("client renewed: %v", got)
			}
			must(t, trusts(p.CA, leaf(t, p.Server), "localhost", x509.ExtKeyUsageServerAuth, now))
			must(t, trusts(p.CA, leaf(t, c), "", x509.ExtKeyUsageClientAuth, now))
			if err := trusts(first.CA, leaf(t, p.Server), "localhost", x509.ExtKeyUsageServerAuth, now); (err == nil) != row.trusted {
				t.Errorf("trusted by an old client: %v", err)
			}
		})
	}
}

func TestServerGrows(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	one := ensure(t, dir, now, "10.0.0.1")
	same := ensure(t, dir, now)
	if !bytes.Equal(one.Server.Cert, same.Server.Cert) {
		t.Error("asking for less replaced the certificate")
	}
	two := ensure(t, dir, now, "10.0.0.2")
	for _, a := range []string{"10.0.0.1", "10.0.0.2"} {
		must(t, trusts(two.CA, leaf(t, two.Server), a, x509.ExtKeyUsageServerAuth, now))
	}
}

func TestClient(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	p := ensure(t, dir, now)
	node, err := p.Client("system:node:n1", "system:nodes")
	must(t, err)
	cert := leaf(t, node)
	if cert.Subject.CommonName != "system:node:n1" || !slices.Equal(cert.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("subject %v", cert.Subject)
	}
	must(t, trusts(p.CA, cert, "", x509.ExtKeyUsageClientAuth, now))
	again, err := p.Client("system:node:n1", "system:nodes")
	must(t, err)
	if !bytes.Equal(node.Cert, again.Cert) {
		t.Error("asking twice made two certificates")
	}
	other, err := p.Client("system:node:n1", "system:masters")
	must(t, err)
	if bytes.Equal(node.Cert, other.Cert) {
		t.Error("other organizations, same certificate")
	}
	for _, bad := range []string{"", "a/b", "../ca", "a\x00"} {
		if _, err := p.Client(bad); err == nil {
			t.Errorf("common name %q accepted", bad)
		}
	}
}

// TestDamage checks that a file that is missing, cut or not of its pair is
// mended, except the authority's key, which nothing can replace.
func TestDamage(t *testing.T) {
	now := time.Now()
	for _, file := range []string{"ca.crt", "server.crt", "server.key", "admin.crt", "admin.key"} {
		for _, damage := range []string{"missing", "empty", "cut", "of another"} {
			t.Run(file+" "+damage, func(t *testing.T) {
				dir := t.TempDir()
				p := ensure(t, dir, now)
				_, err := p.Client("admin", "system:masters")
				must(t, err)
				path := filepath.Join(dir, file)
				content, err := os.ReadFile(path)
				must(t, err)
				switch damage {
				case "missing":
					must(t, os.Remove(path))
				case "empty":
					must(t, os.WriteFile(path, nil, 0o600))
				case "cut":
					must(t, os.WriteFile(path, content[:len(content)/2], 0o600))
				case "of another":
					other := t.TempDir()
					q := ensure(t, other, now)
					_, err := q.Client("admin", "system:masters")
					must(t, err)
					content, err := os.ReadFile(filepath.Join(other, file))
					must(t, err)
					must(t, os.WriteFile(path, content, 0o600))
				}
				p = ensure(t, dir, now)
				admin, err := p.Client("admin", "system:masters")
				must(t, err)
				must(t, trusts(p.CA, leaf(t, p.Server), "localhost", x509.ExtKeyUsageServerAuth, now))
				must(t, trusts(p.CA, leaf(t, admin), "", x509.ExtKeyUsageClientAuth, now))
			})
		}
	}
	dir := t.TempDir()
	ensure(t, dir, now)
	must(t, os.WriteFile(filepath.Join(dir, "ca.key"), []byte("not a key"), 0o600))
	if _, err := Ensure(dir, Options{}); err == nil {
		t.Error("a damaged authority key was replaced in silence")
	}
}

func TestModes(t *testing.T) {
	dir := t.TempDir()
	p := ensure(t, dir, time.Now())
	pair, err := p.Client("admin", "system:masters")
	must(t, err)
	path := filepath.Join(dir, "kubeconfig")
	k := Kubeconfig{Server: "https://127.0.0.1:6443", CA: p.CA, Client: pair}
	must(t, WriteKubeconfig(path, k))
	must(t, os.Chmod(path, 0o644))
	must(t, WriteKubeconfig(path, k))
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		info, err := e.Info()
		must(t, err)
		if filepath.Ext(e.Name()) != ".crt" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	config, err := clientcmd.LoadFromFile(path)
	must(t, err)
	current := config.Contexts[config.CurrentContext]
	if got := config.Clusters[current.Cluster].Server; got != k.Server {
		t.Errorf("server %q", got)
	}
	if got := config.AuthInfos[current.AuthInfo].ClientKeyData; !bytes.Equal(got, pair.Key) {
		t.Error("the key is another")
	}
}

// TestConcurrent checks that callers at once get one authority.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	seen := map[string]int{}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			p, err := Ensure(dir, Options{Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}})
			if err != nil {
				t.Error(err)
				return
			}
			pair, err := p.Client("admin", "system:masters")
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[string(p.CA)+string(p.Server.Cert)+string(pair.Cert)]++
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Errorf("%d different authorities", len(seen))
	}
}

// TestHandshake checks that a server and a client that have nothing but this
// package's output know each other.
func TestHandshake(t *testing.T) {
	p := ensure(t, t.TempDir(), time.Now())
	pair, err := p.Client("system:node:n1", "system:nodes")
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.CA)
	serving, err := tls.X509KeyPair(p.Server.Cert, p.Server.Key)
	must(t, err)
	mine, err := tls.X509KeyPair(pair.Cert, pair.Key)
	must(t, err)
	a, b := net.Pipe()
	server := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{serving}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert})
	client := tls.Client(b, &tls.Config{Certificates: []tls.Certificate{mine}, RootCAs: roots, ServerName: "kubernetes.default.svc"})
	failed := make(chan error, 1)
	go func() { failed <- server.Handshake() }()
	must(t, client.Handshake())
	must(t, <-failed)
	if got := server.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "system:node:n1" {
		t.Errorf("the server sees %q", got)
	}
}
