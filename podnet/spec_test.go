// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/testnet"
)

// specVersions are those of the CNI specification that the plugin takes.
var specVersions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// debianPlugins is where Debian's containernetworking-plugins are: the reference plugins, which know no version after 1.0.0 there.
const debianPlugins = "/usr/lib/cni"

// containerRuntime is what a container runtime does: libcni, with a cache, and the plugin as it is shipped.
type containerRuntime struct {
	n *node
	*libcni.CNIConfig
	list *libcni.NetworkConfigList
	ran  []string // the plugins and verbs, in order
}

// runtime makes one for the node's network with further plugins before and after, each an object of the list.
func (n *node) runtime(specVersion string, before, after []map[string]any) *containerRuntime {
	n.t.Helper()
	own := maps.Clone(n.conf)
	delete(own, "cniVersion")
	delete(own, "name")
	text, err := json.Marshal(map[string]any{"cniVersion": specVersion, "name": n.conf["name"], "plugins": append(append(before, own), after...)})
	if err != nil {
		n.t.Fatal(err)
	}
	r := &containerRuntime{n: n}
	if r.list, err = libcni.ConfListFromBytes(text); err != nil {
		n.t.Fatal(err)
	}
	r.CNIConfig = libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(shippedPlugin(n.t)), debianPlugins}, n.t.TempDir(), r)
	return r
}

var _ invoke.Exec = (*containerRuntime)(nil)

// FindInPath implements invoke.Exec.
func (r *containerRuntime) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// Decode implements invoke.Exec.
func (r *containerRuntime) Decode(text []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(text)
}

// ExecPlugin implements invoke.Exec: as invoke.RawExec does, in the node's namespace.
func (r *containerRuntime) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, path)
	c.Env, c.Stdin, c.Stdout, c.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	for _, e := range environ {
		if verb, ok := strings.CutPrefix(e, "CNI_COMMAND="); ok {
			r.ran = append(r.ran, verb+" "+filepath.Base(path))
		}
	}
	if err := r.n.start(c); err != nil {
		return nil, err
	}
	if err := c.Wait(); err != nil {
		said := &types.Error{}
		if jsonErr := json.Unmarshal(stdout.Bytes(), said); jsonErr != nil || said.Msg == "" {
			return nil, fmt.Errorf("%w: %s %s", err, &stdout, &stderr)
		}
		return nil, said
	}
	return stdout.Bytes(), nil
}

// of is what the runtime says of a pod.
func (r *containerRuntime) of(p *pod) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.id, NetNS: p.NS.Path(), IfName: "eth0",
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", p.id}, {"K8S_POD_UID", "uid-" + p.id}},
		CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}},
	}
}

