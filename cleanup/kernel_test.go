// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

// iptablesPrograms are both variants for both families.
var iptablesPrograms = []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"}

func needIptables(t *testing.T) {
	t.Helper()
	for _, p := range iptablesPrograms {
		if _, err := exec.LookPath(p + "-save"); err != nil {
			testnet.Skip(t, "needs "+p+"-save: hack/deps.sh installs it")
		}
	}
}

// tool runs a program in the namespace of the calling thread.
func tool(t *testing.T, input, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s\n%s", program, args, err, out, input)
	}
	return string(out)
}

// counters of packets and bytes; a namespace's IPv6 talks to itself.
var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// kernelState is all that the tools see here, without the lines that change by themselves.
func kernelState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, p := range iptablesPrograms {
		b.WriteString("## " + p + "\n")
		for line := range strings.Lines(tool(t, "", p+"-save")) {
			if !strings.HasPrefix(line, "#") {
				b.WriteString(counters.ReplaceAllString(line, "[0:0]"))
			}
		}
	}
	for _, family := range []string{"ip", "ip6"} { // tables that are not iptables'
		for line := range strings.Lines(tool(t, "", "nft", "list", "tables", family)) {
			if f := strings.Fields(line); len(f) == 3 && !slices.Contains([]string{"nat", "filter", "mangle"}, f[2]) {
				b.WriteString(tool(t, "", "nft", "list", "table", f[1], f[2]))
			}
		}
	}
	b.WriteString(tool(t, "", "nft", "list", "tables", "inet"))
	b.WriteString(tool(t, "", "ip", "route", "show", "table", "all", "proto", "4"))
	b.WriteString(tool(t, "", "ip", "route", "show", "table", "all", "proto", fmt.Sprint(linux.RouteProtocol)))
	b.WriteString(tool(t, "", "ip", "rule"))
	b.WriteString(tool(t, "", "ip", "-o", "link", "show", "type", "vxlan"))
	return b.String()
}

// rules are what a program has in the tables of iptables, as iptables-restore reads them.
type rules map[string][]string

