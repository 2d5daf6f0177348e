// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/status"
	"github.com/fairlead/fairlead/testnet"
)

// ask sends a question for an A record.
func ask(ctx context.Context, from *linux.NetNS, network string, server netip.Addr, name string) (*mdns.Msg, error) {
	conn, err := from.Dial(ctx, network, netip.AddrPortFrom(server, 53).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	co := &mdns.Conn{Conn: conn}
	q := new(mdns.Msg)
	q.SetQuestion(name, mdns.TypeA)
	if err := co.WriteMsg(q); err != nil {
		return nil, err
	}
	return co.ReadMsg()
}

// TestAgent does everything that the agent does, with the privileges of the manifest and no others: under our profile, and under that of container runtimes, which
// the manifest asks for.
func TestAgent(t *testing.T) {
	t.Run("seccomp.json", func(t *testing.T) { testAgent(t, func(*specs.Spec) {}) })
	t.Run("the runtime's profile", func(t *testing.T) {
		testAgent(t, func(s *specs.Spec) {
			var err error
			if s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s); err != nil {
				t.Fatal(err)
			}
		})
	})
}

func testAgent(t *testing.T, edit func(*specs.Spec)) {
	o := rendered(t, values())
	c := startCluster(t, o.role)
	img := unpack(t)
	k := c.container(img, o)
	edit(k.spec)
	k.start()
	k.mustGetReady(o)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	for _, network := range []string{"udp", "tcp"} {
		for _, server := range []netip.Addr{nodeAddr, dnsAddr} {
			m, err := ask(ctx, c.node.NS, network, server, "orders.default.svc.cluster.local.")
			if err != nil || m.Rcode != mdns.RcodeSuccess || len(m.Answer) != 1 {
				t.Errorf("ask %s by %s: %v, %v", server, network, m, err)
			}
		}
	}
	c.node.Do(func() error {
		on, err := linux.ReadSysctl("net/ipv4/ip_forward")
		if on != "1" {
			t.Errorf("the node does not forward: %s", on)
		}
		return err
	})
	routes, err := c.node.Link.RouteList(nil, netlink.FAMILY_V4)
	c.ok(err)
	if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.Dst != nil && r.Dst.String() == "10.244.2.0/24" && r.Gw.String() == otherAddr.String()
	}) {
		t.Errorf("no route to the other node's pods: %v", routes)
	}
	text, err := k.exec(ctx, "status", "--json")
	var reports []status.Report
	if err != nil || json.Unmarshal([]byte(text), &reports) != nil || len(reports) != 1 {
		t.Fatalf("status: %v\n%s", err, text)
	}
	if r := reports[0]; r.Services < 3 || len(r.Quarantined) > 0 || r.Dataplane.Elements == 0 {
		t.Errorf("status: %s", text)
	}
	if questions, answers := dnsBuffers(t, c); questions < 16<<20 || answers < 4<<20 {
		t.Errorf("the queues of the DNS sockets have %d octets for questions, want 16 MiB, and %d for answers, want 4 MiB", questions, answers)
	}
	plugin := filepath.Join(c.hostPath("/opt/cni/bin"), "fairlead")
	got, err := os.ReadFile(plugin)
	c.ok(err)
	want, err := os.ReadFile(filepath.Join(img.root, "bin/fairlead-cni"))
	c.ok(err)
	if !bytes.Equal(got, want) {
		t.Error("the CNI plugin is not the program of the image")
	}
	version := exec.Command(plugin)
	version.Env = []string{"CNI_COMMAND=VERSION"}
	if out, err := version.CombinedOutput(); err != nil || !strings.Contains(string(out), `"1.1.0"`) {
		t.Errorf("the CNI plugin does not run: %v, %s", err, out)
	}
	pod := c.pod()
	if m, err := ask(ctx, pod.NS, "udp", dnsAddr, "orders.default.svc.cluster.local."); err != nil || len(m.Answer) != 1 {
		t.Errorf("a pod asks: %v, %v", m, err)
	} else if a, err := pod.Ask("tcp", "", netip.AddrPortFrom(netip.MustParseAddr(m.Answer[0].(*mdns.A).A.String()), 80)); err != nil || !podRange.Contains(a.Client.Addr()) {
		t.Errorf("a pod connects: %v, %v", a, err)
	}
	c.forgetFlow(ctx, k, pod)
}

// TestFastPath: the pods' fast path works with the two capabilities that the chart adds for it, under both profiles. Without one of them the agent does all the
// rest, and says why it is off.
func TestFastPath(t *testing.T) {
	off := "the pods' fast path is off: load eBPF program: it needs the capabilities BPF, PERFMON and NET_ADMIN"
	testShortCut(t, map[string]any{"podFastPath": "on"}, func(r *status.Report) bool { return r.PodNetwork.FastPath.Links > 0 }, "fast path", map[string]lack{
		"capability BPF":     {withoutCapability("CAP_BPF"), off},
		"capability PERFMON": {withoutCapability("CAP_PERFMON"), off},
	})
}

