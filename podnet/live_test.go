// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
)

// debian runs a verb of a reference plugin in the node's namespace. It calls its own IPAM plugin.
func (n *node) debian(verb, plugin string, p *pod, conf map[string]any) (*types100.Result, error) {
	n.t.Helper()
	conf = maps.Clone(conf)
	conf["cniVersion"], conf["name"], conf["type"] = "1.0.0", "before", plugin
	cmd := n.command(verb, p, conf)
	cmd.Path, cmd.Args = filepath.Join(debianPlugins, plugin), []string{plugin}
	cmd.Env = append(cmd.Env, "CNI_PATH="+debianPlugins, "PATH="+os.Getenv("PATH"))
	out, err := n.runCommand(cmd)
	if err != nil || verb != "ADD" {
		return nil, err
	}
	return parseResult(out)
}

// hostLocal is the configuration of the reference IPAM plugin with the node's own ranges.
func hostLocal(dir string, ranges ...string) map[string]any {
	var sets []any
	for _, r := range ranges {
		sets = append(sets, []any{map[string]any{"subnet": r}})
	}
	return map[string]any{"type": "host-local", "dataDir": dir, "ranges": sets, "routes": []any{map[string]any{"dst": "0.0.0.0/0"}}}
}

// TestStrangers has pods of other plugins on the node, with addresses of our range, that were there first. None of those addresses is given out, nor that
// of the bridge, whether the lease file is new, or is there and knows nothing of them; and when they are gone, theirs are free again.
func TestStrangers(t *testing.T) {
	needDebianPlugins(t)
	for _, plugin := range []string{"bridge", "ptp"} {
		for _, fresh := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, fresh %v", plugin, fresh), func(t *testing.T) {
				n := newNode(t, "10.244.1.0/28", "fd00:244:0:1::/64")
				if !fresh {
					n.mustAdd(n.pod("first"))
					n.mustDel(&pod{n.world.Host("first"), "first"})
				}
				conf := map[string]any{"bridge": "cni0", "isGateway": true, "ipam": hostLocal(t.TempDir(), "10.244.1.0/28", "fd00:244:0:1::/64")}
				used := map[netip.Addr]string{}
				var old []*pod
				for i := range 5 {
					p := n.pod(fmt.Sprint("old", i))
					result, err := n.debian("ADD", plugin, p, conf)
					if err != nil {
						t.Fatal(err)
					}
					for _, addr := range addrs(result) {
						used[addr] = p.id
					}
					old = append(old, p)
				}
				if plugin == "bridge" {
					used[netip.MustParseAddr("10.244.1.1")] = "cni0"
				}
				var ours []*pod
				for i := 0; ; i++ {
					p := n.pod(fmt.Sprint("new", i))
					result, err := n.add(p)
					if err != nil {
						if !strings.Contains(err.Error(), "no free address in range 10.244.1.0/28") {
							t.Errorf("ADD %s: %v", p.id, err)
						}
						break
					}
					ours = append(ours, p)
					for _, addr := range addrs(result) {
						if used[addr] != "" {
							t.Errorf("gave %s to %s, and %s has it", addr, p.id, used[addr])
						}
						used[addr] = p.id
					}
				}
				if want := 13 - len(old); len(ours) != want {
					t.Errorf("%d pods of ours, want %d", len(ours), want)
				}
				// The range is full of the old and of ours. The old end, by the hand of their own plugin.
				for _, p := range old {
					if _, err := n.debian("DEL", plugin, p, conf); err != nil {
						t.Error(err)
					}
				}
				age(t, n.dir)
				for i := range len(old) {
					p := n.pod(fmt.Sprint("later", i))
					ours = append(ours, p)
					n.mustAdd(p)
				}
				for _, p := range ours {
					n.mustDel(p)
				}
			})
		}
	}
}

