// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cluster"
	_ "github.com/fairlead/fairlead/lab/pause" // its init is the pause command
	"github.com/fairlead/fairlead/linux"
)

// serverProgram is the program that up starts; it has to be in the directory of this one.
const serverProgram = "fairlead-server"

// stateFlag adds --state, with its default from the environment.
func stateFlag(f *pflag.FlagSet) *string {
	state := cluster.DefaultDir
	if s := os.Getenv(stateEnv); s != "" {
		state = s
	}
	return f.String("state", state, "state `directory` of the cluster (environment: "+stateEnv+")")
}

func newUpCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a Kubernetes cluster of several nodes on this machine",
		Long: `Start a Kubernetes cluster of several nodes on this machine: each node is a network namespace, each pod
a process of the machine in namespaces of its own. Nothing is added to the machine's own network but one listening port on
its loopback address; everything else is in the state directory and ends with the cluster.

up stays until Ctrl-C and then takes the cluster down; with --detach it returns when the cluster is ready. The state
directory keeps all objects: the next up brings the same cluster back, with the flags that it had. --api-port,
--pod-fast-path and --pod-socket-lb may be others each time.`,
		Example: "  fairlead up\n  fairlead up --nodes 5 --detach\n  fairlead up --service-cidr 10.96.0.0/16,fd00:96::/112 --pod-cidr 10.244.0.0/16,fd00:244::/48",
		Args:    cobra.NoArgs,
	}
	d := cluster.DefaultParams()
	f := c.Flags()
	state := stateFlag(f)
	nodes := f.Int("nodes", d.Nodes, "`number` of nodes")
	service := f.String("service-cidr", cluster.FormatCIDRs(d.ServiceCIDRs), "`ranges` of ClusterIPs: one CIDR, or one of each family with a comma")
	pod := f.String("pod-cidr", cluster.FormatCIDRs(d.PodCIDRs), "`ranges` of pod addresses, families as in --service-cidr")
	node := f.String("node-cidr", cluster.FormatCIDRs(d.NodeCIDRs), "`ranges` of node addresses, families as in --service-cidr")
	port := f.Uint16("api-port", d.APIPort, "`port` of the Kubernetes API on 127.0.0.1")
	domain := f.String("cluster-domain", d.Domain, "DNS `domain` of the cluster")
	fast := f.Bool("pod-fast-path", d.PodFastPath, "lead TCP between pods past netfilter, and answer their questions to the DNS in the kernel")
	socket := f.Bool("pod-socket-lb", d.PodSocketLB, "lead pods' TCP connections to Services to an endpoint when they are made")
	detach := f.Bool("detach", false, "return when the cluster is ready")
	c.RunE = func(c *cobra.Command, _ []string) error {
		u := up{state: *state, detach: *detach, out: c.OutOrStdout(), err: c.ErrOrStderr()}
		u.params = cluster.Params{Nodes: *nodes, APIPort: *port, Domain: *domain, PodFastPath: *fast, PodSocketLB: *socket}
		for _, l := range []struct {
			flag string
			text string
			into *[]netip.Prefix
		}{{"service-cidr", *service, &u.params.ServiceCIDRs}, {"pod-cidr", *pod, &u.params.PodCIDRs}, {"node-cidr", *node, &u.params.NodeCIDRs}} {
			ps, err := cluster.ParseCIDRs(l.text)
			if err != nil {
				return fmt.Errorf("--%s: %w", l.flag, err)
			}
			*l.into = ps
		}
		f.Visit(func(f *pflag.Flag) { u.given = append(u.given, f.Name) })
		return u.run(c.Context())
	}
	return c
}

// up is one start of a cluster.
type up struct {
	state  string
	params cluster.Params
	given  []string // names of the flags that the user gave
	detach bool
	out    io.Writer
	err    io.Writer

	dir     cluster.Dir
	created bool // the state directory is new
	group   cluster.ControlGroup
	server  string
	began   time.Time
}

// run checks everything before it makes anything, starts the cluster, and, unless it is to be left alone, takes it down in the end.
func (u *up) run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, endings()...)
	defer stop()
	u.began = time.Now()
	if err := u.check(ctx); err != nil {
		return err
	}
	if err := u.sweepKilled(ctx); err != nil {
		return err
	}
	listener, err := u.listen()
	if err != nil {
		return err
	}
	defer listener.Close()
	lock, err := u.claim(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := u.mend(); err != nil {
		return u.fail(err)
	}
	s, err := u.start(listener, lock)
	if err != nil {
		return u.fail(err)
	}
	// The supervisor has its own copies. The lock and the port must not outlive it.
	listener.Close()
	lock.Close()
	if err := u.follow(ctx, s); err != nil {
		s.kill()
		return u.fail(err)
	}
	u.next()
	if u.detach {
		return nil
	}
	return u.stay(ctx, s)
}

