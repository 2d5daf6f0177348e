// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/pki"
)

// Options is what Run needs to be told. The process that calls Run has a network namespace and a mount namespace of its own, which it was
// started with.
type Options struct {
	// Dir is the state directory; its record has the parameters.
	Dir cluster.Dir
	// Fairlead and Server are the paths of the two programs.
	Fairlead, Server string
	// Version is shown in Node objects.
	Version string
	// Listener is the API server's socket on the machine's loopback address. It stays open for as long as Run runs, and every
	// start of the API server inherits it, so that no connection is refused while it restarts.
	Listener *os.File
	// Progress gets lines of cluster.Progress; it is closed when the cluster is ready.
	Progress io.WriteCloser
	// AgentFlags are given to the nodes' agents beside those that they need; for tests.
	AgentFlags []string
	// StopAfter, if not nil, is when a pod that is deleted gets SIGTERM without the nodes' agents being asked, as a kubelet does it; for tests.
	StopAfter *time.Duration
	// Logger gets a line per change.
	Logger *slog.Logger
}

// Bounds of a start and of an end.
const (
	startTimeout = 2 * time.Minute
	pollAPI      = 25 * time.Millisecond
)

// supervisor is one running cluster.
type supervisor struct {
	Options
	params  cluster.Params
	group   cluster.ControlGroup
	started time.Time
	stop    context.CancelFunc
	count   *counters
	agents  *agents
	client  kubernetes.Interface
	hosts   map[string]*host
	nodes   map[string]*apiNode
	changed map[string]chan struct{} // per node: the agent started or ended
	runner  *runner

	children []*child
	keeping  sync.WaitGroup // goroutines of children

	mu    sync.Mutex
	ready bool
}

