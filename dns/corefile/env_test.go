// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package corefile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLoad: a file, a directory with one, and none.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "Corefile"), ". {\nhosts hosts a\nforward . {$FAIRLEAD_TEST_UPSTREAM}\nimport *.override\n}\n")
	write(t, filepath.Join(dir, "hosts"), "10.0.0.1 x.a\n")
	write(t, filepath.Join(dir, "b.override"), "errors\n")
	t.Setenv("FAIRLEAD_TEST_UPSTREAM", "10.0.0.7")
	for _, name := range []string{dir, filepath.Join(dir, "Corefile")} {
		c, err := Load(name, OS())
		if err != nil {
			t.Fatal(err)
		}
		want := ". port 53\n  hosts a. ttl 3600s, 1 from a file\n  forward . to 10.0.0.7:53, random\n  cache, off\n  log errors\n"
		if got := c.String(); got != want {
			t.Errorf("%s:\n%s, want\n%s", name, got, want)
		}
	}
	if c, err := Load(filepath.Join(dir, "none"), OS()); err == nil || c != nil || !strings.Contains(err.Error(), "read Corefile") {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := Load(filepath.Join(dir, "Corefile"), Env{}); err == nil || c != nil {
		t.Errorf("%v, %v", c, err)
	}
}

// TestAbsentHosts: CoreDNS starts without the file, and reads it when it is there.
func TestAbsentHosts(t *testing.T) {
	c, err := Parse("/etc/coredns/Corefile", []byte(". {\nhosts /nowhere a\n}"), env())
	if err != nil {
		t.Fatal(err)
	}
	if n := c.Notes[len(c.Notes)-1]; n.Fate != NoEffect || !strings.Contains(n.Why, "until the file is there") || n.Line != 2 {
		t.Errorf("%v", n)
	}
	if h := c.Blocks[0].Rules.Hosts; h == nil || len(h.File) != 0 {
		t.Errorf("%v", h)
	}
}

// TestRoot: files are below the root, if one is set.
func TestRoot(t *testing.T) {
	e := env()
	e.ReadFile = files{"/srv/list": "10.0.0.1 a", "/srv/ca.pem": authority(t), "/srv/resolv": "nameserver 0.0.0.0\nnameserver ff02::1\nnameserver ::ffff:10.0.0.9", "/etc/coredns/bad.pem": "x"}.read
	c, err := Parse("/etc/coredns/Corefile", []byte(". {\nhosts list\nroot /srv\nforward . tls://10.0.0.1 resolv {\ntls ca.pem\n}\n}"), e)
	if err != nil {
		t.Fatal(err)
	}
	p := c.Blocks[0].Forward[0]
	if len(c.Blocks[0].Rules.Hosts.File) != 1 || p.Roots == nil || len(p.Upstreams) != 2 || p.Upstreams[1].Addr.String() != "10.0.0.9:53" {
		t.Errorf("%v", c)
	}
	if _, err := Parse("/etc/coredns/Corefile", []byte(". {\nforward . tls://10.0.0.1 {\ntls bad.pem\n}\n}"), e); err == nil || !strings.Contains(err.Error(), "bad.pem has no certificate") {
		t.Error(err)
	}
}

// authority is a certificate of nobody's.
func authority(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestNothingIsReadUnasked: what a Corefile does not name is not opened.
func TestNothingIsReadUnasked(t *testing.T) {
	e := env()
	e.ReadFile = func(name string) ([]byte, error) {
		t.Errorf("%s is read", name)
		return nil, fs.ErrNotExist
	}
	if _, err := Parse("/etc/coredns/Corefile", []byte(". {\nhosts {\n10.0.0.1 a\n}\nkubernetes cluster.local\nforward . 10.0.0.1\ncache\n}"), e); err != nil {
		t.Error(err)
	}
}