// TestSocketLB is TestFastPath for leading pods' connections at their sockets.
func TestSocketLB(t *testing.T) {
	const off = "pods' connections are not led at their sockets: "
	testShortCut(t, map[string]any{"podSocketLB": true}, func(r *status.Report) bool { return r.PodNetwork.SocketLB.Services > 0 }, "sockets", map[string]lack{
		"capability BPF":       {withoutCapability("CAP_BPF"), off + "load eBPF programs: it needs the capabilities BPF and NET_ADMIN"},
		"mount /sys/fs/cgroup": {withoutMount("/sys/fs/cgroup"), off + "find cgroup v2: "},
	})
}

// lack is something that a container of the manifest has not, and what its agent says.
type lack struct {
	edit func(*specs.Spec)
	off  string
}

// testShortCut runs agents with values of the chart's network, of which a short cut works, as works tells of the status: under both profiles, and not with what lacks
// something. word is in what the status says when it is off.
func testShortCut(t *testing.T, network map[string]any, works func(*status.Report) bool, word string, lacks map[string]lack) {
	with := values()
	with["network"] = network
	o := rendered(t, with)
	c := startCluster(t, o.role)
	img := unpack(t)
	lacks["nothing, under seccomp.json"] = lack{func(*specs.Spec) {}, ""}
	lacks["nothing, under the runtime's profile"] = lack{func(s *specs.Spec) {
		var err error
		if s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s); err != nil {
			t.Fatal(err)
		}
	}, ""}
	for name, row := range lacks {
		t.Run(name, func(t *testing.T) {
			own := *c // its failures are this test's
			own.t, own.dir = t, t.TempDir()
			k := own.container(img, o)
			row.edit(k.spec)
			k.start()
			k.mustGetReady(o)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			text, err := k.exec(ctx, "status", "--json")
			var reports []*status.Report
			if err != nil || json.Unmarshal([]byte(text), &reports) != nil || len(reports) != 1 {
				t.Fatalf("status: %v\n%s", err, text)
			}
			r, on := reports[0], row.off == ""
			if works(r) != on || slices.ContainsFunc(r.Off, func(s string) bool { return strings.Contains(s, word) }) == on {
				t.Errorf("works %t: %s", works(r), text)
			}
			if !on && !slices.ContainsFunc(r.Off, func(s string) bool { return strings.HasPrefix(s, row.off) }) {
				t.Errorf("status does not say %q: %q", row.off, r.Off)
			}
			k.stop()
		})
	}
}

// podRange is the node's.
var podRange = netip.MustParsePrefix("10.244.1.0/24")

// forgetFlow sends a datagram to a Service and takes the Service's endpoint away: the agent has to remove the entry of connection tracking.
func (c *cluster) forgetFlow(ctx context.Context, k *container, pod *testnet.Host) {
	c.t.Helper()
	if a, err := pod.Ask("udp", "", netip.AddrPortFrom(eventsAddr, 80)); err != nil || !podRange.Contains(a.Client.Addr()) {
		c.t.Fatalf("a pod sends: %v, %v", a, err)
	}
	c.ok(c.admin.DiscoveryV1().EndpointSlices("default").Delete(ctx, "events", metav1.DeleteOptions{}))
	for {
		text, err := k.exec(ctx, "status", "--json")
		var reports []status.Report
		if err == nil {
			err = json.Unmarshal([]byte(text), &reports)
		}
		if err == nil && reports[0].Dataplane.Conntrack > 0 {
			return
		}
		if ctx.Err() != nil {
			c.t.Fatalf("the entry of connection tracking stays: %v\n%s", err, text)
		}
	}
}

// pod makes a pod's network, as a container runtime does: by the plugin and the configuration that the agent has put on the node.
func (c *cluster) pod() *testnet.Host {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.hostPath("/etc/cni/net.d"), "10-fairlead.conflist"))
	c.ok(err)
	// What is a path on the node is a path below a directory here.
	const state = "/var/lib/fairlead/agent"
	if !bytes.Contains(text, []byte(`"`+state+`/agent.sock"`)) {
		c.t.Fatalf("the CNI configuration does not name the socket as the node sees it: %s", text)
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	c.ok(json.Unmarshal(bytes.ReplaceAll(text, []byte(state), []byte(c.hostPath(state))), &list))
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	stdin, err := json.Marshal(conf)
	c.ok(err)
	pod := c.world.Host("pod")
	c.node.Do(func() error {
		cmd := exec.Command(filepath.Join(c.hostPath("/opt/cni/bin"), "fairlead"))
		cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=pod", "CNI_IFNAME=eth0", "CNI_PATH=/", "CNI_NETNS=" + pod.NS.Path()}
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("CNI ADD: %w: %s", err, out)
		}
		return nil
	})
	return pod
}