// kubeProxyRules are as kube-proxy v1.37 leaves them for a ClusterIP Service, one with a node port and a load balancer with source ranges, and
// one without endpoints. ADDR is replaced by an address of the family.
var kubeProxyRules = rules{
	"nat": {
		":KUBE-SERVICES - [0:0]", ":KUBE-NODEPORTS - [0:0]", ":KUBE-POSTROUTING - [0:0]", ":KUBE-MARK-MASQ - [0:0]", ":KUBE-PROXY-CANARY - [0:0]",
		":KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]", ":KUBE-SEP-OZ4KTT6GDGXTZCZ6 - [0:0]", ":KUBE-EXT-IUC2B4ZPS7V2ZHN6 - [0:0]", ":KUBE-FW-IUC2B4ZPS7V2ZHN6 - [0:0]",
		":KUBE-SVL-IUC2B4ZPS7V2ZHN6 - [0:0]", ":KUBE-SVC-IUC2B4ZPS7V2ZHN6 - [0:0]", ":KUBE-SEP-2WD2FXU3ZGAPKV5J - [0:0]",
		`-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`,
		`-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`,
		`-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING`,
		`-A KUBE-SERVICES -m comment --comment "default/kubernetes:https cluster IP" -m tcp -p tcp -d ADDR --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y`,
		`-A KUBE-SERVICES -m comment --comment "shop/front:web \"new\" loadbalancer IP" -m tcp -p tcp -d ADDR --dport 80 -j KUBE-FW-IUC2B4ZPS7V2ZHN6`,
		`-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS`,
		`-A KUBE-NODEPORTS -m comment --comment shop/front:web -m tcp -p tcp --dport 30080 -j KUBE-EXT-IUC2B4ZPS7V2ZHN6`,
		`-A KUBE-FW-IUC2B4ZPS7V2ZHN6 -m comment --comment "shop/front:web loadbalancer IP" -s ADDR -j KUBE-EXT-IUC2B4ZPS7V2ZHN6`,
		`-A KUBE-EXT-IUC2B4ZPS7V2ZHN6 -m comment --comment "route LOCAL traffic for shop/front:web external destinations" -m addrtype --src-type LOCAL -j KUBE-SVC-IUC2B4ZPS7V2ZHN6`,
		`-A KUBE-EXT-IUC2B4ZPS7V2ZHN6 -j KUBE-SVL-IUC2B4ZPS7V2ZHN6`,
		`-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment "default/kubernetes:https -> ADDR:6443" -m recent --name KUBE-SEP-OZ4KTT6GDGXTZCZ6 --rcheck --seconds 10800 --reap -j KUBE-SEP-OZ4KTT6GDGXTZCZ6`,
		`-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment "default/kubernetes:https -> ADDR:6443" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-OZ4KTT6GDGXTZCZ6`,
		`-A KUBE-SVL-IUC2B4ZPS7V2ZHN6 -m comment --comment "shop/front:web -> ADDR:8080" -j KUBE-SEP-2WD2FXU3ZGAPKV5J`,
		`-A KUBE-SVC-IUC2B4ZPS7V2ZHN6 -m comment --comment "shop/front:web cluster IP" -m tcp -p tcp -d ADDR --dport 80 -j KUBE-MARK-MASQ`,
		`-A KUBE-SEP-2WD2FXU3ZGAPKV5J -m comment --comment shop/front:web -s ADDR -j KUBE-MARK-MASQ`,
		`-A KUBE-SEP-2WD2FXU3ZGAPKV5J -m comment --comment shop/front:web -m tcp -p tcp -j DNAT --to-destination DEST:8080`,
		`-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000`,
		`-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN`,
		`-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000`,
		`-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully`,
	},
	"filter": {
		":KUBE-SERVICES - [0:0]", ":KUBE-EXTERNAL-SERVICES - [0:0]", ":KUBE-FORWARD - [0:0]", ":KUBE-NODEPORTS - [0:0]", ":KUBE-PROXY-FIREWALL - [0:0]",
		":KUBE-PROXY-CANARY - [0:0]",
		`-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES`,
		`-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES`,
		`-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS`,
		`-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`,
		`-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`,
		`-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD`,
		`-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`,
		`-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`,
		`-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL`,
		`-A KUBE-SERVICES -m comment --comment "shop/back:web has no endpoints" -m tcp -p tcp -d ADDR --dport 80 -j REJECT`,
		`-A KUBE-NODEPORTS -m comment --comment "shop/front:web health check node port" -m tcp -p tcp --dport 32100 -j ACCEPT`,
		`-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP`,
		`-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT`,
		`-A KUBE-PROXY-FIREWALL -m comment --comment "shop/front:web traffic not accepted by KUBE-FW-IUC2B4ZPS7V2ZHN6" -m tcp -p tcp -d ADDR --dport 80 -j DROP`,
	},
	"mangle": {":KUBE-PROXY-CANARY - [0:0]"},
}

// strangersRules are the kubelet's, a container runtime's, another network plugin's and an administrator's.
var strangersRules = rules{
	"nat": {
		":DOCKER - [0:0]", ":CNI-HOSTPORT-DNAT - [0:0]", ":KUBE-MARK-DROP - [0:0]", ":KUBE-KUBELET-CANARY - [0:0]", ":KUBE-ROUTER-SNAT - [0:0]",
		`-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER`,
		`-A PREROUTING -m comment --comment "kubernetes service portals" -j CNI-HOSTPORT-DNAT`,
		`-A KUBE-MARK-DROP -j MARK --or-mark 0x8000`,
		`-A DOCKER -m comment --comment "to -j KUBE-SERVICES, no" -m tcp -p tcp --dport 8080 -j DNAT --to-destination DEST:80`,
	},
	"filter": {
		":KUBE-FIREWALL - [0:0]", ":KUBE-KUBELET-CANARY - [0:0]", ":KUBE-NWPLCY-DEFAULT - [0:0]", ":KUBE-SVC-MINE - [0:0]",
		`-A INPUT -j KUBE-FIREWALL`, `-A OUTPUT -j KUBE-FIREWALL`,
		`-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP`,
		`-A FORWARD -s ADDR -m comment --comment "mine \"quoted\"" -j KUBE-SVC-MINE`,
		`-A KUBE-SVC-MINE -j ACCEPT`,
	},
	"mangle": {":KUBE-IPTABLES-HINT - [0:0]", ":KUBE-KUBELET-CANARY - [0:0]", `-A FORWARD -j TTLISH`, ":TTLISH - [0:0]"},
	"raw":    {`-A PREROUTING -s ADDR -j ACCEPT`},
}

