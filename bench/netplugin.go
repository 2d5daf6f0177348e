// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// debianPlugins is where Debian's containernetworking-plugins are.
const debianPlugins = "/usr/lib/cni"

// attacher is a way to attach pods to a node, started as a container runtime starts it: a process of its own for every verb, in the node's namespace.
type attacher struct {
	name string
	node *host
	// command is the process of a verb for the pod with this number and namespace, not started.
	command func(verb string, pod int, netns string) *exec.Cmd
	leases  string      // directory of the addresses held, of an agent's plugin
	agent   *process    // and the agent
	socket  string      // where it is asked
	starts  chan func() // run on a thread in the node's namespace
	closers []func()
}

// newAttacher has a thread in the node's namespace that starts what is to run there.
func newAttacher(name string, node *host) (*attacher, error) {
	a := &attacher{name: name, node: node, starts: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ready <- unix.Setns(node.Fd(), unix.CLONE_NEWNET)
		for start := range a.starts {
			start()
		}
	}()
	return a, <-ready
}

func (a *attacher) close() {
	if a == nil {
		return
	}
	for i := len(a.closers) - 1; i >= 0; i-- {
		a.closers[i]()
	}
	close(a.starts)
	a.node.close()
}

// pluginLimit is how long a verb may take.
const pluginLimit = 30 * time.Second

// run runs a verb, and returns what it printed and how long it took from starting the process to its end.
func (a *attacher) run(verb string, pod int, netns string) ([]byte, time.Duration, error) {
	c := a.command(verb, pod, netns)
	var out, complaint bytes.Buffer
	c.Stdout, c.Stderr = &out, &complaint
	var begin time.Time
	started := make(chan error)
	a.starts <- func() {
		begin = time.Now()
		started <- c.Start()
	}
	if err := <-started; err != nil {
		return nil, 0, fmt.Errorf("start %s: %w", a.name, err)
	}
	timer := time.AfterFunc(pluginLimit, func() { _ = c.Process.Kill() })
	err := c.Wait()
	took := time.Since(begin)
	timer.Stop()
	if err != nil {
		return nil, 0, fmt.Errorf("%s of pod %d by %s: %w: %s%s", verb, pod, a.name, err, &out, &complaint)
	}
	return out.Bytes(), took, nil
}

// plugin is the command of a CNI plugin with its configuration.
func plugin(path string, conf []byte) func(verb string, pod int, netns string) *exec.Cmd {
	return func(verb string, pod int, netns string) *exec.Cmd {
		c := exec.Command(path)
		c.Stdin = bytes.NewReader(conf)
		c.Env = []string{"CNI_COMMAND=" + verb, fmt.Sprintf("CNI_CONTAINERID=%064d", pod), "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=" + debianPlugins,
			fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-%d;K8S_POD_UID=%d", pod, pod), "PATH=" + os.Getenv("PATH")}
		return c
	}
}

// reference is a reference plugin with host-local, on a node of its own, without masquerading: the least that it does.
func reference(s *suite, name string, node *host, cidrs ...string) (*attacher, error) {
	a, err := newAttacher(name+" + host-local", node)
	if err != nil {
		return a, err
	}
	dir, err := os.MkdirTemp(s.dir, name+"-")
	if err != nil {
		return a, fmt.Errorf("make directory of %s: %w", name, err)
	}
	var ranges []any
	routes := []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}}[:len(cidrs)]
	for _, cidr := range cidrs {
		ranges = append(ranges, []any{map[string]any{"subnet": cidr}})
	}
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "bench", "type": name, "bridge": "cni0", "isGateway": true,
		"ipam": map[string]any{"type": "host-local", "dataDir": dir, "ranges": ranges, "routes": routes},
	})
	if err != nil {
		return a, fmt.Errorf("encode configuration of %s: %w", name, err)
	}
	a.command = plugin(filepath.Join(debianPlugins, name), conf)
	return a, nil
}

// bareFloor is the program in floor/.
func bareFloor(s *suite, node *host, dual bool) (*attacher, error) {
	a, err := newAttacher("floor", node)
	if err != nil {
		return a, err
	}
	a.command = func(verb string, pod int, netns string) *exec.Cmd {
		name := fmt.Sprint("pod", pod)
		if verb == "DEL" {
			return exec.Command(s.programs.floor, "del", name)
		}
		argv := []string{"add", name, netns, fmt.Sprintf("10.129.%d.%d", pod/250, 2+pod%250)}
		if dual {
			argv = append(argv, fmt.Sprintf("fd00:129::%x", 2+pod))
		}
		return exec.Command(s.programs.floor, argv...)
	}
	return a, nil
}

// network is a cluster for Fairlead's pod network, with no Services to speak of.
type network struct {
	*world
	names []string
}

func newNetwork(ctx context.Context, s *suite, name string) (*network, error) {
	w, err := newWorld(ctx, s.programs, filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	return &network{world: w}, w.grow(ctx, 10)
}

// attacher makes a node with an agent.
func (n *network) attacher(ctx context.Context, s *suite, number int, further []string, flags ...string) (*attacher, error) {
	node, err := newHost()
	if err != nil {
		return nil, err
	}
	return n.attacherOn(ctx, s, node, number, further, flags...)
}

// attacherOn makes a host a node with an agent, and waits until the agent has written the CNI configuration, which says that the node can deliver. Its pods are attached
// as that configuration says. Its pods have addresses of further ranges too. The host is closed with the attacher, which is not nil.
func (n *network) attacherOn(ctx context.Context, s *suite, node *host, number int, further []string, flags ...string) (_ *attacher, err error) {
	name := fmt.Sprint("fairlead-", number)
	a, err := newAttacher("fairlead", node)
	if err != nil {
		return a, err
	}
	a.closers = append(a.closers, func() { n.fabric.remove(fabricPort(number)) })
	n.names = append(n.names, name)
	if err := errors.Join(n.join(node, number), n.addNode(ctx, name, nodeAddr(number), append([]string{nodeCIDR(number)}, further...)...), n.keepNodes(ctx, n.names...)); err != nil {
		return a, err
	}
	dir, err := os.MkdirTemp(n.dir, name+"-")
	if err != nil {
		return a, fmt.Errorf("make directory of %s: %w", name, err)
	}
	argv, err := fairleadCommand(&rig{name: name, w: n.world}, dir, true)
	if err != nil {
		return a, err
	}
	agent, err := start(node, anyCPU, dir, name, append(argv, flags...)...)
	if err != nil {
		return a, err
	}
	a.closers = append(a.closers, agent.stop)
	a.agent, a.socket = agent, filepath.Join(dir, "state", "agent.sock")
	var list struct {
		CNIVersion string
		Name       string
		Plugins    []map[string]any
	}
	err = agent.until(ctx, time.Minute, 10*time.Millisecond, func() error {
		text, err := os.ReadFile(filepath.Join(dir, "cni", "10-fairlead.conflist"))
		if err == nil {
			err = json.Unmarshal(text, &list)
		}
		if err == nil && len(list.Plugins) != 1 {
			err = fmt.Errorf("%d plugins in the configuration, want one", len(list.Plugins))
		}
		return err
	})
	if err != nil {
		return a, fmt.Errorf("wait for the CNI configuration of %s: %w", name, err)
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	a.leases, _ = conf["dataDir"].(string)
	text, err := json.Marshal(conf)
	if err != nil {
		return a, fmt.Errorf("encode configuration: %w", err)
	}
	a.command = plugin(s.programs.fairleadCNI, text)
	return a, nil
}