// dnsBuffers are the smallest sizes of the queues of the UDP sockets that questions come in by, and of those that answers leave by, as ss tells them. The latter have addresses
// of no host.
func dnsBuffers(t *testing.T, c *cluster) (questions, answers int) {
	t.Helper()
	var out []byte
	c.node.Do(func() (err error) {
		out, err = exec.Command("ss", "-Huanm", "sport = :53").Output()
		return err
	})
	questions, answers = math.MaxInt, math.MaxInt
	leaves := false
	for line := range strings.SplitSeq(string(out), "\n") {
		if strings.HasPrefix(line, "UNCONN") {
			leaves = strings.Contains(line, "192.0.2.53:53") || strings.Contains(line, "[100::53]:53")
		}
		size, what := &questions, ",rb"
		if leaves {
			size, what = &answers, ",tb"
		}
		if _, rest, ok := strings.Cut(line, what); ok {
			var n int
			if _, err := fmt.Sscanf(rest, "%d", &n); err != nil {
				t.Fatalf("%v:\n%s", err, out)
			}
			*size = min(*size, n)
		}
	}
	if questions == math.MaxInt || answers == math.MaxInt {
		t.Fatalf("no UDP sockets:\n%s", out)
	}
	return questions, answers
}

// TestPrivileges takes each privilege of the manifest away. Without it the agent does not get ready, and says why; with all of them it does, see TestAgent.
func TestPrivileges(t *testing.T) {
	o := rendered(t, values())
	c := startCluster(t, o.role)
	img := unpack(t)
	readOnly := func(at string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			for i, m := range s.Mounts {
				if m.Destination == at {
					s.Mounts[i].Options = []string{"rbind", "rprivate", "ro"}
				}
			}
		}
	}
	tests := map[string]struct {
		edit func(*specs.Spec)
		want []string // what the agent says
	}{
		"capability NET_ADMIN":          {withoutCapability("CAP_NET_ADMIN"), []string{"operation not permitted"}},
		"capability NET_BIND_SERVICE":   {withoutCapability("CAP_NET_BIND_SERVICE"), []string{"open DNS sockets", "permission denied"}},
		"mount /host/proc/sys/net":      {withoutMount("/host/proc/sys/net"), []string{"set sysctl", "mount the node's /proc/sys/net"}},
		"mount /var/lib/fairlead/agent": {withoutMount("/var/lib/fairlead/agent"), []string{"make directory for socket", "read-only file system"}},
		"mount /host/cni/bin":           {withoutMount("/host/cni/bin"), []string{"make directory for CNI plugins", "read-only file system"}},
		"mount /host/cni/conf":          {withoutMount("/host/cni/conf"), []string{"make directory for CNI configuration", "read-only file system"}},
		"mount /etc/fairlead/dns":       {withoutMount("/etc/fairlead/dns"), []string{"/etc/fairlead/dns", "no such file"}},

		"writing to /var/lib/fairlead/agent": {readOnly("/var/lib/fairlead/agent"), []string{"read-only file system"}},
		"writing to /host/proc/sys/net":      {readOnly("/host/proc/sys/net"), []string{"set sysctl", "read-only file system"}},
		"writing to /host/cni/bin":           {readOnly("/host/cni/bin"), []string{"install CNI plugin", "read-only file system"}},
		"writing to /host/cni/conf":          {readOnly("/host/cni/conf"), []string{"write CNI configuration", "read-only file system"}},

		"user root": {func(s *specs.Spec) { s.Process.User = specs.User{UID: 65534, GID: 65534} }, []string{"permission denied"}},
	}
	missing := map[string]bool{}
	for _, name := range o.daemonSet.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
		missing["capability "+string(name)] = true
	}
	for _, m := range o.daemonSet.Spec.Template.Spec.Containers[0].VolumeMounts {
		missing["mount "+m.MountPath] = true
		if !m.ReadOnly {
			missing["writing to "+m.MountPath] = true
		}
	}
	for name, test := range tests {
		delete(missing, name)
		t.Run(name, func(t *testing.T) {
			own := *c // its failures are this test's
			own.t, own.dir = t, t.TempDir()
			own.node.Do(func() error { return linux.WriteSysctl("net/ipv4/ip_forward", "0") })
			k := own.container(img, o)
			test.edit(k.spec)
			k.start()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if !k.out.wait(ctx, test.want...) {
				t.Errorf("the agent does not say %q", test.want)
			}
			k.stop()
		})
	}
	for name := range missing {
		t.Errorf("no test of %q", name)
	}
}

func withoutMount(at string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == at })
	}
}

func withoutCapability(name string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		rest := slices.DeleteFunc(slices.Clone(s.Process.Capabilities.Permitted), func(c string) bool { return c == name })
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: rest, Effective: rest, Permitted: rest}
	}
}
