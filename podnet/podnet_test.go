// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/testnet"
)

// TestMain makes the test program the plugin itself when a runtime, here the
// tests, starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		Main()
	}
	code := m.Run()
	if shippedDir != "" {
		os.RemoveAll(shippedDir)
	}
	os.Exit(code)
}

var shippedDir string

// shippedPlugin returns the path of the plugin as it is shipped, under the name that configurations have for it.
func shippedPlugin(t testing.TB) string {
	t.Helper()
	path, err := buildPlugin()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildPlugin = sync.OnceValues(func() (path string, err error) {
	if shippedDir, err = os.MkdirTemp("", "fairlead-plugin-"); err != nil {
		return "", err
	}
	path = filepath.Join(shippedDir, "fairlead")
	if out, err := exec.Command("go", "build", "-o", path, "../cmd/fairlead-cni").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the plugin: %w: %s", err, out)
	}
	return path, nil
})

// node is one node with its plugin configuration.
type node struct {
	*testnet.Host
	t     testing.TB
	world *testnet.World
	dir   string         // the plugin's dataDir
	conf  map[string]any // changed by tests
}

// newNode makes a node that forwards, with the given pod CIDRs.
func newNode(t testing.TB, podCIDRs ...string) *node {
	t.Helper()
	n := &node{t: t, world: testnet.New(t), dir: filepath.Join(t.TempDir(), "ipam")}
	n.boot()
	n.conf = map[string]any{"cniVersion": "1.1.0", "name": "fairlead", "type": "fairlead", "podCIDRs": podCIDRs, "dataDir": n.dir}
	return n
}

// boot makes the node's network, with nothing of pods in it.
func (n *node) boot() {
	n.t.Helper()
	n.Host = n.world.Host("node")
	n.Forward()
	n.world.Cable(n.Host, "eth0", n.world.Host("fabric"), "eth0")
	n.Addr("eth0", "172.30.0.11/24", "fd00:30::11/64")
}

// pod is a network namespace with the identity that the runtime gives it.
type pod struct {
	*testnet.Host
	id string
}

func (n *node) pod(id string) *pod { return &pod{n.world.Host(id), id} }

// command returns the plugin's process for a verb, not started.
func (n *node) command(verb string, p *pod, conf map[string]any) *exec.Cmd {
	stdin, err := json.Marshal(conf)
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(pluginPath())
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_PATH=/nowhere"}
	if p != nil {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+p.id, "CNI_IFNAME=eth0",
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME="+p.id+";K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=uid-"+p.id)
		if p.Host != nil {
			cmd.Env = append(cmd.Env, "CNI_NETNS="+p.NS.Path())
		}
	}
	return cmd
}

// pluginPath is the test program, or what FAIRLEAD_PLUGIN names.
func pluginPath() string {
	if path := os.Getenv("FAIRLEAD_PLUGIN"); path != "" {
		return path
	}
	return os.Args[0]
}

// start starts the process in the node's namespace.
func (n *node) start(cmd *exec.Cmd) error { return n.NS.Do(cmd.Start) }

// run runs a verb and returns what it printed; an error is the plugin's own.
func (n *node) run(verb string, p *pod, conf map[string]any) ([]byte, error) {
	return n.runCommand(n.command(verb, p, conf))
}

func (n *node) runCommand(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := n.start(cmd); err != nil {
		return nil, err
	}
	err := cmd.Wait()
	if stderr.Len() > 0 {
		n.t.Logf("plugin: %s", &stderr)
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	var said types.Error
	if jsonErr := json.Unmarshal(stdout.Bytes(), &said); jsonErr != nil || said.Msg == "" {
		return nil, fmt.Errorf("%w, printed %q", err, &stdout)
	}
	return nil, &said
}

// add runs ADD and returns the result.
func (n *node) add(p *pod) (*types100.Result, error) {
	return n.addBy(p, n.conf)
}

// addBy is add with another configuration.
func (n *node) addBy(p *pod, conf map[string]any) (*types100.Result, error) {
	out, err := n.run("ADD", p, conf)
	if err != nil {
		return nil, err
	}
	return parseResult(out)
}

// parseResult reads what an ADD has printed.
func parseResult(out []byte) (*types100.Result, error) {
	got, err := types100.NewResult(out)
	if err != nil {
		return nil, err
	}
	return types100.NewResultFromResult(got)
}

func (n *node) mustAdd(p *pod) *types100.Result {
	n.t.Helper()
	result, err := n.add(p)
	if err != nil {
		n.t.Fatalf("ADD %s: %v", p.id, err)
	}
	return result
}

func (n *node) mustDel(p *pod) {
	n.t.Helper()
	if _, err := n.run("DEL", p, n.conf); err != nil {
		n.t.Fatalf("DEL %s: %v", p.id, err)
	}
}

// check runs CHECK with the result of the ADD.
func (n *node) check(p *pod, result *types100.Result) error {
	conf := maps.Clone(n.conf)
	conf["prevResult"] = result
	_, err := n.run("CHECK", p, conf)
	return err
}

// addrs returns the addresses in a result.
func addrs(result *types100.Result) (list []netip.Addr) {
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		list = append(list, addr.Unmap())
	}
	return list
}