// endings are the signals that end a start, or take the cluster down. A terminal that is closed sends one of them, which nohup has programs ignore.
func endings() []os.Signal {
	all := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		all = append(all, syscall.SIGHUP)
	}
	return all
}

// check finds out whether a cluster can be started, and makes nothing.
func (u *up) check(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("up needs root, to make network namespaces; run it with sudo")
	}
	var err error
	if u.dir, err = cluster.Open(u.state); err != nil {
		return err
	}
	if err := ours(u.dir); err != nil {
		return err
	}
	if err := u.settle(); err != nil {
		return err
	}
	if err := running(ctx, u.dir); err != nil {
		return err
	}
	if u.server, err = beside(serverProgram); err != nil {
		return err
	}
	if err := linux.Check(ctx); err != nil {
		return err
	}
	if u.group, err = u.dir.ControlGroup(); err != nil {
		return err
	}
	u.done("machine checked", time.Since(u.began))
	return nil
}

// maxSocketPath is the longest path of a UNIX socket that every program can use.
const maxSocketPath = 107

// ours refuses a directory that holds something else, or that cannot hold a cluster.
func ours(dir cluster.Dir) error {
	if longest := dir.Node("n" + strconv.Itoa(cluster.MaxNodes)).AgentSocket(); len(longest) > maxSocketPath {
		return fmt.Errorf("%s is %d bytes too long for the sockets in it; choose a shorter --state", dir, len(longest)-maxSocketPath)
	}
	entries, err := os.ReadDir(string(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s cannot be a state directory: %w; choose another with --state", dir, err)
	}
	if _, err := os.Stat(dir.RecordPath()); err == nil {
		return nil
	}
	for _, e := range entries {
		// What a start that was killed early may leave.
		if !slices.Contains([]string{"lock", "logs", "run", "pki", "netns", "nodes", "cluster.json.new"}, e.Name()) {
			return fmt.Errorf("%s is not a state directory of fairlead: it has a file %s; choose another with --state", dir, e.Name())
		}
	}
	return nil
}

// settle takes the parameters that the user did not give from the record of an earlier start, and checks them.
func (u *up) settle() error {
	record, err := u.dir.ReadRecord()
	switch {
	case errors.Is(err, cluster.ErrNoCluster):
		if !slices.Contains(u.given, "node-cidr") {
			u.params = u.params.Complete()
		}
		return u.params.Validate()
	case err != nil:
		return err
	}
	old, is := record.Params, &u.params
	for flag, keep := range map[string]func(){
		"nodes":          func() { is.Nodes = old.Nodes },
		"service-cidr":   func() { is.ServiceCIDRs = old.ServiceCIDRs },
		"pod-cidr":       func() { is.PodCIDRs = old.PodCIDRs },
		"node-cidr":      func() { is.NodeCIDRs = old.NodeCIDRs },
		"cluster-domain": func() { is.Domain = old.Domain },
		"api-port":       func() { is.APIPort = old.APIPort },
		"pod-fast-path":  func() { is.PodFastPath = old.PodFastPath },
		"pod-socket-lb":  func() { is.PodSocketLB = old.PodSocketLB },
	} {
		if !slices.Contains(u.given, flag) {
			keep()
		}
	}
	if err := u.params.Validate(); err != nil {
		return err
	}
	if d := u.params.Differences(old); len(d) > 0 {
		return fmt.Errorf("the cluster in %s was made with %s; leave the flag out, or remove the cluster first with fairlead down --purge%s",
			u.dir, strings.Join(d, ", "), stateHint(u.dir))
	}
	return nil
}

// stateHint is the flag that names the directory, when it needs naming.
func stateHint(dir cluster.Dir) string {
	if string(dir) == cluster.DefaultDir {
		return ""
	}
	return " --state " + string(dir)
}

// running returns an error when a cluster runs from the directory.
func running(ctx context.Context, dir cluster.Dir) error {
	if _, err := os.Stat(dir.LockPath()); err != nil {
		return nil
	}
	lock, err := claimLock(ctx, dir)
	if err != nil {
		return err
	}
	return lock.Close()
}

// dyingTime is how long a lock without anybody behind it is waited for.
const dyingTime = 2 * time.Second

// claimLock takes the directory's lock. A supervisor that was killed a moment ago may still hold it: the kernel gives a process's files back a little after
// its end can be seen. So a lock whose holder does not answer is asked for again.
func claimLock(ctx context.Context, dir cluster.Dir) (*os.File, error) {
	for end := time.Now().Add(dyingTime); ; time.Sleep(10 * time.Millisecond) {
		lock, err := dir.Lock()
		if !errors.Is(err, cluster.ErrRunning) {
			return lock, err
		}
		ask, cancel := context.WithDeadline(ctx, end)
		_, err = dir.Client().Status(ask)
		cancel()
		if !errors.Is(err, cluster.ErrNotRunning) && !errors.Is(err, cluster.ErrNoReply) || time.Now().After(end) {
			return nil, alreadyRuns(dir)
		}
	}
}

func alreadyRuns(dir cluster.Dir) error {
	pid := ""
	if r, err := dir.ReadRecord(); err == nil && r.Supervisor != 0 {
		pid = " (pid " + strconv.Itoa(r.Supervisor) + ")"
	}
	return fmt.Errorf("a cluster already runs from %s%s; see fairlead status%s, or take it down with fairlead down%s",
		dir, pid, stateHint(dir), stateHint(dir))
}

// beside finds a program in the directory of this one.
func beside(name string) (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	path := filepath.Join(filepath.Dir(own), name)
	if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s is not in %s, where fairlead is; build both with make build", name, filepath.Dir(own))
	}
	return path, nil
}