// Run makes the cluster, keeps it, and takes it down when ctx ends or a client of the control socket asks for it. It returns nil
// after an orderly end. An error before the cluster is ready has been told to Progress.
func Run(ctx context.Context, o Options) error {
	record, err := o.Dir.ReadRecord()
	if err != nil {
		return tell(o.Progress, err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &supervisor{
		Options: o, params: record.Params, group: cluster.ControlGroup(record.ControlGroup), started: time.Now(), stop: stop,
		count: newCounters(), hosts: map[string]*host{}, nodes: map[string]*apiNode{}, changed: map[string]chan struct{}{},
	}
	s.agents = newAgents(o.Dir, s.params.NodeNames(), s.count)
	s.agents.after = o.StopAfter
	s.agents.returns = func(node string) bool {
		c, err := s.child("agent-" + node)
		return err == nil && c.show().State != cluster.ChildStopped
	}
	record.Supervisor, record.Started = os.Getpid(), s.started
	if err := o.Dir.WriteRecord(record); err != nil {
		return tell(o.Progress, err)
	}
	return s.run(ctx)
}

// tell writes an error where fairlead up reads it.
func tell(w io.WriteCloser, err error) error {
	json.NewEncoder(w).Encode(cluster.Progress{Error: err.Error()})
	w.Close()
	return err
}

// step runs one step of the start and tells how long it took.
func (s *supervisor) step(words string, f func() error) error {
	began := time.Now()
	if err := f(); err != nil {
		return err
	}
	took := time.Since(began)
	s.Logger.Info("start: "+words, "took", took.Round(time.Millisecond).String())
	json.NewEncoder(s.Progress).Encode(cluster.Progress{Step: words, Seconds: took.Seconds()})
	return nil
}

// run starts everything, waits for the end, and takes everything down in the reverse order.
func (s *supervisor) run(ctx context.Context) error {
	// The children outlive ctx: pods are stopped before agents, agents before the API server.
	childCtx, stopChildren := context.WithCancel(context.Background())
	defer stopChildren()
	workCtx, stopWork := context.WithCancel(ctx)
	defer stopWork()
	socket, err := s.listen()
	if err == nil {
		go s.serve(childCtx, socket)
		defer socket.Close()
		err = s.start(workCtx, childCtx)
	}
	if err != nil && ctx.Err() == nil {
		s.Logger.Error("cluster not started", "err", err)
		tell(s.Progress, err)
	} else if err == nil {
		s.mu.Lock()
		s.ready = true
		s.mu.Unlock()
		s.Logger.Info("cluster ready", "took", time.Since(s.started).Round(time.Millisecond).String())
		json.NewEncoder(s.Progress).Encode(cluster.Progress{Ready: true, Seconds: time.Since(s.started).Seconds()})
		s.Progress.Close()
		<-ctx.Done()
	}
	s.Logger.Info("cluster goes down")
	stopWork()
	if s.runner != nil {
		s.runner.wait()
	}
	stopChildren()
	s.keeping.Wait()
	s.clean()
	s.Logger.Info("cluster is down")
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// clean leaves the cluster's control group and removes it, with processes in it that nobody knows of.
func (s *supervisor) clean() {
	err := s.group.Leave()
	if err == nil {
		err = s.group.Remove(10 * time.Second)
	}
	if err != nil {
		s.Logger.Warn("control group not removed", "err", err)
	}
	for _, n := range s.params.NodeNames() {
		os.Remove(s.Dir.Node(n).AgentSocket())
	}
}

// start brings everything up, in the order in which it is needed. work ends with the cluster's life, children after that.
func (s *supervisor) start(work, children context.Context) error {
	ctx, cancel := context.WithTimeout(work, startTimeout)
	defer cancel()
	var admin pki.Pair
	var ca []byte
	if err := s.step("certificates and kubeconfig", func() (err error) {
		admin, ca, err = s.credentials()
		return err
	}); err != nil {
		return err
	}
	if err := seclude(s.Dir); err != nil {
		return err
	}
	bridge, err := makeFabric(s.params.FabricAddrs())
	if err != nil {
		return err
	}
	api, err := s.startAPI(children)
	if err != nil {
		return err
	}
	if err := s.step(fmt.Sprintf("%d node%s on one link", s.params.Nodes, plural(s.params.Nodes)), func() error { return s.makeHosts(bridge) }); err != nil {
		return err
	}
	s.client, err = kubernetes.NewForConfig(&rest.Config{
		Host: s.params.FabricURL(), UserAgent: "fairlead-node", QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca, CertData: admin.Cert, KeyData: admin.Key},
	})
	if err != nil {
		return fmt.Errorf("make API client: %w", err)
	}
	if err := s.step("API server answers", func() error { return s.awaitAPI(ctx, api) }); err != nil {
		return err
	}
	s.runner = newRunner(s.client, s.hosts, s.agents, s.count, s.Logger)
	if err := s.step("nodes registered", func() error { return s.register(ctx, work) }); err != nil {
		return err
	}
	return s.step("agents programmed, nodes ready", func() error { return s.startAgents(ctx, work, children) })
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// credentials makes the certificates and the kubeconfigs of the administrator and of the nodes.
func (s *supervisor) credentials() (admin pki.Pair, ca []byte, err error) {
	var addrs []netip.Addr
	for _, c := range s.params.ServiceCIDRs {
		addrs = append(addrs, c.Addr().Next())
	}
	addrs = append(addrs, bareAddrs(s.params.FabricAddrs())...)
	p, err := pki.Ensure(s.Dir.PKI(), pki.Options{Addresses: addrs, Names: []string{"kubernetes.default.svc." + s.params.Domain}})
	if err != nil {
		return admin, nil, err
	}
	if admin, err = p.Client("admin", "system:masters"); err != nil {
		return admin, nil, err
	}
	err = pki.WriteKubeconfig(s.Dir.Kubeconfig(), pki.Kubeconfig{Server: s.params.LocalURL(), CA: p.CA, Client: admin})
	if err != nil {
		return admin, nil, err
	}
	for _, name := range s.params.NodeNames() {
		node := s.Dir.Node(name)
		for _, dir := range []string{node.CNIConfDir(), node.CNICacheDir(), node.IPAM(), node.Pods()} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return admin, nil, fmt.Errorf("make node directory: %w", err)
			}
		}
		pair, err := p.Client("system:node:"+name, "system:nodes")
		if err != nil {
			return admin, nil, err
		}
		err = pki.WriteKubeconfig(node.Kubeconfig(), pki.Kubeconfig{Server: s.params.FabricURL(), CA: p.CA, Client: pair, User: name})
		if err != nil {
			return admin, nil, err
		}
	}
	return admin, p.CA, nil
}

// startAPI starts the API server on the fabric. It inherits its sockets, and so does every later one.
func (s *supervisor) startAPI(children context.Context) (*child, error) {
	inside, err := net.Listen("tcp", s.params.FabricEndpoint().String())
	if err != nil {
		return nil, fmt.Errorf("listen on the fabric: %w", err)
	}
	file, err := inside.(*net.TCPListener).File()
	if err != nil {
		return nil, fmt.Errorf("listen on the fabric: %w", err)
	}
	inside.Close() // the file is the socket that stays
	c := newChild("apiserver", []string{
		s.Server, "apiserver", "--state", string(s.Dir), "--listen-fds", "2",
		"--service-cidr", cluster.FormatCIDRs(s.params.ServiceCIDRs),
		"--pod-cidr", cluster.FormatCIDRs(s.params.PodCIDRs),
		"--advertise-address", s.params.FabricEndpoint().String(),
	}, s.Dir.Log("apiserver"), s.group.Child("apiserver"), s.Logger)
	c.files = []*os.File{s.Listener, file}
	s.keep(children, c)
	return c, nil
}

// keep runs a child until ctx ends.
func (s *supervisor) keep(ctx context.Context, c *child) {
	s.mu.Lock()
	s.children = append(s.children, c)
	s.mu.Unlock()
	s.keeping.Go(func() { c.run(ctx) })
}

// awaitAPI returns when the API server says that it is ready.
func (s *supervisor) awaitAPI(ctx context.Context, api *child) error {
	var last error
	for {
		if err := api.broken(); err != nil {
			return err
		}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		last = s.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(try).Error()
		cancel()
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the API server: %w; see %s", last, api.out)
		case <-time.After(pollAPI):
		}
	}
}