// load writes rules with a variant's program.
func load(t *testing.T, program string, all rules) {
	t.Helper()
	addr, dest := "10.96.0.1/32", "10.244.1.5"
	if strings.HasPrefix(program, "ip6") {
		addr, dest = "fd00:96::1/128", "[fd00:244:1::5]"
	}
	var b strings.Builder
	for _, table := range slices.Sorted(maps.Keys(all)) {
		b.WriteString("*" + table + "\n")
		sorted := slices.Clone(all[table])
		slices.SortStableFunc(sorted, func(a, b string) int { return chainFirst(a) - chainFirst(b) })
		for _, line := range sorted {
			b.WriteString(strings.ReplaceAll(strings.ReplaceAll(line, "DEST", dest), "ADDR", addr) + "\n")
		}
		b.WriteString("COMMIT\n")
	}
	tool(t, b.String(), program+"-restore", "--noflush", "-w", "5")
}

func chainFirst(line string) int {
	if line[0] == ':' {
		return 0
	}
	return 1
}

// strangers are others' state beside iptables.
func strangers(t *testing.T, h *testnet.Host) {
	t.Helper()
	tool(t, `
table ip kube-proxy-not { chain c { ip daddr 10.0.0.1 accept; }; }
table inet kube-proxy { chain services { accept; }; }
table inet fairlead-else { chain c { accept; }; }
table ip fairlead { chain c { accept; }; }
`, "nft", "-f", "-")
	h.Route("10.9.0.0/16", "10.0.0.2", "eth0")
	tool(t, "", "ip", strings.Fields("link add flannel.1 type vxlan id 1 dstport 4789 local 10.0.0.1 nolearning")...)
	tool(t, "", "ip", strings.Fields("rule add from 10.244.0.0/24 lookup 170 priority 171")...)
}

// leftovers are Fairlead's and kube-proxy's in nftables, and Fairlead's routes.
func leftovers(t *testing.T, h *testnet.Host) {
	t.Helper()
	tool(t, `
table inet fairlead { map services { type ipv4_addr : verdict; }; chain nat { type nat hook prerouting priority dstnat; ip daddr vmap @services; }; }
table inet fairlead-dns-17 { chain c { accept; }; }
table inet fairlead-tunnel { chain c { accept; }; }
table ip kube-proxy { chain a { accept; }; map m { type ipv4_addr : verdict; elements = { 10.96.0.1 : goto a }; }; chain services { ip daddr vmap @m; }; }
table ip6 kube-proxy { chain services { type filter hook input priority 0; accept; }; }
`, "nft", "-f", "-")
	for _, args := range []string{
		"link add fairlead-vxlan type vxlan id 170 dstport 4789 local 10.0.0.1 nolearning", "link set fairlead-vxlan up",
		"rule add from 10.244.0.0/24 lookup 170 priority 170 protocol 170",
	} {
		tool(t, "", "ip", strings.Fields(args)...)
	}
	for _, args := range []string{
		"10.9.9.3/32 via 10.244.9.0 dev fairlead-vxlan onlink mtu 1450 table 170 proto 170",
		"10.244.1.0/24 via 10.0.0.2 proto 170", "local 10.96.0.10 dev lo table local proto 170", "unreachable 10.244.0.0/24 proto 170",
		"unreachable fd00:244::/64 proto 170",
	} {
		tool(t, "", "ip", append([]string{"route", "add"}, strings.Fields(args)...)...)
	}
}