// age makes the leases an hour older.
func age(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "leases")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, ageLeases(t, old), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestHeal is the start of an agent on a node that has pods: with the lease file lost, of ours and of a stranger; with leaks in it; and with a young
// lease whose ADD is under way.
func TestHeal(t *testing.T) {
	needDebianPlugins(t)
	n := newNode(t, dual...)
	ranges := []netip.Prefix{netip.MustParsePrefix(dual[0]), netip.MustParsePrefix(dual[1])}
	heal := func() (freed []ipam.Lease) {
		t.Helper()
		n.Do(func() (err error) {
			freed, err = Heal(n.dir, ranges)
			return err
		})
		return freed
	}
	if freed := heal(); len(freed) != 0 {
		t.Errorf("freed %+v of nothing", freed)
	}
	a, stranger := n.pod("a"), n.pod("stranger")
	n.mustAdd(a)
	conf := map[string]any{"ipam": hostLocal(t.TempDir(), "10.244.1.128/25")}
	result, err := n.debian("ADD", "ptp", stranger, conf)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		t.Fatal(err)
	}
	if freed := heal(); len(freed) != 0 {
		t.Errorf("freed %+v", freed)
	}
	if got := fmt.Sprint(addrs(result)); got != "[10.244.1.130]" {
		t.Fatalf("the stranger got %s", got)
	}
	// Also the address that the stranger's plugin has given to the node.
	want := fmt.Sprintf("%s[10.244.1.2 fd00:244:0:1::2] 10.244.1.129[10.244.1.129] 10.244.1.130[10.244.1.130] ", hostName("a", "eth0"))
	got := func() (text string) {
		leases, err := ListAttachments(n.dir)
		if err != nil {
			t.Error(err)
		}
		for _, l := range leases {
			text += fmt.Sprintf("%s%v ", l.ID, l.Addrs)
		}
		return text
	}
	if got() != want {
		t.Errorf("leases %s, want %s", got(), want)
	}
	// b leaks: its interface goes without a DEL. It may be an ADD under way until it is old.
	b := n.pod("b")
	n.mustAdd(b)
	n.Do(func() error { return unwire(hostName("b", "eth0")) })
	if freed := heal(); len(freed) != 0 {
		t.Errorf("freed %+v, which is young", freed)
	}
	if _, err := n.debian("DEL", "ptp", stranger, conf); err != nil {
		t.Fatal(err)
	}
	age(t, n.dir)
	if freed := heal(); len(freed) != 3 || freed[0].PodName != "b" || freed[1].ID != "10.244.1.129" || freed[2].ID != "10.244.1.130" {
		t.Errorf("freed %+v, want b and the stranger's", freed)
	}
	if want := fmt.Sprintf("%s[10.244.1.2 fd00:244:0:1::2] ", hostName("a", "eth0")); got() != want {
		t.Errorf("leases %s, want %s", got(), want)
	}
	if err := n.check(a, n.mustAdd(a)); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	n.mustDel(a)
	n.wantEmpty()
	if _, err := Heal("/dev/null/x", ranges); err == nil {
		t.Error("healed where there can be no file")
	}
	if _, err := Heal(n.dir, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/32")}); err == nil || !strings.Contains(err.Error(), "too small") {
		t.Errorf("healed a range without addresses: %v", err)
	}
}

// TestGCStrangers leaves a stranger's lease alone: the runtime's list is of this network only.
func TestGCStrangers(t *testing.T) {
	needDebianPlugins(t)
	n := newNode(t, "10.244.1.0/24")
	stranger := n.pod("stranger")
	conf := map[string]any{"ipam": hostLocal(t.TempDir(), "10.244.1.0/24")}
	if _, err := n.debian("ADD", "ptp", stranger, conf); err != nil {
		t.Fatal(err)
	}
	a := n.pod("a")
	if got := fmt.Sprint(addrs(n.mustAdd(a))); got != "[10.244.1.3]" {
		t.Errorf("gave %s", got)
	}
	nothing := maps.Clone(n.conf)
	nothing["cni.dev/valid-attachments"] = []any{}
	if _, err := n.run("GC", nil, nothing); err != nil {
		t.Fatal(err)
	}
	leases, err := ListAttachments(n.dir)
	if err != nil || len(leases) != 2 || leases[0].ID != "10.244.1.1" || leases[1].ID != "10.244.1.2" { // the node's and the pod's
		t.Errorf("after GC: %+v, %v", leases, err)
	}
	stranger.Do(func() error { _, err := netlink.LinkByName("eth0"); return err })
	if _, err := n.debian("DEL", "ptp", stranger, conf); err != nil {
		t.Fatal(err)
	}
}

// TestNoSpace has the disk full at every verb: a clear error, no pod harmed, no address lost, and all is well when there is room again.
func TestNoSpace(t *testing.T) {
	n := newNode(t, dual...)
	m := newMachine(t)
	c := &chaos{node: n, machine: m, owners: map[netip.Addr]string{}, did: map[string]int{}}
	n.dir = filepath.Join(t.TempDir(), "small")
	n.conf["dataDir"] = n.dir
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fill := func() error {
		return exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(n.dir, "ballast"), "bs=4096").Run()
	}
	if err := m.do(func() error { return unix.Mount("tmpfs", n.dir, "tmpfs", 0, "size=32k") }); err != nil {
		t.Fatal(err)
	}
	a, b := &container{pod: n.pod("a")}, &container{pod: n.pod("b")}
	c.add(a, 0)
	m.do(fill) // ends with an error: that is the point
	// What is already in the file's last block can still grow; after that, ADD says so.
	var err error
	for range 200 {
		if _, err = c.exec("ADD", b, 0); err != nil {
			break
		}
		if _, err = c.exec("DEL", b, 0); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "addresses") {
		t.Errorf("with a full disk: %v", err)
	}
	if _, err := c.exec("CHECK", a, 0); err != nil {
		t.Errorf("CHECK with a full disk: %v", err)
	}
	if err := m.do(func() error { return os.Remove(filepath.Join(n.dir, "ballast")) }); err != nil {
		t.Fatal(err)
	}
	c.add(b, 0)
	c.add(a, 0)
	c.del(a, 0)
	c.del(b, 0)
	if leases := c.leases(); len(leases) != 0 {
		t.Errorf("leases %+v", leases)
	}
	if got := n.kernel(); got != "" {
		t.Errorf("left on the node: %s", got)
	}
}