// makeHosts makes the nodes' network namespaces.
func (s *supervisor) makeHosts(bridge *netlink.Bridge) error {
	for i, name := range s.params.NodeNames() {
		addrs := s.params.NodeAddrs(i)
		ns, err := makeNode(name, s.Dir.NodeNetns(name), bridge, addrs, s.params.FabricAddrs())
		if err != nil {
			return err
		}
		h := &host{
			dir: s.Dir, node: s.Dir.Node(name), name: name, params: s.params, addrs: bareAddrs(addrs),
			netns: ns, group: s.group.Child(name), pause: s.Fairlead,
		}
		// The address leases and the configuration are of namespaces that are gone: the agent writes the configuration anew when the node
		// can carry pods again.
		if err := dropConfigs(h.node.CNIConfDir()); err != nil {
			return err
		}
		os.Remove(h.node.AgentSocket())
		h.network = newNetwork(h.node, filepath.Dir(s.Fairlead), ns, h.group.Child("cni"))
		if err := h.group.Child("cni").Make(); err != nil {
			return err
		}
		s.hosts[name] = h
		s.changed[name] = make(chan struct{}, 1)
	}
	return nil
}

// dropConfigs empties a CNI configuration directory.
func dropConfigs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty CNI configuration directory: %w", err)
	}
	for _, e := range entries {
		if err := os.Remove(dir + "/" + e.Name()); err != nil {
			return fmt.Errorf("empty CNI configuration directory: %w", err)
		}
	}
	return nil
}

// register makes the Node objects and their leases, takes the pods of an earlier run out of service, and begins to watch.
func (s *supervisor) register(ctx, work context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, s.params.Nodes)
	for i, name := range s.params.NodeNames() {
		n := newAPINode(s.client, s.hosts[name], s.Version, s.Logger)
		s.nodes[name] = n
		wg.Go(func() {
			_, err := n.register(ctx)
			errs[i] = errors.Join(err, n.renew(ctx))
		})
	}
	wg.Go(func() {
		if err := s.runner.start(work); err != nil {
			s.Logger.Error("pods not watched", "err", err)
		}
	})
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := s.runner.forget(ctx); err != nil {
		return err
	}
	s.runner.dropOldPodDirs()
	for name, n := range s.nodes {
		get := func() *corev1.Node {
			obj, ok, _ := s.runner.nodes.GetStore().GetByKey(name)
			if !ok {
				return nil
			}
			return obj.(*corev1.Node)
		}
		go n.run(work, get)
	}
	return s.runner.watchNodes(func(name string) {
		if n := s.nodes[name]; n != nil {
			poke(n.wake)
		}
	})
}

