// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	day = 24 * time.Hour

	// caLife and leafLife are how long certificates are valid; caSpare and
	// leafSpare, how much of that must be left for one to be used again.
	caLife    = 3650 * day
	caSpare   = 730 * day
	leafLife  = 1825 * day
	leafSpare = 365 * day

	// skew is how far in the past certificates begin, for clocks that are
	// behind.
	skew = time.Hour
)

// Options says what the API server is called.
type Options struct {
	// Names are the server's names in addition to kubernetes,
	// kubernetes.default, kubernetes.default.svc,
	// kubernetes.default.svc.cluster.local and localhost.
	Names []string
	// Addresses are the server's addresses in addition to 127.0.0.1 and ::1:
	// those of the Service default/kubernetes, and those it listens on.
	Addresses []netip.Addr
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// PKI is an authority that exists on disk, with the server's certificate.
type PKI struct {
	// CA is the authority's certificate, in PEM.
	CA []byte
	// Server is the API server's certificate.
	Server Pair

	dir string
	now func() time.Time
	ca  authority
}

// Pair is a certificate and its private key, both in PEM.
type Pair struct {
	Cert, Key []byte
}

// authority is what signs.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// serverNames are the names that every cluster's API server has.
var serverNames = []string{
	"kubernetes", "kubernetes.default", "kubernetes.default.svc",
	"kubernetes.default.svc.cluster.local", "localhost",
}

// Ensure opens the authority in dir, creating it if need be, with a server
// certificate for everything in the options. A server certificate that lacks
// one of the names is replaced by one that has them all and the old ones.
func Ensure(dir string, options Options) (*PKI, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create pki directory: %w", err)
	}
	p := &PKI{dir: dir, now: options.Now}
	if p.now == nil {
		p.now = time.Now
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.ensureCA(); err != nil {
		return nil, fmt.Errorf("ensure authority: %w", err)
	}
	names := slices.Concat(serverNames, options.Names)
	addresses := append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}, options.Addresses...)
	if err := p.ensureServer(names, addresses); err != nil {
		return nil, fmt.Errorf("ensure server certificate: %w", err)
	}
	return p, nil
}

// Client returns the certificate of the client named cn in the organizations
// orgs, which the API takes as user and groups. It is made if there is none,
// if it is about to expire, or if the organizations have changed.
func (p *PKI) Client(cn string, orgs ...string) (Pair, error) {
	if cn == "" || strings.ContainsAny(cn, "/\x00") {
		return Pair{}, fmt.Errorf("make client certificate: %q cannot be a common name", cn)
	}
	unlock, err := lock(p.dir)
	if err != nil {
		return Pair{}, err
	}
	defer unlock()
	file := strings.ReplaceAll(cn, ":", "-")
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: cn, Organization: orgs},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	pair, cert := p.load(file)
	if cert != nil && p.fresh(cert, leafSpare) && cert.Subject.CommonName == cn && sameSet(cert.Subject.Organization, orgs) {
		return pair, nil
	}
	pair, err = p.issue(file, template)
	if err != nil {
		return Pair{}, fmt.Errorf("make client certificate of %s: %w", cn, err)
	}
	return pair, nil
}

// ensureCA loads the authority or makes it. Its key, once written, is never
// replaced.
func (p *PKI) ensureCA() error {
	keyFile, certFile := filepath.Join(p.dir, "ca.key"), filepath.Join(p.dir, "ca.crt")
	key, err := readKey(keyFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if key, err = writeNewKey(keyFile); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	cert, err := readCert(certFile)
	if err == nil && key.PublicKey.Equal(cert.PublicKey) && cert.IsCA && p.fresh(cert, caSpare) {
		p.ca = authority{cert, key}
		p.CA = encodeCert(cert.Raw)
		return nil
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "fairlead-ca"},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	raw, err := sign(template, authority{template, key}, &key.PublicKey, p.now(), caLife)
	if err != nil {
		return err
	}
	if cert, err = x509.ParseCertificate(raw); err != nil {
		return fmt.Errorf("parse new authority: %w", err)
	}
	p.ca = authority{cert, key}
	p.CA = encodeCert(raw)
	return WriteFile(certFile, p.CA, 0o644)
}

// ensureServer loads the server's certificate or makes it.
func (p *PKI) ensureServer(names []string, addresses []netip.Addr) error {
	const file = "server"
	pair, cert := p.load(file)
	if cert != nil {
		had := certAddresses(cert)
		if p.fresh(cert, leafSpare) && subset(names, cert.DNSNames) && subset(addresses, had) {
			p.Server = pair
			return nil
		}
		names = append(names, cert.DNSNames...)
		addresses = append(addresses, had...)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "fairlead-apiserver"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    unique(names),
	}
	for _, address := range unique(addresses) {
		template.IPAddresses = append(template.IPAddresses, address.AsSlice())
	}
	var err error
	p.Server, err = p.issue(file, template)
	return err
}

// load reads a certificate that this authority has signed; nil is none.
func (p *PKI) load(file string) (Pair, *x509.Certificate) {
	base := filepath.Join(p.dir, file)
	cert, err := readCert(base + ".crt")
	if err != nil {
		return Pair{}, nil
	}
	key, err := readKey(base + ".key")
	if err != nil || !key.PublicKey.Equal(cert.PublicKey) {
		return Pair{}, nil
	}
	if cert.CheckSignatureFrom(p.ca.cert) != nil {
		return Pair{}, nil
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, nil
	}
	return Pair{Cert: encodeCert(cert.Raw), Key: keyPEM}, cert
}

// issue makes a key and a certificate and writes both. The key is written
// first: a crash in between leaves a pair that does not match, which load
// takes for none.
func (p *PKI) issue(file string, template *x509.Certificate) (Pair, error) {
	base := filepath.Join(p.dir, file)
	key, err := writeNewKey(base + ".key")
	if err != nil {
		return Pair{}, err
	}
	raw, err := sign(template, p.ca, &key.PublicKey, p.now(), leafLife)
	if err != nil {
		return Pair{}, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	pair := Pair{Cert: encodeCert(raw), Key: keyPEM}
	return pair, WriteFile(base+".crt", pair.Cert, 0o644)
}

// fresh says that a certificate is valid now and for a while yet.
func (p *PKI) fresh(cert *x509.Certificate, spare time.Duration) bool {
	now := p.now()
	return now.After(cert.NotBefore) && now.Add(spare).Before(cert.NotAfter)
}

// certAddresses are the addresses that a certificate is for.
func certAddresses(cert *x509.Certificate) []netip.Addr {
	var addresses []netip.Addr
	for _, ip := range cert.IPAddresses {
		if address, ok := netip.AddrFromSlice(ip); ok {
			addresses = append(addresses, address.Unmap())
		}
	}
	return addresses
}

// lock keeps other processes out of dir until the result is called.
func lock(dir string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open pki lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock pki: %w", err)
	}
	return func() { file.Close() }, nil
}

// subset says that all of a are in b.
func subset[T comparable](a, b []T) bool {
	return !slices.ContainsFunc(a, func(v T) bool { return !slices.Contains(b, v) })
}

// sameSet says that a and b have the same members.
func sameSet[T comparable](a, b []T) bool { return subset(a, b) && subset(b, a) }

// unique is list without repetitions, in the same order.
func unique[T comparable](list []T) []T {
	var out []T
	for _, v := range list {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}