// listen opens the API's port on the machine's loopback address: the one thing of the cluster in the machine's own network.
func (u *up) listen() (*os.File, error) {
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), u.params.APIPort)
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr))
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("port %d on 127.0.0.1 is taken; end what listens there, or choose another port with --api-port", u.params.APIPort)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for the API: %w", err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("listen for the API: %w", err)
	}
	return f, nil
}

// claim makes the state directory and takes its lock.
func (u *up) claim(ctx context.Context) (*os.File, error) {
	var err error
	if u.created, err = u.dir.Make(); err != nil {
		return nil, u.fail(err)
	}
	lock, err := claimLock(ctx, u.dir)
	if err != nil {
		// Somebody else runs a cluster in the directory that was not there a moment ago.
		return nil, err
	}
	return lock, nil
}

// sweepKilled removes what is left of a cluster that ran from an existing state directory and was killed. It comes before the port is opened, because an API
// server that outlived its supervisor holds it.
func (u *up) sweepKilled(ctx context.Context) error {
	if _, err := os.Stat(string(u.group)); err != nil {
		return nil
	}
	began := time.Now()
	lock, err := claimLock(ctx, u.dir)
	switch {
	case errors.Is(err, cluster.ErrNoCluster):
		// The directory was removed under a running cluster.
		_, err = removeLeft(u.dir, u.group)
	case err == nil:
		_, err = removeLeft(u.dir, u.group)
		lock.Close()
	}
	if err == nil {
		u.done("remains of a killed cluster removed", time.Since(began))
	}
	return err
}

// mend makes sure that nothing of an earlier cluster is left, and writes down where the new one is to be found, before there is anything of it.
func (u *up) mend() error {
	if _, err := removeLeft(u.dir, u.group); err != nil {
		return err
	}
	record := cluster.Record{Params: u.params, ControlGroup: string(u.group)}
	if err := u.dir.WriteRecord(record); err != nil {
		return err
	}
	if err := u.group.Child("control").Make(); err != nil {
		return err
	}
	if _, err := os.Stat(string(u.group.Child("cgroup.kill"))); err != nil {
		return errors.New("this kernel cannot kill a control group as a whole; use Linux 5.14 or newer")
	}
	return nil
}

// removeLeft removes all processes and control groups of a cluster whose supervisor does not run, and the sockets that nobody listens on. The
// caller holds the lock.
func removeLeft(dir cluster.Dir, group cluster.ControlGroup) (left bool, err error) {
	groups := []cluster.ControlGroup{group}
	if r, err := dir.ReadRecord(); err == nil && r.ControlGroup != "" && r.ControlGroup != string(group) &&
		filepath.Base(r.ControlGroup) == dir.ControlGroupName() {
		groups = append(groups, cluster.ControlGroup(r.ControlGroup))
	}
	for _, g := range groups {
		if _, err := os.Stat(string(g)); err == nil {
			left = true
		}
		if err := g.Remove(20 * time.Second); err != nil {
			return left, err
		}
	}
	sockets, _ := filepath.Glob(dir.Path("nodes", "*", "agent.sock"))
	for _, s := range append(sockets, dir.Socket()) {
		os.Remove(s)
	}
	return left, nil
}

// supervisor is the started cluster as up sees it.
type supervisor struct {
	cmd      *exec.Cmd
	progress *os.File
	group    cluster.ControlGroup
	ended    chan struct{}
}