// startAgents starts the nodes' agents and returns when all nodes are ready.
func (s *supervisor) startAgents(ctx, work, children context.Context) error {
	ready := make(chan string, s.params.Nodes)
	agents := map[string]*child{}
	for _, name := range s.params.NodeNames() {
		agents[name] = s.agent(name)
		go s.watchNetwork(work, name, ready)
		s.keep(children, agents[name])
	}
	check := time.NewTicker(200 * time.Millisecond)
	defer check.Stop()
	for n := 0; n < s.params.Nodes; {
		select {
		case <-ready:
			n++
		case <-check.C:
			for _, a := range agents {
				if err := a.broken(); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return s.notReady()
		}
	}
	return nil
}

// notReady says which node is not ready and why.
func (s *supervisor) notReady() error {
	for _, name := range s.params.NodeNames() {
		if ok, why := s.nodes[name].state(); !ok {
			if err := s.agents.ready(context.Background(), name); err != nil {
				why = err.Error()
			}
			return fmt.Errorf("node %s did not become ready: %s; see %s", name, why, s.Dir.Log("agent-"+name))
		}
	}
	return errors.New("the cluster did not become ready in time")
}

// agent is the child that is a node's agent.
func (s *supervisor) agent(name string) *child {
	h := s.hosts[name]
	c := newChild("agent-"+name, append([]string{
		s.Fairlead, "agent", "--node", name, "--kubeconfig", h.node.Kubeconfig(), "--state", string(h.node),
		"--cni-conf-dir", h.node.CNIConfDir(), "--cluster-domain", s.params.Domain,
		"--dns-ip", joinAddrs(s.params.DNSAddrs()),
		"--service-cidr", cluster.FormatCIDRs(s.params.ServiceCIDRs),
		"--pod-cidr", cluster.FormatCIDRs(s.params.PodCIDRs),
		"--pod-fast-path=" + strconv.FormatBool(s.params.PodFastPath), "--pod-socket-lb=" + strconv.FormatBool(s.params.PodSocketLB),
	}, s.AgentFlags...), s.Dir.Log("agent-"+name), h.group.Child("agent"), s.Logger)
	c.netns = h.netns
	c.told = func() { poke(s.changed[name]) }
	return c
}

// networkRetry is how often CNI STATUS is asked again while it fails.
const networkRetry = time.Second

// watchNetwork keeps a node's readiness what CNI STATUS says it is. It asks when the configuration changes and when the agent starts or ends, and
// again and again only while the answer is no. When the answer is yes for the first time the node's pods may start.
func (s *supervisor) watchNetwork(ctx context.Context, name string, ready chan<- string) {
	h, n := s.hosts[name], s.nodes[name]
	watch, err := fsnotify.NewWatcher()
	if err == nil {
		err = watch.Add(h.node.CNIConfDir())
	}
	if err != nil {
		s.Logger.Error("CNI configuration not watched", "node", name, "err", err)
		return
	}
	defer watch.Close()
	opened, failing, good := false, false, time.Time{}
	for ctx.Err() == nil {
		err := s.networkStatus(ctx, h)
		switch {
		case err == nil:
			if !opened {
				opened = true
				s.openNode(ctx, h)
				ready <- name
			} else if failing {
				s.runner.hasten(name)
			}
			good = time.Now()
			n.set(true, "")
		case !opened || time.Since(good) > networkGrace:
			n.set(false, err.Error())
		}
		failing = err != nil
		var retry <-chan time.Time
		if failing && (opened || !errors.Is(err, errNoCNI)) {
			retry = time.After(networkRetry)
		}
		select {
		case <-ctx.Done():
		case <-watch.Events:
		case <-watch.Errors:
		case <-s.changed[name]:
		case <-retry:
		}
	}
}

func (s *supervisor) networkStatus(ctx context.Context, h *host) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return h.network.status(ctx)
}

// openNode gives back what an earlier run left in the node's network, and lets its pods start.
func (s *supervisor) openNode(ctx context.Context, h *host) {
	if err := h.network.forget(ctx); err != nil {
		s.Logger.Warn("leftovers of an earlier run not given back", "node", h.name, "err", err)
	}
	s.Logger.Info("node ready", "node", h.name)
	s.runner.open(ctx, h.name)
}

// status is what the control socket tells.
func (s *supervisor) status() *cluster.Status {
	s.mu.Lock()
	children, ready := append([]*child(nil), s.children...), s.ready
	s.mu.Unlock()
	st := &cluster.Status{
		Params: s.params, Supervisor: os.Getpid(), Started: s.started, Ready: ready, Counters: s.count.snapshot(),
	}
	for _, c := range children {
		st.Children = append(st.Children, c.show())
	}
	if !ready {
		return st // what follows is still being made
	}
	for _, name := range s.params.NodeNames() {
		h := s.hosts[name]
		ok, why := s.nodes[name].state()
		st.Nodes = append(st.Nodes, cluster.NodeStatus{Name: name, Addrs: h.addrs, Ready: ok, Why: why, NetNS: h.netns.Path()})
	}
	st.Pods = s.runner.status()
	return st
}

// child finds a child by name.
func (s *supervisor) child(name string) (*child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, c := range s.children {
		if c.name == name {
			return c, nil
		}
		names = append(names, c.name)
	}
	return nil, fmt.Errorf("there is no process %q; there are %s", name, strings.Join(names, ", "))
}

// Inherited takes over the descriptors that fairlead up starts the supervisor with: the progress pipe, the API server's listener and the
// lock. They must not reach the cluster's processes by accident: an inherited lock would outlive the supervisor.
func Inherited() (progress, listener, lock *os.File, err error) {
	var files [3]*os.File
	for i, name := range []string{"progress", "listener", "lock"} {
		fd := 3 + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, nil, nil, fmt.Errorf("no %s is inherited: this command is started by fairlead up", name)
		}
		unix.CloseOnExec(fd)
		files[i] = os.NewFile(uintptr(fd), name)
	}
	return files[0], files[1], files[2], nil
}