// TestRuntime goes through the life of two pods as a container runtime does it, in each version of the specification: every verb that the version
// has, also those that come too early, too late and twice, and what the runtime keeps in its cache.
func TestRuntime(t *testing.T) {
	for _, v := range specVersions {
		t.Run(v, func(t *testing.T) {
			n := newNode(t, dual...)
			n.conf["dns"] = map[string]any{"nameservers": []string{"10.96.0.10"}, "search": []string{"svc.cluster.local"}}
			r := n.runtime(v, nil, nil)
			ctx := t.Context()
			a, b := n.pod("a"), n.pod("b")
			if info, err := r.GetVersionInfo(ctx, "fairlead"); err != nil || fmt.Sprint(info.SupportedVersions()) != fmt.Sprint(specVersions) {
				t.Errorf("VERSION: %v, %v", info, err)
			}
			if _, err := r.ValidateNetworkList(ctx, r.list); err != nil {
				t.Errorf("validate: %v", err)
			}
			if err := r.GetStatusNetworkList(ctx, r.list); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			if err := r.DelNetworkList(ctx, r.list, r.of(a)); err != nil {
				t.Errorf("DEL before ADD: %v", err)
			}
			result, err := r.AddNetworkList(ctx, r.list, r.of(a))
			if err != nil {
				t.Fatalf("ADD: %v", err)
			}
			wantResult(t, result, v, "a", a.NS.Path(), 2)
			cached, err := r.GetNetworkListCachedResult(r.list, r.of(a))
			if err != nil {
				t.Fatalf("cache: %v", err)
			}
			wantResult(t, cached, v, "a", a.NS.Path(), 2)
			checks := v != "0.3.1"
			check := func(p *pod) error { return r.CheckNetworkList(ctx, r.list, r.of(p)) }
			if err := check(a); checks && err != nil || !checks && !errors.Is(err, libcni.ErrorCheckNotSupp) {
				t.Errorf("CHECK: %v", err)
			}
			if result, err = r.AddNetworkList(ctx, r.list, r.of(b)); err != nil {
				t.Fatalf("ADD: %v", err)
			}
			wantResult(t, result, v, "b", b.NS.Path(), 3)
			talk(t, a, b, "10.244.1.3", "fd00:244:0:1::3")
			if checks {
				n.Do(func() error { return unwire(hostName("b", "eth0")) })
				if err := check(b); err == nil || !strings.Contains(err.Error(), hostName("b", "eth0")+": Link not found") {
					t.Errorf("CHECK of a pod without interface: %v", err)
				}
			}
			// b is not valid any more: the library ends what it has in its cache with DEL and, since 1.1.0, tells the plugins.
			args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "a", IfName: "eth0"}}}
			if err := r.GCNetworkList(ctx, r.list, args); err != nil {
				t.Errorf("GC: %v", err)
			}
			if leases, err := ListAttachments(n.dir); err != nil || len(leases) != 1 || leases[0].ContainerID != "a" {
				t.Errorf("after GC: %+v, %v", leases, err)
			}
			if checks {
				if err := check(a); err != nil {
					t.Errorf("CHECK after GC: %v", err)
				}
			}
			gone := r.of(a)
			gone.NetNS = "/proc/1/fd/no"
			for range 2 {
				if err := r.DelNetworkList(ctx, r.list, gone); err != nil {
					t.Errorf("DEL: %v", err)
				}
			}
			n.wantEmpty()
			want := map[bool]string{true: "STATUS fairlead", false: "DEL fairlead"}[v == "1.1.0"]
			if got := strings.Join(r.ran, ","); !strings.Contains(got, want) || strings.Contains(got, "GC fairlead") != (v == "1.1.0") {
				t.Errorf("ran %s", got)
			}
		})
	}
}

// wantResult wants the result of an ADD as the specification's version has it. Its addresses end in last.
func wantResult(t *testing.T, result types.Result, v, id, netns string, last int) {
	t.Helper()
	if result.Version() != v {
		t.Errorf("the result is of version %s, want %s", result.Version(), v)
	}
	v4, v6 := `"address":"10.244.1.%[1]d/32","gateway":"169.254.1.1"`, `"address":"fd00:244:0:1::%[1]d/128","gateway":"fe80::1"`
	if v < "1" {
		v4, v6 = `"version":"4",`+v4, `"version":"6",`+v6
	}
	host := hostName(id, "eth0")
	wantJSON(t, result, fmt.Sprintf(`{"cniVersion":%q,
		"interfaces":[{"name":%q,"mac":%q},{"name":"eth0","mac":%q,"sandbox":%q}],
		"ips":[{"interface":1,`+fmt.Sprintf(v4, last)+`},{"interface":1,`+fmt.Sprintf(v6, last)+`}],
		"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}],
		"dns":{"nameservers":["10.96.0.10"],"search":["svc.cluster.local"]}}`, v, host, mac(host, "host"), mac(host, "pod"), netns))
}

// wantJSON compares as JSON, whatever the order of keys.
func wantJSON(t *testing.T, value any, want string) {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := errors.Join(json.Unmarshal(text, &a), json.Unmarshal([]byte(want), &b)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%s\nwant %s", text, want)
	}
}

// talk asks a server on each address of b from a.
func talk(t *testing.T, a, b *pod, addrs ...string) {
	t.Helper()
	for _, addr := range addrs {
		server := b.Echo("tcp", netip.AddrPortFrom(netip.MustParseAddr(addr), 80).String())
		if got, err := a.Ask("tcp", "", server); err != nil || got.Name != b.id {
			t.Errorf("from %s to %s: %+v, %v", a.id, server, got, err)
		}
	}
}

