// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/fairlead/fairlead/pki"
)

// Part says who does one of the three jobs of a cluster's network.
type Part string

// Who does them. KubeProxy is for Options.Proxy, CoreDNS for Options.DNS, Bridge for Options.Network.
const (
	Fairlead  Part = "fairlead"
	KubeProxy Part = "kube-proxy"
	CoreDNS   Part = "coredns"
	Bridge    Part = "bridge" // the reference plugins bridge, host-local and portmap, and a route to each other node's pods
	None      Part = "none"
)

// The cluster's ranges and addresses.
var (
	ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	PodCIDRs     = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")}
	DNSAddrs     = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a")}
)

// Options says what cluster to make.
type Options struct {
	// Name tells clusters apart: lower-case letters and digits, at most 20.
	Name string
	// Nodes is their number, 1 to 9; they are called n1, n2 and so on.
	Nodes int
	// Proxy, DNS and Network say who does what. The zero value is [Fairlead].
	Proxy, DNS, Network Part
	// Programs is the directory of what make test-kubernetes builds, and Own that of what make build does.
	Programs, Own string
	// Install brings Fairlead to a cluster that has its nodes: [OnHosts], which is the same as nil, or [AsDaemonSet].
	Install func(context.Context, *Cluster) error `json:"-"`
	// Bare has nodes without a kubelet and a container runtime. They are registered, with the addresses that they have, and are ready; their pods are run by
	// who makes the cluster, and so is the word that they go on being ready, which the controller manager doubts after 50 seconds.
	Bare bool
	// AgentArgs are more arguments for the agents of [OnHosts].
	AgentArgs []string
	// Taint is the key of a taint with which the kubelets register their nodes, empty for none.
	Taint string
	// NoPodCIDRs has kube-controller-manager give the nodes no pod ranges.
	NoPodCIDRs bool
	// Detach has the cluster outlive this process.
	Detach bool
	// Log hears what is being done; nil: nobody.
	Log *slog.Logger `json:"-"`
}

// Cluster is a cluster that is up, or partly so.
type Cluster struct {
	// Options are those it was made with.
	Options Options
	// Fabric has the switch, Control the control plane.
	Fabric, Control *Machine
	// Nodes are those of the cluster, in the order of their names.
	Nodes []*Node
	// Kube is a client that may do everything. It reaches the API server inside the control plane's network.
	Kube *kubernetes.Clientset
	// Etcd, APIServer, ControllerManager and Scheduler are the control plane; nil in a cluster that another process made.
	Etcd, APIServer, ControllerManager, Scheduler *Process

	dir  string
	lock *os.File
}

// root holds the directories of all clusters. Its name is fixed, so that a later run finds what a killed one left.
var root = filepath.Join(os.TempDir(), "fairlead-bed")

var validName = regexp.MustCompile(`^[a-z0-9]{1,20}$`)

