// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fairlead/fairlead/pki"
)

const apiPort = 6443

// apiAddr is where the API server is, whatever becomes of Services.
func apiAddr() netip.AddrPort { return netip.AddrPortFrom(addrsOf(controlHost)[0], apiPort) }

func (c *Cluster) pki(name string) string { return filepath.Join(c.dir, "pki", name) }

func (c *Cluster) kubeconfig(user string) string { return filepath.Join(c.dir, user+".kubeconfig") }

func (c *Cluster) program(name string) string { return filepath.Join(c.Options.Programs, name) }

// needed are the programs that a cluster takes from this machine.
var needed = map[string]string{
	"containerd": "containerd", "containerd-shim-runc-v2": "containerd", "ctr": "containerd", "runc": "runc",
	"iptables": "iptables", "nft": "nftables", "mount": "mount",
}

// checkPrograms says what is missing before anything is made.
func (c *Cluster) checkPrograms(context.Context) error {
	var missing []string
	for program, pkg := range needed {
		if !strings.Contains((&Machine{}).Command(program).Path, "/") {
			missing = append(missing, program+" (Debian: "+pkg+")")
		}
	}
	if _, err := os.Stat(filepath.Join(referencePlugins, "loopback")); err != nil {
		missing = append(missing, referencePlugins+" (Debian: containernetworking-plugins)")
	}
	if len(missing) > 0 {
		return fmt.Errorf("this machine lacks %s; make deps installs it", strings.Join(missing, ", "))
	}
	built := []string{c.program("etcd"), c.program("kube-apiserver"), c.program("kube-controller-manager"), c.program("kube-scheduler"),
		c.program("kubelet"), c.program("kubectl"), c.program("pause"), c.program("manifest"), c.own("shop"), c.own("fairlead"), c.own("fairlead-cni")}
	for _, path := range built {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w; make build-kubernetes makes it", err)
		}
	}
	return nil
}

// writeKeys makes the authority, the API server's certificate and the kubeconfig of every client.
func (c *Cluster) writeKeys() error {
	addrs := append(addrsOf(controlHost), ServiceCIDRs[0].Addr().Next(), ServiceCIDRs[1].Addr().Next())
	ca, err := pki.Ensure(c.pki(""), pki.Options{Addresses: addrs})
	if err != nil {
		return err
	}
	type client struct {
		name, user string
		groups     []string
	}
	clients := []client{
		{"admin", "admin", []string{"system:masters"}},
		{"controller-manager", "system:kube-controller-manager", nil},
		{"scheduler", "system:kube-scheduler", nil},
		{"kube-proxy", "system:kube-proxy", nil},
		{"fairlead", fairleadUser, nil},
	}
	for _, n := range c.Nodes {
		clients = append(clients, client{n.Name, "system:node:" + n.Name, []string{"system:nodes"}})
	}
	for _, who := range clients {
		pair, err := ca.Client(who.user, who.groups...)
		if err != nil {
			return err
		}
		k := pki.Kubeconfig{Server: "https://" + apiAddr().String(), CA: ca.CA, Client: pair, Cluster: c.Options.Name, User: who.name}
		if err := pki.WriteKubeconfig(c.kubeconfig(who.name), k); err != nil {
			return err
		}
	}
	pair, err := ca.Client("kube-apiserver", "system:masters") // what the API server is to a kubelet
	if err == nil {
		err = pki.WriteFile(c.pki("to-kubelet.crt"), pair.Cert, 0o644)
	}
	if err == nil {
		err = pki.WriteFile(c.pki("to-kubelet.key"), pair.Key, 0o600)
	}
	if err == nil {
		err = writeTokenKey(c.pki("tokens.key"))
	}
	return err
}

// writeTokenKey makes the key that signs the tokens of service accounts.
func writeTokenKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return pki.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), 0o600)
}

// startControl starts the control plane and waits until the API server is ready.
func (c *Cluster) startControl(ctx context.Context) (err error) {
	if err := c.writeKeys(); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	if c.Etcd, err = c.Control.Start("etcd", c.program("etcd"), "--data-dir="+filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:2380"); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	auth := func(user string) []string {
		k := c.kubeconfig(user)
		return []string{"--kubeconfig=" + k, "--authentication-kubeconfig=" + k, "--authorization-kubeconfig=" + k, "--leader-elect=false"}
	}
	if c.ControllerManager, err = c.Control.Start("kube-controller-manager", append([]string{c.program("kube-controller-manager"),
		fmt.Sprint("--allocate-node-cidrs=", !c.Options.NoPodCIDRs), "--cluster-cidr=" + list(PodCIDRs), "--service-cluster-ip-range=" + list(ServiceCIDRs),
		"--use-service-account-credentials=true", "--root-ca-file=" + c.pki("ca.crt"), "--service-account-private-key-file=" + c.pki("tokens.key"),
		"--cluster-signing-cert-file=" + c.pki("ca.crt"), "--cluster-signing-key-file=" + c.pki("ca.key"),
	}, auth("controller-manager")...)...); err != nil {
		return err
	}
	c.Scheduler, err = c.Control.Start("kube-scheduler", append([]string{c.program("kube-scheduler")}, auth("scheduler")...)...)
	return err
}

// StartAPIServer starts the API server, for the first time or again, and waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) (err error) {
	if c.APIServer, err = c.Control.Start("kube-apiserver", c.program("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379", "--bind-address=::", fmt.Sprint("--secure-port=", apiPort), "--advertise-address="+apiAddr().Addr().String(),
		"--service-cluster-ip-range="+list(ServiceCIDRs), "--allow-privileged=true", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file="+c.pki("ca.crt"), "--tls-cert-file="+c.pki("server.crt"), "--tls-private-key-file="+c.pki("server.key"),
		"--kubelet-client-certificate="+c.pki("to-kubelet.crt"), "--kubelet-client-key="+c.pki("to-kubelet.key"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file="+c.pki("tokens.key"), "--service-account-signing-key-file="+c.pki("tokens.key"),
	); err != nil {
		return err
	}
	return until(ctx, 2*time.Minute, "API server", func(ctx context.Context) error {
		return c.Kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}, c.Etcd, c.APIServer)
}

// KubectlCommand prepares kubectl, to run in the control plane as administrator.
func (c *Cluster) KubectlCommand(args ...string) *exec.Cmd {
	return c.Control.Command(append([]string{c.program("kubectl"), "--kubeconfig", c.kubeconfig("admin")}, args...)...)
}

func list[T fmt.Stringer](all []T) string {
	var text []string
	for _, v := range all {
		text = append(text, v.String())
	}
	return strings.Join(text, ",")
}