// node is a host with a neighbour.
func node(t *testing.T) *testnet.Host {
	t.Helper()
	w := testnet.New(t)
	h, other := w.Host("node"), w.Host("other")
	w.Cable(h, "eth0", other, "eth0")
	h.Addr("eth0", "10.0.0.1/24")
	// A pod's route: it is Fairlead's, and stays.
	link, err := h.Link.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	dst, err := netlink.ParseIPNet("10.244.0.7/32")
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{Dst: dst, LinkIndex: link.Attrs().Index, Protocol: linux.RouteProtocol, Scope: unix.RT_SCOPE_LINK}
	if err := h.Link.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestRun loads what proxies leave between what others have, and wants others' alone to be there in the end: the same text as on a node where nothing else ever was.
func TestRun(t *testing.T) {
	needIptables(t)
	h := node(t)
	h.Do(func() error {
		strangers(t, h)
		for _, p := range iptablesPrograms {
			load(t, p, strangersRules)
		}
		withoutUs := kernelState(t)
		leftovers(t, h)
		for _, p := range iptablesPrograms {
			load(t, p, kubeProxyRules)
		}
		full := kernelState(t)

		dry, err := Run(t.Context(), Options{KubeProxy: true, DryRun: true})
		if err != nil {
			t.Error(err)
		}
		if got := kernelState(t); got != full {
			t.Errorf("the dry run changed the kernel:\n%s", got)
		}
		own, err := Run(t.Context(), Options{})
		if err != nil {
			t.Error(err)
		}
		const ownText = `removed nftables table inet fairlead
removed nftables table inet fairlead-dns-17
removed route for pods 10.9.9.3/32 via 10.244.9.0 dev fairlead-vxlan mtu 1450
removed route local 10.96.0.10/32
removed route node 10.244.1.0/24 via 10.0.0.2 dev eth0
removed route unreachable 10.244.0.0/24
removed route unreachable fd00:244::/64
removed device fairlead-vxlan
removed routing rule from 10.244.0.0/24 for pods
removed nftables table inet fairlead-tunnel
note: 1 routes to pods of this node stay; they go with the pods
`
		if got := printed(own); got != ownText {
			t.Errorf("own:\n%s\nwant\n%s", got, ownText)
		}
		theirs, err := Run(t.Context(), Options{KubeProxy: true})
		if err != nil {
			t.Error(err)
		}
		if got := kernelState(t); got != withoutUs {
			t.Errorf("left:\n%s\nwant\n%s", got, withoutUs)
		}
		if got := slices.Concat(own.Removed, theirs.Removed); !slices.Equal(got, dry.Removed) {
			t.Errorf("the dry run said\n%v\nremoved was\n%v", dry.Removed, got)
		}
		text := printed(theirs)
		for _, want := range []string{
			"removed nftables table ip kube-proxy\nremoved nftables table ip6 kube-proxy\n",
			`removed iptables rule of ip6tables-legacy nat: -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES` + "\n",
			"removed 12 iptables chains of iptables-nft nat: 1 KUBE-EXT-*, 1 KUBE-FW-*, KUBE-MARK-MASQ, KUBE-NODEPORTS, KUBE-POSTROUTING, " +
				"KUBE-PROXY-CANARY, 2 KUBE-SEP-*, KUBE-SERVICES, 2 KUBE-SVC-*, 1 KUBE-SVL-*\n",
			"removed iptables chain of iptables-legacy mangle: KUBE-PROXY-CANARY\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the report lacks %q:\n%s", want, text)
			}
		}
		again, err := Run(t.Context(), Options{KubeProxy: true})
		if err != nil || len(again.Removed) > 0 {
			t.Errorf("the second time: %v, %v", again.Removed, err)
		}
		return nil
	})
}

func printed(r *Report) string {
	var b strings.Builder
	r.Print(&b)
	return b.String()
}

