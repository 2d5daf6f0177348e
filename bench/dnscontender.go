// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// resolver is a DNS server that can be started on a node.
type resolver struct {
	name   string
	number int
	// program is what it is called, in bench/bin or where the machine keeps servers.
	program string
	// world says that it learns names from an API server, and not from a zone file.
	world bool
	// echo says that it knows no names.
	echo bool
	// to is where clients ask.
	to string
	// command is the program's flags, and writes what it reads to dir.
	command func(on *dnsNode, dir string) ([]string, error)
}

// nodeAt is a node's own address, the same on each; clusterAt is what pods have in resolv.conf. The upstream is a host beside the node.
const (
	nodeAt     = "192.168.78.1"
	upstreamAt = remoteIP
	clusterAt  = dnsIP
)

var upstreamAddr = netip.MustParseAddrPort(upstreamAt + ":53")

// The contenders. CoreDNS is there twice: as kubeadm configures it, where the cluster's names are not cached, and with everything cached, as it
// used to.
var (
	fairleadDNS   = resolver{name: fairlead.name, number: fairlead.number, program: "fairlead", world: true, to: clusterAt, command: agentCommand()}
	coreDNS       = resolver{name: "CoreDNS", number: 21, program: "coredns", world: true, to: nodeAt, command: coreDNSCommand(false)}
	coreDNSCached = resolver{name: "CoreDNS cached", number: 22, program: "coredns", world: true, to: nodeAt, command: coreDNSCommand(true)}
)

// resolvers are all that are measured under load. Each of the yardsticks has one thread.
var resolvers = []resolver{
	fairleadDNS, coreDNS, coreDNSCached,
	{name: "gdnsd", number: 23, program: "gdnsd", to: nodeAt, command: gdnsdCommand},
	{name: "Knot", number: 24, program: "knotd", to: nodeAt, command: knotCommand},
	{name: "NSD", number: 25, program: "nsd", to: nodeAt, command: nsdCommand},
	{name: "Unbound", number: 26, program: "unbound", to: nodeAt, command: unboundCommand},
	{name: "echo in Go", number: 27, program: "bench", echo: true, to: nodeAt, command: func(*dnsNode, string) ([]string, error) {
		return []string{"echo", nodeAt + ":53"}, nil
	}},
	{name: "echo in C", number: 28, program: "udp-echo", echo: true, to: nodeAt, command: func(*dnsNode, string) ([]string, error) {
		return []string{nodeAt, "53"}, nil
	}},
}

// find is the path of the resolver's program; an error says that there is none on this machine.
func (r resolver) find(p programs) (string, error) {
	switch r.program {
	case "fairlead":
		return p.fairlead, nil
	case "bench":
		return p.bench, nil
	}
	for _, path := range []string{filepath.Join(p.built, r.program), filepath.Join("/usr/sbin", r.program)} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(r.program)
	if err != nil {
		return "", fmt.Errorf("%s is not on this machine (hack/deps.sh bench-dns installs it)", r.program)
	}
	return path, nil
}

// dnsNode is a resolver that runs on its rig, and what it knows.
type dnsNode struct {
	resolver
	*rig
	process   *process
	state     string // of the process, if it is an agent
	upstream  *process
	frugal    bool       // the garbage collector runs ten times as often
	mute      bool       // it is not to answer
	questions []question // one for each name it knows
	all       string     // file of them
	drawn     string     // file of draws
	addr      netip.AddrPort
}

func (n *dnsNode) close() {
	if n == nil {
		return
	}
	n.process.stop()
	n.upstream.stop()
	n.rig.close()
}

// newDNSNode makes a rig for a resolver, with an upstream beside it. What it is to know is the world's, or that of a world for it to be a copy of.
func (s *suite) newDNSNode(ctx context.Context, r resolver, w *dnsWorld) (_ *dnsNode, err error) {
	n := &dnsNode{resolver: r, questions: w.questions, addr: netip.MustParseAddrPort(fmt.Sprint(r.to, ":", dnsPort))}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	joined := w.world
	if !r.world {
		joined = nil
	}
	dir, err := os.MkdirTemp(s.dir, "node-")
	if err != nil {
		return nil, fmt.Errorf("make directory of a node: %w", err)
	}
	if n.rig, err = newRig(s.programs, dir, joined, r.name, r.number); err != nil {
		return nil, err
	}
	n.upstream, err = start(n.remote, clientCPU, dir, "upstream", s.programs.bench, "upstream", upstreamAt+":53")
	if err != nil {
		return nil, err
	}
	n.all, err = s.saveQuestions("all-"+r.name, n.questions)
	if err != nil {
		return nil, err
	}
	drawn := draws(n.questions, 100_000)
	if n.drawn, err = s.saveQuestions("drawn-"+r.name, drawn); err != nil {
		return nil, err
	}
	return n, saveForDNSPerf(s.dnsperfFile(n), drawn)
}