// kernel prints what the node's kernel has of pods: interfaces, and routes and
// neighbours of ours.
func (n *node) kernel() string {
	n.t.Helper()
	var b strings.Builder
	links, err := n.Link.LinkList()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, link := range links {
		if name := link.Attrs().Name; name != "lo" && name != "eth0" {
			fmt.Fprintf(&b, "%s ", link.Attrs().Name)
		}
	}
	n.Do(func() error {
		live, err := liveLeases(nil)
		slices.SortFunc(live, func(a, b ipam.Lease) int { return strings.Compare(a.ID, b.ID) })
		for _, l := range live {
			fmt.Fprintf(&b, "%s%v ", l.ID, l.Addrs)
		}
		return err
	})
	neighs, err := n.Link.NeighList(0, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, neigh := range neighs {
		if neigh.State == 0x80 {
			fmt.Fprintf(&b, "%s ", neigh.IP)
		}
	}
	return b.String()
}

// wantEmpty looks that nothing of any pod is left.
func (n *node) wantEmpty() {
	n.t.Helper()
	if got := n.kernel(); got != "" {
		n.t.Errorf("left on the node: %s", got)
	}
	if leases, err := ListAttachments(n.dir); err != nil || len(leases) != 0 {
		n.t.Errorf("left leases: %+v, %v", leases, err)
	}
}

// code returns the code of a CNI error.
func code(err error) uint {
	var said *types.Error
	if errors.As(err, &said) {
		return said.Code
	}
	return 0
}

// fakeAgent answers on a socket as the agent does.
func (n *node) fakeAgent(handler http.HandlerFunc) {
	n.t.Helper()
	socket := filepath.Join(n.t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		n.t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	done := make(chan bool)
	go func() { server.Serve(listener); close(done) }()
	n.t.Cleanup(func() { server.Close(); <-done })
	n.conf["agent"] = socket
}

// BenchmarkAdd is an ADD from the start of the process to its result, with 50 pods
// on the node; FAIRLEAD_PLUGIN=bin/fairlead measures the real program. VERSION is
// the same without doing anything: what starting a process costs.
func BenchmarkAdd(b *testing.B) {
	n := newNode(b, dual...)
	for i := range 50 {
		n.mustAdd(n.pod(fmt.Sprint("old", i)))
	}
	p := n.pod("new")
	for _, verb := range []string{"ADD", "VERSION"} {
		b.Run(verb, func(b *testing.B) {
			var cpu time.Duration
			for b.Loop() {
				cmd := n.command(verb, p, n.conf)
				if _, err := n.runCommand(cmd); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				n.mustDel(p)
				b.StartTimer()
			}
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N)/1000, "cpu-ms/op")
		})
	}
}

var families = []struct {
	name  string
	cidrs []string
}{
	{"IPv4", []string{"10.244.1.0/24"}},
	{"IPv6", []string{"fd00:244:0:1::/64"}},
	{"dual-stack", []string{"10.244.1.0/24", "fd00:244:0:1::/64"}},
	{"dual-stack, IPv6 first", []string{"fd00:244:0:1::/64", "10.244.1.0/24"}},
}

// TestPods lets two pods of a node and the node itself talk to each other, in all
// directions, and wants every source address kept.
func TestPods(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			n := newNode(t, f.cidrs...)
			a, b := n.pod("a"), n.pod("b")
			results := []*types100.Result{n.mustAdd(a), n.mustAdd(b)}
			for i := range f.cidrs {
				aAddr, bAddr := addrs(results[0])[i], addrs(results[1])[i]
				if r := netip.MustParsePrefix(f.cidrs[i]); !r.Contains(aAddr) || !r.Contains(bAddr) || aAddr == bAddr {
					t.Fatalf("addresses %s and %s", aAddr, bAddr)
				}
				for _, network := range []string{"tcp", "udp"} {
					toA := a.Echo(network, netip.AddrPortFrom(aAddr, 80).String())
					toB := b.Echo(network, netip.AddrPortFrom(bAddr, 80).String())
					for _, c := range []struct {
						from *testnet.Host
						src  netip.Addr
						to   netip.AddrPort
						name string
					}{
						{a.Host, aAddr, toB, "b"}, {b.Host, bAddr, toA, "a"},
						{a.Host, aAddr, toA, "a"}, {n.Host, netip.Addr{}, toA, "a"},
					} {
						got, err := c.from.Ask(network, "", c.to)
						if err != nil {
							t.Errorf("%s from %s to %s: %v", network, c.from.Name, c.to, err)
						} else if got.Name != c.name || c.src.IsValid() && got.Client.Addr() != c.src {
							t.Errorf("%s from %s to %s: %+v", network, c.from.Name, c.to, got)
						}
					}
				}
			}
			for i, p := range []*pod{a, b} {
				if err := n.check(p, results[i]); err != nil {
					t.Errorf("CHECK %s: %v", p.id, err)
				}
				n.mustDel(p)
			}
			n.wantEmpty()
		})
	}
}