// TestErrors wants errors as the specification has them: the version of the request, a code, a sentence, and nothing on success where there is nothing
// to say.
func TestErrors(t *testing.T) {
	n := newNode(t, dual...)
	p := n.pod("a")
	for _, v := range specVersions {
		conf := maps.Clone(n.conf)
		conf["cniVersion"], conf["podCIDRs"] = v, []string{}
		cmd := n.command("ADD", p, conf)
		var out bytes.Buffer
		cmd.Stdout = &out
		err := n.start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%s: ended with %v, want code 1", v, err)
		}
		wantJSON(t, json.RawMessage(out.Bytes()), fmt.Sprintf(`{"cniVersion":%q,"code":7,"msg":"network configuration: podCIDRs is empty"}`, v))
		conf = maps.Clone(n.conf)
		conf["cniVersion"] = v
		if out, err := n.run("DEL", p, conf); err != nil || len(out) != 0 {
			t.Errorf("%s: DEL printed %q, %v", v, out, err)
		}
	}
	cmd := n.command("ADD", p, nil)
	cmd.Stdin = strings.NewReader("{")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := n.start(cmd); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if !strings.Contains(out.String(), `"cniVersion": "1.1.0"`) {
		t.Errorf("without a version that can be read: %s", &out)
	}
}

// TestNoVerb tells a person what the program is.
func TestNoVerb(t *testing.T) {
	out, err := exec.Command(shippedPlugin(t)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Fairlead CNI plugin") || !strings.Contains(string(out), "0.3.1, 0.4.0, 1.0.0, 1.1.0") {
		t.Errorf("%s, %v", out, err)
	}
}

// needDebianPlugins skips without the reference plugins.
func needDebianPlugins(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(debianPlugins, "bridge")); err != nil {
		testnet.Skip(t, "needs Debian's containernetworking-plugins: "+err.Error())
	}
}

// TestChained runs the plugin in lists with the reference plugins, before it and after it, in every version that those have. Each sees what the ones
// before it said, and takes back what it did.
func TestChained(t *testing.T) {
	needDebianPlugins(t)
	loopback := map[string]any{"type": "loopback"}
	tuning := map[string]any{"type": "tuning", "sysctl": map[string]any{"net.ipv4.conf.eth0.log_martians": "1"}, "mtu": 1300}
	bandwidth := map[string]any{"type": "bandwidth", "ingressRate": 100 << 20, "ingressBurst": 10 << 20, "egressRate": 100 << 20, "egressBurst": 10 << 20}
	portmap := map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}}
	for _, v := range specVersions[:3] {
		for _, c := range []struct {
			name          string
			before, after []map[string]any
		}{
			{"loopback first", []map[string]any{loopback}, nil},
			{"tuning after", nil, []map[string]any{tuning}},
			{"bandwidth after", nil, []map[string]any{bandwidth}},
			{"portmap after", nil, []map[string]any{portmap}},
			{"all", []map[string]any{loopback}, []map[string]any{tuning, portmap}},
		} {
			t.Run(v+" "+c.name, func(t *testing.T) {
				n := newNode(t, dual...)
				r := n.runtime(v, c.before, c.after)
				ctx := t.Context()
				a, b := n.pod("a"), n.pod("b")
				result, err := r.AddNetworkList(ctx, r.list, r.of(a))
				if err != nil {
					t.Fatalf("ADD: %v", err)
				}
				text, err := json.Marshal(result)
				if err != nil {
					t.Fatal(err)
				}
				interfaces := []string{hostName("a", "eth0"), `"eth0"`, "10.244.1.2/32"}
				if len(c.before) > 0 {
					interfaces = append(interfaces, `"lo"`, "127.0.0.1/8")
				}
				for _, want := range interfaces {
					if !strings.Contains(string(text), want) {
						t.Errorf("no %s in the result %s", want, text)
					}
				}
				if v != "0.3.1" {
					// Debian's portmap looks for the rules of one family in the other: it is asked after this plugin, and its complaint is not ours.
					const portmaps = "could not check ipv6 dnat"
					if err := r.CheckNetworkList(ctx, r.list, r.of(a)); err != nil && !strings.Contains(err.Error(), portmaps) {
						t.Errorf("CHECK: %v", err)
					}
					if got, want := r.ran[len(r.ran)-1], fmt.Sprint("CHECK ", r.list.Plugins[len(r.list.Plugins)-1].Network.Type); got != want {
						t.Errorf("CHECK ended at %s, want %s", got, want)
					}
				}
				n.mustAdd(b)
				talk(t, b, a, "10.244.1.2", "fd00:244:0:1::2")
				if strings.Contains(fmt.Sprint(c.after), "tuning") {
					a.Do(func() error {
						link, err := netlink.LinkByName("eth0")
						if err == nil && link.Attrs().MTU != 1300 {
							t.Errorf("tuning had no effect: MTU %d", link.Attrs().MTU)
						}
						return err
					})
				}
				if strings.Contains(fmt.Sprint(c.after), "portmap") {
					if got, err := b.Ask("tcp", "", netip.MustParseAddrPort("172.30.0.11:8080")); err != nil || got.Name != "a" {
						t.Errorf("by the host port: %+v, %v", got, err)
					}
				}
				for range 2 {
					if err := r.DelNetworkList(ctx, r.list, r.of(a)); err != nil {
						t.Errorf("DEL: %v", err)
					}
				}
				n.mustDel(b)
				n.wantEmpty()
			})
		}
	}
}