// run starts the resolver, on one processor or any, and waits until it answers for the first and the last name made.
func (n *dnsNode) run(ctx context.Context, s *suite, cpu int) error {
	if n.process != nil {
		n.process.stop()
		n.process = nil
	}
	program, err := n.find(s.programs)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, "state-")
	if err != nil {
		return fmt.Errorf("make directory for %s: %w", n.resolver.name, err)
	}
	n.state = filepath.Join(dir, "state")
	flags, err := n.command(n, dir)
	if err != nil {
		return err
	}
	argv := append([]string{program}, flags...)
	if n.frugal {
		argv = append([]string{"env", "GOGC=10"}, argv...)
	}
	if n.process, err = start(n.node, cpu, dir, n.program, argv...); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	ends := []question{n.questions[0], n.questions[len(n.questions)-1]}
	if n.mute {
		ends = nil
	}
	if err := awaitAnswers(bounded, n.client, n.addr, ends, n.echo, n.process.gone); err != nil {
		return fmt.Errorf("start %s: %w; it said: %s", n.resolver.name, err, tail(n.process.log))
	}
	if cpu != anyCPU {
		// Knot gives its threads to processors of its own choice: the first to the client's.
		if err := confine(n.process.pid(), cpu); err != nil {
			return err
		}
	}
	_, err = cpuWhenIdle(bounded, n.process.pid())
	return err
}

// agentCommand is the agent with further flags.
func agentCommand(flags ...string) func(*dnsNode, string) ([]string, error) {
	return func(n *dnsNode, dir string) ([]string, error) {
		argv, err := fairleadCommand(n.rig, dir, true)
		if err != nil {
			return nil, err
		}
		return append(append(argv[1:], "--upstream", upstreamAt), flags...), nil
	}
}

// coreDNSCommand writes the Corefile that kubeadm v1.37 writes, but for the address of the API server, and that it listens on one address; cached is without the two
// lines that keep the cluster's own names out of the cache.
func coreDNSCommand(cached bool) func(*dnsNode, string) ([]string, error) {
	return func(n *dnsNode, dir string) ([]string, error) {
		without := uncached
		if cached {
			without = ""
		}
		text := fmt.Sprintf(corefile, "bind "+nodeAt, "kubeconfig "+n.w.kubeconfig, upstreamAt, without)
		return writeConfig(dir, "Corefile", text, "-conf")
	}
}

// coreDNSOn is CoreDNS as kubeadm configures it, on a rig on which it is not alone or not asked.
func coreDNSOn(r *rig, dir string) ([]string, error) {
	flags, err := coreDNS.command(&dnsNode{resolver: coreDNS, rig: r}, dir)
	return append([]string{r.w.programs.coreDNS}, flags...), err
}

// writeConfig writes a file and returns the flag that names it.
func writeConfig(dir, name, text, flag string) ([]string, error) {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return []string{flag, path}, nil
}

// writeZone writes the zone file of what the node is to know.
func (n *dnsNode) writeZone(dir string) (string, error) {
	path := filepath.Join(dir, clusterDomain)
	if err := os.WriteFile(path, zoneFile(n.questions), 0o644); err != nil {
		return "", fmt.Errorf("write zone: %w", err)
	}
	return path, nil
}

func gdnsdCommand(n *dnsNode, dir string) ([]string, error) {
	zones := filepath.Join(dir, "zones")
	if err := os.Mkdir(zones, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of zones: %w", err)
	}
	if _, err := n.writeZone(zones); err != nil {
		return nil, err
	}
	text := strings.NewReplacer("DIR", dir).Replace(
		"options => { listen => [ 192.168.78.1 ], udp_threads => 1, tcp_threads => 1, run_dir => DIR, state_dir => DIR }\n")
	if _, err := writeConfig(dir, "config", text, ""); err != nil {
		return nil, err
	}
	return []string{"-c", dir, "start"}, nil
}

func knotCommand(n *dnsNode, dir string) ([]string, error) {
	zone, err := n.writeZone(dir)
	if err != nil {
		return nil, err
	}
	text := strings.NewReplacer("DIR", dir, "ZONE", zone).Replace(`server:
  rundir: DIR
  listen: 192.168.78.1@53
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
log:
  - target: stderr
    any: warning
database:
  storage: DIR
zone:
  - domain: cluster.local
    file: ZONE
    zonefile-sync: -1
    journal-content: none
`)
	return writeConfig(dir, "knot.conf", text, "-c")
}

func nsdCommand(n *dnsNode, dir string) ([]string, error) {
	zone, err := n.writeZone(dir)
	if err != nil {
		return nil, err
	}
	text := strings.NewReplacer("DIR", dir, "ZONE", zone).Replace(`server:
  ip-address: 192.168.78.1
  server-count: 1
  username: ""
  chroot: ""
  database: ""
  zonesdir: "DIR"
  zonelistfile: "DIR/zone.list"
  xfrdfile: "DIR/xfrd.state"
  xfrdir: "DIR"
  pidfile: "DIR/nsd.pid"
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: cluster.local
  zonefile: "ZONE"
`)
	flags, err := writeConfig(dir, "nsd.conf", text, "-c")
	return append([]string{"-d"}, flags...), err
}

// unboundCommand has the zone in a file that it resolves from, as from another server, so that answers come from its cache.
func unboundCommand(n *dnsNode, dir string) ([]string, error) {
	zone, err := n.writeZone(dir)
	if err != nil {
		return nil, err
	}
	text := strings.NewReplacer("DIR", dir, "ZONE", zone).Replace(`server:
  interface: 192.168.78.1
  access-control: 0.0.0.0/0 allow
  num-threads: 1
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "DIR"
  pidfile: ""
  use-syslog: no
  module-config: "iterator"
  cache-min-ttl: 3600
  msg-cache-size: 64m
  rrset-cache-size: 128m
  do-ip6: no
remote-control:
  control-enable: no
auth-zone:
  name: cluster.local
  zonefile: "ZONE"
  for-downstream: no
  for-upstream: yes
  fallback-enabled: no
`)
	return writeConfig(dir, "unbound.conf", text, "-c")
}

// awaitLimit bounds what is waited for in one step of the DNS experiments.
const awaitLimit = 2 * time.Minute