func (o *Options) check() error {
	if !validName.MatchString(o.Name) {
		return fmt.Errorf("cluster name %q: want lower-case letters and digits, at most 20", o.Name)
	}
	if o.Nodes < 1 || o.Nodes > 9 {
		return fmt.Errorf("%d nodes: want 1 to 9", o.Nodes)
	}
	for _, p := range []struct {
		what      string
		is        *Part
		incumbent Part
	}{{"proxy", &o.Proxy, KubeProxy}, {"dns", &o.DNS, CoreDNS}, {"network", &o.Network, Bridge}} {
		if *p.is == "" {
			*p.is = Fairlead
		}
		if *p.is != Fairlead && *p.is != p.incumbent && *p.is != None {
			return fmt.Errorf("%s %q: want %s, %s or %s", p.what, *p.is, Fairlead, p.incumbent, None)
		}
	}
	if o.Install == nil {
		o.Install = OnHosts
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// usesFairlead reports whether Fairlead does any of the jobs.
func (o *Options) usesFairlead() bool {
	return o.Proxy == Fairlead || o.DNS == Fairlead || o.Network == Fairlead
}

// Up makes a cluster and returns when its nodes are ready and its DNS answers, as far as it has a network and a DNS. On an
// error nothing is left of it but the logs, in directories below the cluster's, and if ctx has ended not even those. It needs root.
func Up(ctx context.Context, o Options) (_ *Cluster, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	begin := time.Now()
	c := &Cluster{Options: o, dir: filepath.Join(root, o.Name)}
	if c.lock, err = lock(o.Name); err != nil {
		return nil, err
	}
	if err := remove(o.Name); err != nil {
		c.lock.Close()
		return nil, fmt.Errorf("remove what is left of another cluster %s: %w", o.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("bring up cluster %s: %w", o.Name, err), c.fail(ctx))
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"programs", c.checkPrograms},
		{"machines", c.makeMachines},
		{"control plane", c.startControl},
		{"nodes", c.startNodes},
		{"network", c.install},
		{"ready", c.waitReady},
	} {
		if err := step.do(ctx); err != nil {
			return nil, err
		}
		o.Log.Info(step.what, "cluster", o.Name, "after", time.Since(begin).Round(100*time.Millisecond))
	}
	return c, nil
}

// lock keeps other processes from a cluster's name until the file is closed.
func lock(name string) (*os.File, error) {
	path := lockFile(name)
	for {
		if err := os.MkdirAll(root, 0o700); err != nil {
			return nil, fmt.Errorf("make directory of clusters: %w", err)
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // who removed the last cluster removed the directory just now
		}
		if err != nil {
			return nil, fmt.Errorf("lock cluster %s: %w", name, err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock cluster %s: another process makes or uses it: %w", name, err)
		}
		// It may be a file that was removed between the two.
		ours, err := f.Stat()
		if theirs, statErr := os.Stat(path); err == nil && statErr == nil && os.SameFile(ours, theirs) {
			return f, nil
		}
		f.Close()
	}
}

func lockFile(name string) string { return filepath.Join(root, name+".lock") }

// unlock removes the lock, and the directory of clusters if there is none left.
func unlock(name string, f *os.File) {
	os.Remove(lockFile(name))
	f.Close()
	os.Remove(root) // which fails if it has anything in it
}

// Down ends everything of the cluster and removes it, and its directory with the logs.
func (c *Cluster) Down() error {
	if err := c.end(); err != nil {
		return err
	}
	return Remove(c.Options.Name)
}

// Release lets go of a cluster that was made with Options.Detach: it goes on, and others can open it.
func (c *Cluster) Release() { c.lock.Close() }

// fail ends a cluster that did not come up.
func (c *Cluster) fail(ctx context.Context) error {
	if err := c.end(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return Remove(c.Options.Name)
	}
	all, err := filepath.Glob(filepath.Join(c.dir, "*", "*"))
	top, _ := filepath.Glob(filepath.Join(c.dir, "*"))
	for _, path := range append(all, top...) {
		if logs, _ := filepath.Glob(filepath.Join(path, "logs")); filepath.Base(path) != "logs" && len(logs) == 0 {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}

// end kills the machines and removes the control groups.
func (c *Cluster) end() error {
	var errs error
	for _, m := range c.machines() {
		errs = errors.Join(errs, m.kill())
	}
	errs = errors.Join(errs, removeGroup(c.group()))
	os.Remove(c.stateFile())
	c.lock.Close()
	return errs
}

func (c *Cluster) machines() []*Machine {
	var all []*Machine
	for _, n := range c.Nodes {
		all = append(all, n.Machine)
	}
	return append(all, c.Control, c.Fabric)
}

// group is the cluster's control group, in every hierarchy.
func (c *Cluster) group() string { return "fairlead-bed-" + c.Options.Name }

// state is what a cluster's directory says about it.
type state struct {
	Options  Options
	Machines []stateMachine
}

type stateMachine struct {
	Name, Birth string
	PID         int
}

func (c *Cluster) stateFile() string { return filepath.Join(c.dir, "state.json") }

func (c *Cluster) save() error {
	s := state{Options: c.Options}
	for _, m := range c.machines() {
		if m != nil && m.pid != 0 {
			s.Machines = append(s.Machines, stateMachine{m.Name, m.birth, m.pid})
		}
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	return pki.WriteFile(c.stateFile(), append(text, '\n'), 0o600)
}

// Open is a cluster that another process made.
func Open(name string) (*Cluster, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("open cluster %q: that is no name of one", name)
	}
	c, err := load(name)
	if err != nil {
		return nil, err
	}
	if c.Fabric == nil || c.Control == nil || len(c.Nodes) != c.Options.Nodes {
		c.close()
		return nil, fmt.Errorf("open cluster %s: %w; remove it, then make it again", name, errDown)
	}
	return c, c.connect()
}

// load finds the machines of a cluster that still run.
func load(name string) (*Cluster, error) {
	c := &Cluster{dir: filepath.Join(root, name), Options: Options{Name: name}}
	text, err := os.ReadFile(c.stateFile())
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", name, err)
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("open cluster %s: read %s: %w", name, c.stateFile(), err)
	}
	c.Options = s.Options
	c.Options.Name = name
	for _, was := range s.Machines {
		m, err := openMachine(was.Name, filepath.Join(c.dir, was.Name), was.PID, was.Birth)
		switch {
		case errors.Is(err, errDown):
		case err != nil:
			c.close()
			return nil, err
		case was.Name == "fabric":
			c.Fabric = m
		case was.Name == "control":
			c.Control = m
		default:
			c.Nodes = append(c.Nodes, &Node{Machine: m, number: int(was.Name[1] - '0')})
		}
	}
	return c, nil
}

func (c *Cluster) close() {
	for _, m := range c.machines() {
		if m != nil {
			m.close()
		}
	}
}

// Remove ends a cluster that another process made, or what is left of one. One that is not there is no error.
func Remove(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("remove cluster %q: that is no name of one", name)
	}
	l, err := lock(name)
	if err != nil {
		return err
	}
	defer unlock(name, l)
	return remove(name)
}

func remove(name string) error {
	c, err := load(name)
	if errors.Is(err, fs.ErrNotExist) {
		c, err = &Cluster{dir: filepath.Join(root, name), Options: Options{Name: name}}, nil
	}
	if err != nil {
		return err
	}
	for _, m := range c.machines() {
		if err := m.kill(); err != nil {
			return err
		}
	}
	if err := removeGroup(c.group()); err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove cluster %s: %w", name, err)
	}
	return nil
}

// makeMachines makes all machines and joins them. Each is noted before it does anything.
func (c *Cluster) makeMachines(ctx context.Context) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make directory of cluster: %w", err)
	}
	loadModules()
	var err error
	machine := func(name string) *Machine {
		if err != nil {
			return nil
		}
		var m *Machine
		m, err = newMachine(name, filepath.Join(c.dir, name), c.Options.Detach)
		return m
	}
	c.Fabric, c.Control = machine("fabric"), machine("control")
	for i := range c.Options.Nodes {
		if m := machine(fmt.Sprintf("n%d", i+1)); m != nil {
			c.Nodes = append(c.Nodes, &Node{Machine: m, number: i + 1})
		}
	}
	if err != nil {
		return err
	}
	if err := c.Fabric.makeSwitch(); err != nil {
		return err
	}
	if err := c.Control.join(c.Fabric, controlHost); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.plugIn(c.Fabric); err != nil {
			return err
		}
	}
	for _, m := range c.machines() {
		m.group = c.group() + "/" + m.Name
		if err := m.makeShares(); err != nil {
			return err
		}
		if err := m.boot(ctx, c.initSpec(m)); err != nil {
			return err
		}
		if err := c.save(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) initSpec(m *Machine) initSpec {
	resolv, hosts := "", "127.0.0.1 localhost\n::1 localhost\n"
	for _, a := range addrsOf(gatewayHost) {
		resolv += fmt.Sprintf("nameserver %s\n", a)
	}
	for _, n := range c.Nodes {
		for _, a := range n.Addrs() {
			hosts += fmt.Sprintf("%s %s\n", a, n.Name)
		}
	}
	spec := initSpec{Hostname: m.Name, Dir: m.dir, Boot: string(uuid.NewUUID()), Files: map[string]string{"resolv.conf": resolv, "hosts": hosts, "hostname": m.Name + "\n"}}
	switch m {
	case c.Fabric:
		spec.DNS = addrsOf(gatewayHost)
	case c.Control:
	default:
		spec.Keep = []string{"kubelet", "containerd", "fairlead"}
	}
	return spec
}

// connect makes the client.
func (c *Cluster) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig("admin"))
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 1000, 1000
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return c.Control.NS.Dial(ctx, network, address)
	}
	if c.Kube, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return nil
}

// Kubectl runs kubectl in the control plane, with the given text as its standard input, and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.KubectlCommand(args...)
	cmd.Stdin = strings.NewReader(stdin)
	return c.Control.output(ctx, cmd)
}

// install brings what the options ask for.
func (c *Cluster) install(ctx context.Context) error {
	all, ctx := errgroup.WithContext(ctx)
	if c.Options.Network == Bridge {
		all.Go(func() error { return c.startBridge(ctx) })
	}
	if c.Options.Proxy == KubeProxy {
		all.Go(func() error { return c.startKubeProxy() })
	}
	if c.Options.DNS == CoreDNS {
		all.Go(func() error { return c.startCoreDNS(ctx) })
	}
	if c.Options.usesFairlead() {
		all.Go(func() error { return c.Options.Install(ctx, c) })
	}
	return all.Wait()
}

// Machine is the machine of that name, or nil.
func (c *Cluster) Machine(name string) *Machine {
	for _, m := range c.machines() {
		if m != nil && m.Name == name {
			return m
		}
	}
	return nil
}