// TestRunOnNothing: an empty namespace stays empty; no table comes into being by being looked for.
func TestRunOnNothing(t *testing.T) {
	needIptables(t)
	testnet.New(t).Host("node").Do(func() error {
		r, err := Run(t.Context(), Options{KubeProxy: true})
		if err != nil || printed(r) != "nothing to remove\n" {
			t.Errorf("%v, %s", err, printed(r))
		}
		if got := tool(t, "", "nft", "list", "ruleset"); got != "" {
			t.Errorf("left %s", got)
		}
		for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
			if names, _ := os.ReadFile("/proc/thread-self/net/" + file); len(names) > 0 {
				t.Errorf("made the tables %q", names)
			}
		}
		return nil
	})
}

// TestForeignJump: a chain that another program's rule leads to cannot go; it is emptied and named, and everything else goes.
func TestForeignJump(t *testing.T) {
	needIptables(t)
	for _, program := range []string{"iptables-nft", "ip6tables-legacy"} {
		t.Run(program, func(t *testing.T) {
			testnet.New(t).Host("node").Do(func() error {
				load(t, program, kubeProxyRules)
				load(t, program, rules{"nat": {":KUBE-HP-X - [0:0]", "-A KUBE-HP-X -s ADDR -j KUBE-MARK-MASQ", "-A OUTPUT -s ADDR -j KUBE-SERVICES"}})
				r, err := Run(t.Context(), Options{KubeProxy: true})
				if err != nil || len(r.Notes) != 2 || !strings.Contains(r.Notes[0], "chain KUBE-MARK-MASQ of "+program+" nat is emptied but stays") {
					t.Errorf("%v, notes %q", err, r.Notes)
				}
				var left []string
				for line := range strings.Lines(tool(t, "", program+"-save")) {
					if strings.Contains(line, "KUBE-") {
						left = append(left, strings.TrimSpace(line))
					}
				}
				addr := map[bool]string{true: "fd00:96::1/128", false: "10.96.0.1/32"}[strings.HasPrefix(program, "ip6")]
				want := []string{"-A KUBE-HP-X -s " + addr + " -j KUBE-MARK-MASQ", "-A OUTPUT -s " + addr + " -j KUBE-SERVICES",
					":KUBE-HP-X - [0:0]", ":KUBE-MARK-MASQ - [0:0]", ":KUBE-SERVICES - [0:0]"}
				if slices.Sort(left); !slices.Equal(left, want) {
					t.Errorf("left %q, want %q", left, want)
				}
				return nil
			})
		})
	}
}

// TestWithoutPrograms: what is there and cannot be removed is an error, and what cannot even be read is a note.
func TestWithoutPrograms(t *testing.T) {
	needIptables(t)
	testnet.New(t).Host("node").Do(func() error {
		load(t, "iptables-nft", kubeProxyRules)
		load(t, "ip6tables-legacy", strangersRules)
		before := tool(t, "", "iptables-nft-save")
		path, dir := os.Getenv("PATH"), t.TempDir()
		t.Setenv("PATH", dir)
		r, err := Run(t.Context(), Options{KubeProxy: true})
		if err == nil || !strings.Contains(err.Error(), "kube-proxy's chains of iptables-nft (19, ") {
			t.Errorf("error %v", err)
		}
		if len(r.Notes) != 1 || !strings.HasPrefix(r.Notes[0], "ip6tables-legacy has tables here (") {
			t.Errorf("notes %q", r.Notes)
		}
		// The plain name alone, as some distributions have it.
		for _, end := range []string{"-save", "-restore"} {
			real, err := filepath.EvalSymlinks("/usr/sbin/iptables-nft" + end)
			if err != nil {
				return err
			}
			if err := os.Symlink(real, filepath.Join(dir, "iptables"+end)); err != nil {
				return err
			}
		}
		if _, err := Run(t.Context(), Options{KubeProxy: true}); err != nil {
			t.Error(err)
		}
		t.Setenv("PATH", path)
		if after := tool(t, "", "iptables-nft-save"); !strings.Contains(before, "KUBE-") || strings.Contains(after, "KUBE-") {
			t.Errorf("left\n%s", after)
		}
		return nil
	})
}