// TestForeignResult takes the result of an earlier plugin in the form of every version.
func TestForeignResult(t *testing.T) {
	n := newNode(t, dual...)
	for i, v := range specVersions {
		p := n.pod(fmt.Sprint("p", i))
		conf := maps.Clone(n.conf)
		conf["cniVersion"] = v
		ip := map[string]any{"interface": 0, "address": "192.0.2.7/24", "gateway": "192.0.2.1"}
		if v < "1" {
			ip["version"] = "4"
		}
		conf["prevResult"] = map[string]any{"cniVersion": v, "interfaces": []any{map[string]any{"name": "net0", "sandbox": p.NS.Path()}},
			"ips": []any{ip}, "routes": []any{map[string]any{"dst": "198.51.100.0/24"}}, "dns": map[string]any{"domain": "example.org"}}
		out, err := n.run("ADD", p, conf)
		if err != nil {
			t.Fatalf("%s: %v", v, err)
		}
		host := hostName(p.id, "eth0")
		version := ""
		if v < "1" {
			version = `"version":"4",`
		}
		v6 := strings.Replace(version, "4", "6", 1)
		wantJSON(t, json.RawMessage(out), fmt.Sprintf(`{"cniVersion":%q,
			"interfaces":[{"name":"net0","sandbox":%[2]q},{"name":%[3]q,"mac":%[4]q},{"name":"eth0","mac":%[5]q,"sandbox":%[2]q}],
			"ips":[{%[6]s"interface":0,"address":"192.0.2.7/24","gateway":"192.0.2.1"},
				{%[6]s"interface":2,"address":"10.244.1.%[7]d/32","gateway":"169.254.1.1"},
				{%[8]s"interface":2,"address":"fd00:244:0:1::%[7]d/128","gateway":"fe80::1"}],
			"routes":[{"dst":"198.51.100.0/24"},{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}],
			"dns":{"domain":"example.org"}}`, v, p.NS.Path(), host, mac(host, "host"), mac(host, "pod"), version, i+2, v6))
		n.mustDel(p)
	}
	n.wantEmpty()
}

// TestGCWithoutList removes nothing when a runtime does not say what is valid: with an empty list all pods would lose their network. The list has
// had two names.
func TestGCWithoutList(t *testing.T) {
	n := newNode(t, dual...)
	a, b := n.pod("a"), n.pod("b")
	n.mustAdd(a)
	n.mustAdd(b)
	if _, err := n.run("GC", nil, n.conf); code(err) != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), "cni.dev/valid-attachments") {
		t.Errorf("GC without a list: %v", err)
	}
	conf := maps.Clone(n.conf)
	for _, bad := range []any{"all", map[string]any{}, []any{7}} {
		conf["cni.dev/valid-attachments"] = bad
		if _, err := n.run("GC", nil, conf); code(err) != types.ErrDecodingFailure {
			t.Errorf("GC with the list %v: %v", bad, err)
		}
	}
	delete(conf, "cni.dev/valid-attachments")
	for _, want := range []string{"b", "a"} {
		if leases, err := ListAttachments(n.dir); err != nil || len(leases) == 0 || leases[len(leases)-1].ContainerID != want {
			t.Errorf("leases %+v, %v", leases, err)
		}
		conf["cni.dev/attachments"] = []any{map[string]any{"containerID": "a", "ifname": "eth0"}}
		if _, err := n.run("GC", nil, conf); err != nil {
			t.Errorf("GC with the list under its first name: %v", err)
		}
	}
	conf["cni.dev/valid-attachments"] = nil // as libcni writes an empty list
	if _, err := n.run("GC", nil, conf); err != nil {
		t.Errorf("GC with an empty list: %v", err)
	}
	n.wantEmpty()
}
