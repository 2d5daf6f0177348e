// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/fairlead/fairlead/cluster"
	"github.com/fairlead/fairlead/linux"
)

// errNoCNI means that the agent has not written the node's CNI configuration yet. Kubernetes users know the words.
var errNoCNI = errors.New("cni plugin not initialized: the node's agent has not written its configuration yet")

// podInterface is the name of a pod's network interface.
const podInterface = "eth0"

// network is a node's pod network as a container runtime sees it: the CNI configuration in its directory, and the plugin that
// it names, run inside the node's network namespace.
type network struct {
	dir cluster.NodeDir
	cni *libcni.CNIConfig
}

// newNetwork uses the plugins in pluginDir.
func newNetwork(dir cluster.NodeDir, pluginDir string, node *linux.NetNS, group cluster.ControlGroup) *network {
	return &network{
		dir: dir,
		cni: libcni.NewCNIConfigWithCacheDir([]string{pluginDir}, dir.CNICacheDir(), &nodeExec{node: node, group: group}),
	}
}

// nodeExec runs CNI plugins inside a node's network namespace and control group.
type nodeExec struct {
	version.PluginDecoder
	node  *linux.NetNS
	group cluster.ControlGroup
}

var _ invoke.Exec = (*nodeExec)(nil)

// FindInPath implements invoke.Exec.
func (*nodeExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin implements invoke.Exec.
func (e *nodeExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, path)
	c.Env, c.Stdin, c.Stdout, c.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	if e.group != "" {
		g, err := e.group.Open()
		if err != nil {
			return nil, err
		}
		defer g.Close()
		c.SysProcAttr = inGroup(g)
	}
	if err := e.node.Do(c.Start); err != nil {
		return nil, fmt.Errorf("start CNI plugin: %w", err)
	}
	err := c.Wait()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("run CNI plugin: %w", ctx.Err())
	}
	var said types.Error
	if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		return nil, &said
	}
	return nil, fmt.Errorf("run CNI plugin: %w: %s", err, strings.TrimSpace(stderr.String()))
}

// config loads the configuration that sorts first in the node's directory.
func (n *network) config() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(n.dir.CNIConfDir(), []string{".conflist"})
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	if len(files) == 0 {
		return nil, errNoCNI
	}
	first := files[0]
	for _, f := range files[1:] {
		first = min(first, f)
	}
	list, err := libcni.ConfListFromFile(first)
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	return list, nil
}

// status asks the plugin whether the node can take pods.
func (n *network) status(ctx context.Context) error {
	list, err := n.config()
	if err != nil {
		return err
	}
	return n.cni.GetStatusNetworkList(ctx, list)
}

// attachment identifies one sandbox to the plugin.
type attachment struct {
	id, netns            string
	namespace, name, uid string
}

func (a attachment) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: a.id,
		NetNS:       a.netns,
		IfName:      podInterface,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", a.namespace},
			{"K8S_POD_NAME", a.name},
			{"K8S_POD_INFRA_CONTAINER_ID", a.id},
			{"K8S_POD_UID", a.uid},
		},
	}
}

// add wires a sandbox and returns its addresses, the primary family first as the plugin gives them.
func (n *network) add(ctx context.Context, a attachment) ([]netip.Addr, error) {
	list, err := n.config()
	if err != nil {
		return nil, err
	}
	result, err := n.cni.AddNetworkList(ctx, list, a.runtimeConf())
	if err != nil {
		return nil, err
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("read CNI result: %w", err)
	}
	var addrs []netip.Addr
	for _, ip := range r.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	if len(addrs) == 0 {
		return nil, errors.New("the CNI plugin gave the pod no address")
	}
	return addrs, nil
}

// check asks the plugin whether a sandbox is still wired as add left it.
func (n *network) check(ctx context.Context, a attachment) error {
	list, err := n.config()
	if err != nil {
		return err
	}
	return n.cni.CheckNetworkList(ctx, list, a.runtimeConf())
}

// del takes a sandbox's wiring back. One that is not wired is fine.
func (n *network) del(ctx context.Context, a attachment) error {
	list, err := n.config()
	if err != nil {
		return err
	}
	return n.cni.DelNetworkList(ctx, list, a.runtimeConf())
}

// forget makes the plugin give back everything but the given attachments, and drops the cached results of a run that left without
// saying so.
func (n *network) forget(ctx context.Context) error {
	if err := os.RemoveAll(n.dir.CNICacheDir()); err != nil {
		return fmt.Errorf("drop CNI cache: %w", err)
	}
	list, err := n.config()
	if err != nil {
		return err
	}
	return n.cni.GCNetworkList(ctx, list, &libcni.GCArgs{})
}