// TestUnreadableTable: a table into which somebody has put what iptables cannot express is not passed over in silence.
func TestUnreadableTable(t *testing.T) {
	needIptables(t)
	testnet.New(t).Host("node").Do(func() error {
		load(t, "iptables-nft", kubeProxyRules)
		tool(t, "", "nft", "add", "rule", "ip", "nat", "PREROUTING", "meta mark set numgen inc mod 2")
		r, err := Run(t.Context(), Options{KubeProxy: true})
		if err == nil || !strings.Contains(err.Error(), "iptables-nft-save is not installed or cannot read the table") {
			t.Errorf("%v, %s", err, printed(r))
		}
		if got := tool(t, "", "nft", "list", "table", "ip", "filter"); strings.Contains(got, "KUBE-") {
			t.Errorf("the table filter, which can be read, was left:\n%s", got)
		}
		return nil
	})
}

// TestIPVS: the interface of the mode ipvs is named and left, and the mode's chains go. (The interface's real kind is dummy; only its name counts.)
func TestIPVS(t *testing.T) {
	needIptables(t)
	h := testnet.New(t).Host("node")
	if err := h.Link.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "kube-ipvs0"}, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	h.Do(func() error {
		load(t, "iptables-nft", rules{
			"nat": {":KUBE-SERVICES - [0:0]", ":KUBE-NODE-PORT - [0:0]", ":KUBE-LOAD-BALANCER - [0:0]",
				`-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`, `-A KUBE-SERVICES -j KUBE-NODE-PORT`},
			"filter": {":KUBE-NODE-PORT - [0:0]", ":KUBE-IPVS-FILTER - [0:0]", ":KUBE-IPVS-OUT-FILTER - [0:0]", ":KUBE-SOURCE-RANGES-FIREWALL - [0:0]",
				":KUBE-PROXY-FIREWALL - [0:0]", `-A KUBE-PROXY-FIREWALL -j KUBE-SOURCE-RANGES-FIREWALL`,
				`-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER`,
				`-A OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER`,
				`-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT`,
				`-A FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL`},
		})
		r, err := Run(t.Context(), Options{KubeProxy: true})
		if err != nil || len(r.Notes) != 1 || !strings.HasPrefix(r.Notes[0], "interface kube-ipvs0, ") {
			t.Errorf("%v, notes %q", err, r.Notes)
		}
		if got := kernelState(t); strings.Contains(got, "KUBE-") {
			t.Errorf("left\n%s", got)
		}
		if _, err := netlink.LinkByName("kube-ipvs0"); err != nil {
			t.Errorf("the interface is gone: %v", err)
		}
		return nil
	})
}

// TestAgentRunning: while the table is there that goes with an agent's process, nothing is removed, unless it is asked for twice.
func TestAgentRunning(t *testing.T) {
	h := node(t)
	h.Do(func() error {
		leftovers(t, h)
		tool(t, "", "nft", "delete", "table", "inet", "fairlead-dns-17")
		end := ownedTable(t)
		before := tool(t, "", "nft", "list", "ruleset")
		if r, err := Run(t.Context(), Options{}); !errors.Is(err, ErrRunning) || len(r.Removed) > 0 {
			t.Errorf("%v, %v", err, r.Removed)
		}
		if r, err := Run(t.Context(), Options{DryRun: true}); err != nil || len(r.Removed) != 9 {
			t.Errorf("dry run: %v, %v", err, r.Removed)
		}
		if after := tool(t, "", "nft", "list", "ruleset"); after != before {
			t.Errorf("changed:\n%s", after)
		}
		r, err := Run(t.Context(), Options{OnlyKubeProxy: true})
		if err != nil || printed(r) != "removed nftables table ip kube-proxy\nremoved nftables table ip6 kube-proxy\n" {
			t.Errorf("only kube-proxy's: %v, %s", err, printed(r))
		}
		if after := tool(t, "", "nft", "list", "ruleset"); strings.Contains(after, "kube-proxy") || !strings.Contains(after, "table inet fairlead {") {
			t.Errorf("only kube-proxy's: left %s", after)
		}
		r, err = Run(t.Context(), Options{Force: true})
		if err != nil || len(r.Removed) != 9 || r.Removed[0].Name != "inet fairlead" ||
			!strings.HasPrefix(r.Notes[0], "table inet fairlead-dns-42 belongs to an agent that is running") {
			t.Errorf("forced: %v, %+v", err, r)
		}
		end()
		if r, err := Run(t.Context(), Options{}); err != nil || len(r.Removed) > 0 {
			t.Errorf("after its end: %v, %v", err, r.Removed)
		}
		return nil
	})
}