// start starts the supervisor in a network namespace, a mount namespace, a session and a control group of its own.
func (u *up) start(listener, lock *os.File) (*supervisor, error) {
	group, err := u.group.Child("control").Open()
	if err != nil {
		return nil, err
	}
	defer group.Close()
	if err := os.MkdirAll(filepath.Dir(u.dir.Log("cluster")), 0o700); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	log, err := os.OpenFile(u.dir.Log("cluster"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start cluster: %w", err)
	}
	defer w.Close()
	cmd := exec.Command(u.server, "cluster", "--state", string(u.dir), "--version", version)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w, listener, lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd()),
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
	}
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, fmt.Errorf("start %s: %w", u.server, err)
	}
	s := &supervisor{cmd: cmd, progress: r, group: u.group, ended: make(chan struct{})}
	go func() {
		cmd.Wait()
		close(s.ended)
	}()
	return s, nil
}

// kill ends everything at once.
func (s *supervisor) kill() {
	s.group.Kill()
	<-s.ended
}

// errInterrupted is the end of a start by Ctrl-C.
var errInterrupted = errors.New("interrupted; nothing of the cluster is left running")

// follow shows the progress until the cluster is ready.
func (u *up) follow(ctx context.Context, s *supervisor) error {
	defer s.progress.Close()
	stop := context.AfterFunc(ctx, func() { s.progress.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	lines := json.NewDecoder(s.progress)
	for {
		var p cluster.Progress
		err := lines.Decode(&p)
		switch {
		case ctx.Err() != nil:
			return errInterrupted
		case err != nil:
			<-s.ended
			return fmt.Errorf("the supervisor ended before the cluster was ready (%s)%s", s.cmd.ProcessState, u.logTail())
		case p.Error != "":
			return fmt.Errorf("the cluster did not start: %s", p.Error)
		case p.Ready:
			return nil
		default:
			u.done(p.Step, time.Duration(p.Seconds*float64(time.Second)))
		}
	}
}

// logTail is the last line of the supervisor's log.
func (u *up) logTail() string {
	b, err := os.ReadFile(u.dir.Log("cluster"))
	if err != nil || len(b) == 0 {
		return ""
	}
	text := strings.TrimSpace(string(b))
	return ": " + text[strings.LastIndexByte(text, '\n')+1:]
}

// fail removes what this start has made, and returns why it failed. A state directory that was there before stays.
func (u *up) fail(err error) error {
	var left error
	if u.group != "" {
		_, left = removeLeft(u.dir, u.group)
	}
	if u.created {
		left = errors.Join(left, os.RemoveAll(string(u.dir)))
	}
	return errors.Join(err, left)
}

// done shows a step that has been done.
func (u *up) done(words string, took time.Duration) {
	fmt.Fprintf(u.out, "  ok  %-38s %5.1f s\n", words, took.Seconds())
}

// next says what to type next.
func (u *up) next() {
	own, _ := os.Executable()
	hint := stateHint(u.dir)
	plural := "s"
	if u.params.Nodes == 1 {
		plural = ""
	}
	fmt.Fprintf(u.out, `
The cluster is ready: %d node%s, %.1f s. Next:

  export KUBECONFIG=%s
  %s kubectl get nodes,services -A
  %s kubectl apply -f examples/shop
  %s status%s
  %s down%s
`, u.params.Nodes, plural, time.Since(u.began).Seconds(), u.dir.Kubeconfig(), u.server, u.server, own, hint, own, hint)
	if !u.detach {
		fmt.Fprintln(u.out, "\nCtrl-C here takes it down; its objects stay in", string(u.dir)+".")
	}
}

// stay waits for Ctrl-C, which ends ctx, or for the end of the supervisor, and takes down what is there. A second Ctrl-C does not wait for anybody.
func (u *up) stay(ctx context.Context, s *supervisor) error {
	select {
	case <-ctx.Done():
	case <-s.ended:
		// Somebody used fairlead down, or killed it.
		if s.cmd.ProcessState.Success() {
			fmt.Fprintln(u.out, "The cluster was taken down.")
			return u.sweep()
		}
		err := fmt.Errorf("the supervisor ended (%s); what was left of the cluster has been removed%s", s.cmd.ProcessState, u.logTail())
		return errors.Join(u.sweep(), err)
	}
	again := make(chan os.Signal, 1)
	signal.Notify(again, endings()...)
	defer signal.Stop(again)
	began := time.Now()
	fmt.Fprintln(u.out, "\nTaking the cluster down; Ctrl-C again does it at once.")
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-again:
		s.kill()
	}
	if err := u.sweep(); err != nil {
		return err
	}
	u.done("cluster down; its objects are kept", time.Since(began))
	return nil
}

// sweep removes what an ended supervisor left, unless another start has taken over.
func (u *up) sweep() error {
	lock, err := u.dir.Lock()
	if errors.Is(err, cluster.ErrRunning) || errors.Is(err, cluster.ErrNoCluster) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	_, err = removeLeft(u.dir, u.group)
	return err
}

func newPauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "pause",
		Short:  "Hold a pod's namespaces (started by the node runner)",
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("pause is a pod's first process; it is started by the node runner")
		},
	}
}