// TestHugeConf takes a configuration as large as is allowed and refuses a larger one, within bounds of time and memory.
func TestHugeConf(t *testing.T) {
	n := newNode(t, dual...)
	p := n.pod("a")
	conf := maps.Clone(n.conf)
	list := []any{}
	for i := range 60000 {
		list = append(list, map[string]any{"containerID": fmt.Sprintf("%064d", i), "ifname": "eth0"})
	}
	conf["cni.dev/valid-attachments"] = list
	text, err := json.Marshal(conf)
	if err != nil || len(text) > maxConf || len(text) < maxConf/2 {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	n.mustAdd(p)
	if _, err := n.run("GC", nil, conf); err != nil {
		t.Errorf("GC with %d bytes: %v", len(text), err)
	}
	n.wantEmpty()
	for _, stdin := range []string{strings.Repeat("[", 1<<20), `{"a":` + strings.Repeat(`{"a":`, 1<<18), `{"name":"` + strings.Repeat("x", 1<<20) + `"`} {
		cmd := n.command("ADD", p, nil)
		cmd.Stdin = strings.NewReader(stdin)
		if _, err := n.runCommand(cmd); code(err) != 6 {
			t.Errorf("%.20q…: %v", stdin, err)
		}
	}
	n.wantEmpty()
}

// TestTwoAgents has two agents on one node by mistake, each with leases of its own for the same range, and pods attached by one and the other in turn: no
// address is given twice, and each takes back its own.
func TestTwoAgents(t *testing.T) {
	n := newNode(t, "10.244.1.0/28", "fd00:244:0:1::/64")
	other := maps.Clone(n.conf)
	other["dataDir"] = n.dir + "-other"
	seen := map[netip.Addr]string{}
	var pods []*pod
	for i := range 12 {
		p := n.pod(fmt.Sprint("p", i))
		conf := n.conf
		if i%2 == 1 {
			conf = other
		}
		result, err := n.addBy(p, conf)
		if err != nil {
			t.Fatalf("ADD %s: %v", p.id, err)
		}
		for _, addr := range addrs(result) {
			if seen[addr] != "" {
				t.Errorf("%s given to %s and %s", addr, seen[addr], p.id)
			}
			seen[addr] = p.id
		}
		pods = append(pods, p)
	}
	for i, p := range pods {
		conf := n.conf
		if i%2 == 1 {
			conf = other
		}
		if _, err := n.run("DEL", p, conf); err != nil {
			t.Errorf("DEL %s: %v", p.id, err)
		}
	}
	if got := n.kernel(); got != "" {
		t.Errorf("left on the node: %s", got)
	}
	// What one has taken over of the other's is a leak now, which an agent's start heals when it is old.
	for _, dir := range []string{n.dir, n.dir + "-other"} {
		age(t, dir)
		n.Do(func() error {
			_, err := Heal(dir, []netip.Prefix{netip.MustParsePrefix("10.244.1.0/28"), netip.MustParsePrefix("fd00:244:0:1::/64")})
			return err
		})
		if leases, err := ListAttachments(dir); err != nil || len(leases) != 0 {
			t.Errorf("left in %s: %+v, %v", dir, leases, err)
		}
	}
}

// TestBesideBridge has a pod on another plugin's bridge and one of ours in the same range. The old one takes the whole range for its own link and asks there for
// the new one's hardware address: with proxy_arp on the bridge the node answers, and they talk with their own addresses.
func TestBesideBridge(t *testing.T) {
	needDebianPlugins(t)
	n := newNode(t, "10.244.1.0/24")
	old, ours := n.pod("old"), n.pod("ours")
	conf := map[string]any{"bridge": "cni0", "isGateway": true, "ipam": hostLocal(t.TempDir(), "10.244.1.0/24")}
	first, err := n.debian("ADD", "bridge", old, conf)
	if err != nil {
		t.Fatal(err)
	}
	second := n.mustAdd(ours)
	n.Sysctl("net/ipv4/conf/cni0/proxy_arp", "1")
	for _, c := range []struct {
		from, to *pod
		src, dst netip.Addr
	}{{ours, old, addrs(second)[0], addrs(first)[0]}, {old, ours, addrs(first)[0], addrs(second)[0]}} {
		server := c.to.Echo("tcp", netip.AddrPortFrom(c.dst, 80).String())
		if got, err := c.from.Ask("tcp", "", server); err != nil || got.Name != c.to.id || got.Client.Addr() != c.src {
			t.Errorf("from %s to %s: %+v, %v", c.from.id, c.to.id, got, err)
		}
	}
	n.mustDel(ours)
	if _, err := n.debian("DEL", "bridge", old, conf); err != nil {
		t.Fatal(err)
	}
}