// ownedTable starts a process here that has an owned table until it is ended.
func ownedTable(t *testing.T) (end func()) {
	t.Helper()
	cmd := exec.Command("nft", "-i")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			in.Close()
			cmd.Wait()
		}
	}
	t.Cleanup(end)
	fmt.Fprint(in, "add table inet fairlead-dns-42 { flags owner; }\nlist tables\n")
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "table inet fairlead-dns-42") && !strings.Contains(lines.Text(), "add") {
			go io.Copy(io.Discard, out)
			return end
		}
	}
	t.Fatal("no owned table")
	return nil
}

// TestRandom puts random rules of kube-proxy between random ones of others, in all four places, with jumps at any place in the built-in chains.
func TestRandom(t *testing.T) {
	needIptables(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 5 {
		testnet.New(t).Host("node").Do(func() error {
			others, mixed := rules{}, rules{}
			for _, table := range []string{"nat", "filter", "mangle"} {
				chains := []string{"KUBE-FIREWALL", "KUBE-MARK-DROP", "OTHER", "KUBE-ROUTER-X"}
				for _, c := range chains {
					others[table] = append(others[table], ":"+c+" - [0:0]")
				}
				mixed[table] = slices.Clone(others[table])
				for _, line := range kubeProxyRules[table] {
					if chainFirst(line) == 0 {
						mixed[table] = append(mixed[table], line)
					}
				}
				ours := slices.DeleteFunc(slices.Clone(kubeProxyRules[table]), func(s string) bool { return chainFirst(s) == 0 })
				for range 30 {
					if len(ours) > 0 && rng.IntN(2) == 0 {
						mixed[table] = append(mixed[table], strings.Replace(ours[rng.IntN(len(ours))], "-I ", "-A ", 1))
						continue
					}
					from := append([]string{"OUTPUT"}, chains...)[rng.IntN(len(chains)+1)]
					comment := append([]string{"mine", "-j KUBE-SERVICES"}, jumpComments...)[rng.IntN(len(jumpComments)+2)]
					target := []string{"ACCEPT", "RETURN", "MARK --or-mark 1"}[rng.IntN(3)]
					if from == "OUTPUT" {
						target = append(chains, target)[rng.IntN(len(chains)+1)]
					}
					if strings.HasPrefix(target, "MARK") && table == "filter" {
						target = "DROP"
					}
					line := fmt.Sprintf(`-A %s -m mark --mark %d -m comment --comment "%s" -j %s`, from, rng.IntN(9), comment, target)
					others[table], mixed[table] = append(others[table], line), append(mixed[table], line)
				}
			}
			program := iptablesPrograms[rng.IntN(len(iptablesPrograms))]
			load(t, program, mixed)
			if _, err := Run(t.Context(), Options{KubeProxy: true}); err != nil {
				t.Errorf("%s: %v", program, err)
			}
			got := kernelState(t)
			alone := ""
			testnet.New(t).Host("alone").Do(func() error {
				load(t, program, others)
				alone = kernelState(t)
				return nil
			})
			if got != alone {
				t.Errorf("%s: left\n%s\nwant\n%s", program, got, alone)
			}
			return nil
		})
	}
}
