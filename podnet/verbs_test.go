// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/linux"
	"github.com/fairlead/fairlead/testnet"
)

var dual = []string{"10.244.1.0/24", "fd00:244:0:1::/64"}

// TestResult wants the whole result of an ADD as the specification describes it,
// in every version.
func TestResult(t *testing.T) {
	n := newNode(t, dual...)
	p := n.pod("a")
	id := hostName("a", "eth0")
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		n.conf["cniVersion"] = version
		n.conf["dns"] = map[string]any{"nameservers": []string{"10.96.0.10"}}
		out, err := n.run("ADD", p, n.conf)
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		var got, want map[string]any
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		v4, v6 := `"address":"10.244.1.2/32","gateway":"169.254.1.1"`, `"address":"fd00:244:0:1::2/128","gateway":"fe80::1"`
		if version < "1" {
			v4, v6 = `"version":"4",`+v4, `"version":"6",`+v6
		}
		text := fmt.Sprintf(`{"cniVersion":%q,
			"interfaces":[{"name":%q,"mac":%q},{"name":"eth0","mac":%q,"sandbox":%q}],
			"ips":[{"interface":1,%s},{"interface":1,%s}],
			"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}],
			"dns":{"nameservers":["10.96.0.10"]}}`, version, id, mac(id, "host"), mac(id, "pod"), p.NS.Path(), v4, v6)
		if err := json.Unmarshal([]byte(text), &want); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s:\n%v\nwant\n%v", version, got, want)
		}
	}
	leases, err := ListAttachments(n.dir)
	if err != nil || len(leases) != 1 {
		t.Fatalf("leases %+v, %v", leases, err)
	}
	cookie, err := p.NS.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	l := leases[0]
	if l.ID != id || l.ContainerID != "a" || l.IfName != "eth0" || l.NetNS != p.NS.Path() || l.NetNSID != cookie ||
		l.PodNamespace != "shop" || l.PodName != "a" || l.PodUID != "uid-a" || time.Since(l.AllocatedAt) > time.Hour {
		t.Errorf("lease %+v", l)
	}
	n.mustDel(p)
	n.wantEmpty()
}

// TestPrevResult adds to what an earlier plugin of the list said.
func TestPrevResult(t *testing.T) {
	n := newNode(t, dual...)
	p := n.pod("a")
	conf := maps.Clone(n.conf)
	conf["prevResult"] = map[string]any{
		"cniVersion": "1.1.0",
		"interfaces": []any{map[string]any{"name": "other0", "sandbox": "/x"}},
		"ips":        []any{map[string]any{"interface": 0, "address": "192.0.2.7/24"}},
		"dns":        map[string]any{"domain": "example.org"},
	}
	out, err := n.run("ADD", p, conf)
	if err != nil {
		t.Fatal(err)
	}
	var got types100.Result
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Interfaces) != 3 || len(got.IPs) != 3 || *got.IPs[0].Interface != 0 || *got.IPs[2].Interface != 2 ||
		got.Interfaces[2].Name != "eth0" || got.DNS.Domain != "example.org" {
		t.Errorf("%s", out)
	}
	if err := n.check(p, &got); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	conf["prevResult"] = map[string]any{"cniVersion": "1.1.0", "ips": "many"}
	for _, verb := range []string{"ADD", "CHECK", "DEL"} {
		if _, err := n.run(verb, p, conf); code(err) != types.ErrDecodingFailure || !strings.Contains(err.Error(), "prevResult") {
			t.Errorf("%s with a bad prevResult: %v", verb, err)
		}
	}
	n.mustDel(p)
	n.wantEmpty()
}

// TestRepeat repeats every verb, before and after it has something to do.
func TestRepeat(t *testing.T) {
	n := newNode(t, dual...)
	p, other := n.pod("a"), n.pod("b")
	n.mustDel(p)
	first := n.mustAdd(p)
	before := n.kernel()
	server := p.Echo("tcp", "10.244.1.2:80")
	for range 2 {
		if again := n.mustAdd(p); fmt.Sprint(addrs(again)) != fmt.Sprint(addrs(first)) || again.Interfaces[1].Mac != first.Interfaces[1].Mac {
			t.Errorf("ADD again: %v, first %v", again, first)
		}
	}
	if n.kernel() != before {
		t.Errorf("kernel after ADD again: %s\nbefore %s", n.kernel(), before)
	}
	if got, err := n.Ask("tcp", "", server); err != nil || got.Name != "a" {
		t.Errorf("after ADD again: %+v, %v", got, err)
	}
	n.mustAdd(other)
	for range 2 {
		n.mustDel(p)
	}
	if err := n.check(other, n.mustAdd(other)); err != nil {
		t.Errorf("CHECK of another pod: %v", err)
	}
	if again := n.mustAdd(p); fmt.Sprint(addrs(again)) != "[10.244.1.4 fd00:244:0:1::4]" {
		t.Errorf("ADD after DEL: %v", addrs(again))
	}
	n.mustDel(p)
	other.NS.Close() // DEL of a pod whose namespace is gone
	other.Link.Close()
	n.runGone(other)
	n.wantEmpty()
}

// runGone runs DEL without CNI_NETNS, with one that does not exist, and with one that is the node's own by now.
func (n *node) runGone(p *pod) {
	n.t.Helper()
	cmd := n.command("DEL", &pod{id: p.id}, n.conf)
	if _, err := n.runCommand(cmd); err != nil {
		n.t.Errorf("DEL without namespace: %v", err)
	}
	for _, path := range []string{"/proc/1/fd/no", "/proc/self/ns/net"} {
		cmd = n.command("DEL", &pod{id: p.id}, n.conf)
		cmd.Env = append(cmd.Env, "CNI_NETNS="+path)
		if _, err := n.runCommand(cmd); err != nil {
			n.t.Errorf("DEL with the path %s: %v", path, err)
		}
	}
}

// TestCheck breaks everything that CHECK should look at, one after the other, and
// lets ADD mend it.
func TestCheck(t *testing.T) {
	n := newNode(t, dual...)
	p := n.pod("a")
	result := n.mustAdd(p)
	id := hostName("a", "eth0")
	link := func(h *testnet.Host, name string) netlink.Link {
		l, err := h.Link.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	delNeigh := func(h *testnet.Host, name, addr string) func() error {
		return func() error {
			return h.Link.NeighDel(&netlink.Neigh{LinkIndex: link(h, name).Attrs().Index, IP: net.ParseIP(addr)})
		}
	}
	delRoute := func(h *testnet.Host, dst string) func() error {
		return func() error {
			_, n, err := net.ParseCIDR(dst)
			if err != nil {
				return err
			}
			return h.Link.RouteDel(&netlink.Route{Dst: n, Scope: netlink.SCOPE_NOWHERE})
		}
	}
	delAddr := func(addr string) func() error {
		return func() error {
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			return p.Link.AddrDel(link(p.Host, "eth0"), a)
		}
	}
	for _, c := range []struct {
		want string
		harm func() error
	}{
		{"interface eth0 does not have address 10.244.1.2", delAddr("10.244.1.2/32")},
		{"interface eth0 does not have address fd00:244:0:1::2", delAddr("fd00:244:0:1::2/128")},
		{"no route to 0.0.0.0/0 via 169.254.1.1", delRoute(p.Host, "0.0.0.0/0")},
		{"no route to ::/0 via fe80::1", delRoute(p.Host, "::/0")},
		{"no permanent neighbour 169.254.1.1", delNeigh(p.Host, "eth0", "169.254.1.1")},
		{"no permanent neighbour fe80::1", delNeigh(p.Host, "eth0", "fe80::1")},
		{"route to 10.244.1.2", delRoute(n.Host, "10.244.1.2/32")},
		{"route to fd00:244:0:1::2", delRoute(n.Host, "fd00:244:0:1::2/128")},
		{"no permanent neighbour 10.244.1.2", delNeigh(n.Host, id, "10.244.1.2")},
		{"no permanent neighbour fd00:244:0:1::2", delNeigh(n.Host, id, "fd00:244:0:1::2")},
		{"eth0 is down", func() error { return p.Link.LinkSetDown(link(p.Host, "eth0")) }},
		{id + " is down", func() error { return n.Link.LinkSetDown(link(n.Host, id)) }},
		{id + ": Link not found", func() error { return n.Link.LinkDel(link(n.Host, id)) }},
		{"interface eth0: Link not found", func() error {
			eth0 := link(p.Host, "eth0")
			if err := p.Link.LinkSetDown(eth0); err != nil {
				return err
			}
			return p.Link.LinkSetName(eth0, "eth1")
		}},
	} {
		if err := n.check(p, result); err != nil {
			t.Fatalf("before harm (%s): %v", c.want, err)
		}
		if err := c.harm(); err != nil {
			t.Fatalf("%s: harm: %v", c.want, err)
		}
		if err := n.check(p, result); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("CHECK: %v, want %s", err, c.want)
		}
		if again := n.mustAdd(p); fmt.Sprint(addrs(again)) != fmt.Sprint(addrs(result)) {
			t.Errorf("%s: ADD gave %v", c.want, addrs(again))
		}
	}
	wrong := *result
	wrong.IPs = wrong.IPs[:1]
	if err := n.check(p, &wrong); err == nil || !strings.Contains(err.Error(), "does not have address fd00:244:0:1::2") {
		t.Errorf("CHECK with another result: %v", err)
	}
	if _, err := n.run("CHECK", p, n.conf); code(err) != types.ErrInvalidNetworkConfig {
		t.Errorf("CHECK without result: %v", err)
	}
	n.mustDel(p)
	if err := n.check(p, result); code(err) != types.ErrUnknownContainer {
		t.Errorf("CHECK after DEL: %v", err)
	}
	n.wantEmpty()
}

// TestBadInput wants a clear error with the specified code, and nothing left.
func TestBadInput(t *testing.T) {
	n := newNode(t, dual...)
	p := n.pod("a")
	good, err := json.Marshal(n.conf)
	if err != nil {
		t.Fatal(err)
	}
	with := func(key string, value any) string {
		conf := maps.Clone(n.conf)
		if conf[key] = value; value == nil {
			delete(conf, key)
		}
		text, err := json.Marshal(conf)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, c := range []struct {
		name, stdin string
		env         []string
		code        uint
		want        string
	}{
		{"empty", "", nil, types.ErrDecodingFailure, "standard input is empty"},
		{"no JSON", "podCIDRs: []", nil, types.ErrDecodingFailure, "invalid character"},
		{"half", string(good[:len(good)/2]), nil, types.ErrDecodingFailure, "unexpected end"},
		{"list", "[]", nil, types.ErrDecodingFailure, "cannot unmarshal array"},
		{"huge", strings.Repeat(" ", maxConf+1), nil, types.ErrDecodingFailure, "larger than"},
		{"no version", with("cniVersion", nil), nil, types.ErrIncompatibleCNIVersion, "0.1.0"},
		{"old version", with("cniVersion", "0.2.0"), nil, types.ErrIncompatibleCNIVersion, "0.2.0"},
		{"new version", with("cniVersion", "9.0.0"), nil, types.ErrIncompatibleCNIVersion, "9.0.0"},
		{"no name", with("name", nil), nil, types.ErrInvalidNetworkConfig, "missing network name"},
		{"no ranges", with("podCIDRs", nil), nil, types.ErrInvalidNetworkConfig, "podCIDRs is empty"},
		{"ranges of another type", with("podCIDRs", 7), nil, types.ErrDecodingFailure, "podCIDRs"},
		{"bad range", with("podCIDRs", []string{"10.244.1.0"}), nil, types.ErrInvalidNetworkConfig, `"10.244.1.0"`},
		{"small range", with("podCIDRs", []string{"10.244.1.0/32"}), nil, types.ErrInvalidNetworkConfig, "too small"},
		{"equal families", with("podCIDRs", []string{"10.1.0.0/24", "10.2.0.0/24"}), nil, types.ErrInvalidNetworkConfig, "of each address family"},
		{"no directory", with("dataDir", nil), nil, types.ErrInvalidNetworkConfig, "dataDir"},
		{"relative directory", with("dataDir", "var"), nil, types.ErrInvalidNetworkConfig, "absolute path"},
		{"relative socket", with("agent", "agent.sock"), nil, types.ErrInvalidNetworkConfig, "absolute path"},
		{"negative MTU", with("mtu", -1), nil, types.ErrInvalidNetworkConfig, "mtu is -1"},
		{"huge MTU", with("mtu", 70000), nil, types.ErrInvalidNetworkConfig, "mtu is 70000"},
		{"small MTU for IPv6", with("mtu", 1000), nil, types.ErrInvalidNetworkConfig, "at least 1280 for IPv6"},
		{"unusable directory", with("dataDir", "/dev/null/x"), nil, types.ErrInternal, "not a directory"},
		{"no container", string(good), []string{"CNI_CONTAINERID="}, types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID"},
		{"bad container", string(good), []string{"CNI_CONTAINERID=a/b"}, types.ErrInvalidEnvironmentVariables, "invalid characters"},
		{"bad interface", string(good), []string{"CNI_IFNAME=a/b"}, types.ErrInvalidEnvironmentVariables, "interface name"},
		{"long interface", string(good), []string{"CNI_IFNAME=abcdefghijklmnop"}, types.ErrInvalidEnvironmentVariables, "interface name"},
		{"no namespace", string(good), []string{"CNI_NETNS="}, types.ErrInvalidEnvironmentVariables, "CNI_NETNS"},
		{"namespace gone", string(good), []string{"CNI_NETNS=/proc/1/fd/no"}, types.ErrInvalidNetNS, "no such file"},
		{"no namespace but a file", string(good), []string{"CNI_NETNS=/dev/null"}, types.ErrInvalidNetNS, "not a network namespace"},
		{"the node's own namespace", string(good), []string{"CNI_NETNS=/proc/self/ns/net"}, types.ErrInvalidNetNS, "own network namespace"},
		{"loopback's name", string(good), []string{"CNI_IFNAME=lo"}, types.ErrInternal, "interface lo is in the pod's network namespace already"},
		{"unknown verb", string(good), []string{"CNI_COMMAND=HELP"}, types.ErrInvalidEnvironmentVariables, "HELP"},
	} {
		cmd := n.command("ADD", p, nil)
		cmd.Stdin = strings.NewReader(c.stdin)
		cmd.Env = append(cmd.Env, c.env...)
		out, err := n.runCommand(cmd)
		if code(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s%v (code %d), want code %d and %q", c.name, out, err, code(err), c.code, c.want)
		}
	}
	// Also verbs that are not for this version, and those that need less.
	for verb, version := range map[string]string{"GC": "1.0.0", "STATUS": "1.0.0", "CHECK": "0.3.1"} {
		conf := maps.Clone(n.conf)
		conf["cniVersion"] = version
		if _, err := n.run(verb, p, conf); code(err) != types.ErrIncompatibleCNIVersion {
			t.Errorf("%s of version %s: %v", verb, version, err)
		}
	}
	for _, conf := range []string{with("podCIDRs", nil), with("podCIDRs", []string{"nonsense"})} {
		cmd := n.command("DEL", p, nil)
		cmd.Stdin = strings.NewReader(conf)
		if _, err := n.runCommand(cmd); err != nil {
			t.Errorf("DEL with bad ranges: %v", err)
		}
	}
	out, err := n.runCommand(n.command("VERSION", nil, nil))
	if err != nil || !strings.Contains(string(out), `"supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("VERSION: %s, %v", out, err)
	}
	n.wantEmpty()
}

// TestAgent asks an agent that answers in every way.
func TestAgent(t *testing.T) {
	n := newNode(t, dual...)
	p := n.pod("a")
	var asked []string
	answer := http.StatusOK
	n.fakeAgent(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.String())
		w.WriteHeader(answer)
		fmt.Fprintln(w, "the API server has not answered yet\nmore")
	})
	n.mustAdd(p)
	n.mustAdd(p)
	if _, err := n.run("STATUS", nil, n.conf); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	const deliver = "GET /v1/deliver?addr=10.244.1.2&addr=fd00%3A244%3A0%3A1%3A%3A2&pod=shop%2Fa&timeout=9s"
	if want := []string{deliver, deliver, "GET /v1/ready"}; !slices.Equal(asked, want) {
		t.Errorf("asked %v, want %v", asked, want)
	}
	answer = http.StatusServiceUnavailable
	const said = "the agent of this node is not ready: the API server has not answered yet"
	if _, err := n.run("STATUS", nil, n.conf); code(err) != types.ErrPluginNotAvailable || err.Error() != said {
		t.Errorf("STATUS while not ready: %v", err)
	}
	// what worked goes on working
	if _, err := n.add(p); code(err) != types.ErrTryAgainLater || err.Error() != said {
		t.Errorf("ADD again while not ready: %v", err)
	}
	n.conf["agent"] = ""
	if err := n.check(p, n.mustAdd(p)); err != nil {
		t.Errorf("after an ADD that had to wait: %v", err)
	}
	n.mustDel(p)
	n.wantEmpty()

	gone := filepath.Join(t.TempDir(), "agent.sock")
	n.conf["agent"] = gone
	if _, err := n.add(p); code(err) != types.ErrTryAgainLater || err.Error() != "the agent of this node is not running: there is no socket "+gone {
		t.Errorf("ADD without agent: %v", err)
	}
	if _, err := n.run("STATUS", nil, n.conf); code(err) != types.ErrPluginNotAvailable {
		t.Errorf("STATUS without agent: %v", err)
	}
	if err := os.WriteFile(gone, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.add(p); code(err) != types.ErrTryAgainLater || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("ADD with a dead socket: %v", err)
	}
	n.wantEmpty()
}

// TestLetGo: DEL tells the agent, while the pod can still be reached, and waits for its answer, but not for one that does not come; ADD of a pod without a name,
// of whom no Service can know, is nobody's business when it ends.
func TestLetGo(t *testing.T) {
	n := newNode(t, dual...)
	var asked []string
	answer := func(http.ResponseWriter, *http.Request) {}
	n.fakeAgent(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" {
			return
		}
		said := r.URL.Path + " " + r.URL.Query().Get("pod") + " " + strings.Join(r.URL.Query()["addr"], " ")
		if err := n.NS.Do(func() error { _, err := netlink.LinkByName(hostName("a", "eth0")); return err }); err != nil {
			said += fmt.Sprint(": ", err)
		}
		asked = append(asked, said)
		answer(w, r)
	})
	for name, says := range map[string]func(http.ResponseWriter, *http.Request){
		"yes":     answer,
		"no":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGatewayTimeout) },
		"unknown": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"nothing": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			asked, answer = nil, says
			p := n.pod("a")
			var addrs []string
			for _, ip := range n.mustAdd(p).IPs {
				addrs = append(addrs, ip.Address.IP.String())
			}
			n.mustDel(p)
			n.mustDel(p) // of nothing
			if want := []string{"/v1/detach shop/a " + strings.Join(addrs, " ")}; !slices.Equal(asked, want) {
				t.Errorf("told %q, want %q", asked, want)
			}
			n.wantEmpty()
		})
	}
}

// TestAgentSilent has an agent that takes the connection and says nothing, or
// nonsense.
func TestAgentSilent(t *testing.T) {
	for _, words := range []string{"", "220 welcome\r\n", "HTTP/1.1 503 \r\n\r\n"} {
		socket := filepath.Join(t.TempDir(), "agent.sock")
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan bool)
		go func() {
			defer close(done)
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			conn.Read(make([]byte, 1<<10)) // the request
			fmt.Fprint(conn, words)
			if words == "" {
				conn.Read(make([]byte, 1<<10)) // until the other side gives up
			}
		}()
		q, err := dial(socket, 200*time.Millisecond)
		if err == nil {
			err = q.ask("GET", "/v1/ready")
		}
		if err == nil {
			err = q.answer()
		}
		want := map[string]string{"": "did not answer within 200ms", "220 welcome\r\n": "does not answer", "HTTP/1.1 503 \r\n\r\n": "not ready: 503"}[words]
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", words, err, want)
		}
		listener.Close()
		<-done
	}
}

// TestGC leaves the valid attachments and nothing else, whatever is left of the
// others.
func TestGC(t *testing.T) {
	n := newNode(t, dual...)
	var pods []*pod
	for i := range 4 {
		pods = append(pods, n.pod(fmt.Sprint("p", i)))
		n.mustAdd(pods[i])
	}
	// p2 has lost its interface, p3 its lease
	n.Do(func() error { return unwire(hostName("p2", "eth0")) })
	store, err := ipam.New(ipam.Config{Dir: n.dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Release(hostName("p3", "eth0")); err != nil {
		t.Fatal(err)
	}
	// of another network of the same node
	elsewhere, stranger := maps.Clone(n.conf), n.pod("stranger")
	elsewhere["podCIDRs"], elsewhere["dataDir"] = []string{"10.99.0.0/24"}, n.dir+"-elsewhere"
	out, err := n.run("ADD", stranger, elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	conf := maps.Clone(n.conf)
	conf["cni.dev/valid-attachments"] = []any{map[string]any{"containerID": "p1", "ifname": "eth0"}}
	for range 2 {
		if _, err := n.run("GC", nil, conf); err != nil {
			t.Fatal(err)
		}
	}
	leases, err := ListAttachments(n.dir)
	if err != nil || len(leases) != 1 || leases[0].PodName != "p1" {
		t.Errorf("leases %+v, %v", leases, err)
	}
	if err := n.check(pods[1], n.mustAdd(pods[1])); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	conf["cni.dev/valid-attachments"] = []any{}
	if _, err := n.run("GC", nil, conf); err != nil {
		t.Fatal(err)
	}
	elsewhere["prevResult"] = json.RawMessage(out)
	if _, err := n.run("CHECK", stranger, elsewhere); err != nil {
		t.Errorf("GC harmed another network: %v", err)
	}
	if _, err := n.run("DEL", stranger, elsewhere); err != nil {
		t.Fatal(err)
	}
	n.wantEmpty()
}

// TestLeasesLost deletes or damages the lease file under live pods. Nobody gets
// the address of another, and DEL still finds what to take away.
func TestLeasesLost(t *testing.T) {
	for _, harm := range []struct {
		name string
		do   func(dir string) error
	}{
		{"deleted", os.RemoveAll},
		{"emptied", func(dir string) error { return os.Truncate(filepath.Join(dir, "leases"), 0) }},
		{"overwritten", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "leases"), []byte("#!/bin/sh\nexit 0\n"), 0o600)
		}},
	} {
		t.Run(harm.name, func(t *testing.T) {
			n := newNode(t, dual...)
			a, b, c := n.pod("a"), n.pod("b"), n.pod("c")
			n.mustAdd(a)
			want := n.mustAdd(b)
			if err := harm.do(n.dir); err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(addrs(n.mustAdd(c))); got != "[10.244.1.4 fd00:244:0:1::4]" {
				t.Errorf("gave %s", got)
			}
			if err := n.check(b, want); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if got := n.mustAdd(b); fmt.Sprint(addrs(got)) != fmt.Sprint(addrs(want)) {
				t.Errorf("ADD again gave %v", addrs(got))
			}
			for _, p := range []*pod{a, b, c} {
				n.mustDel(p)
			}
			n.wantEmpty()
		})
	}
}

// TestTaken lets an address be routed against the leases: to a pod that has none,
// which is then held, and to somebody else's interface, which is an error.
func TestTaken(t *testing.T) {
	n := newNode(t, "10.244.1.0/29")
	a, b := n.pod("a"), n.pod("b")
	n.mustAdd(a)
	store, err := ipam.New(ipam.Config{Dir: n.dir, Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/29")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Release(hostName("a", "eth0")); err != nil {
		t.Fatal(err)
	}
	for _, last := range []string{"3", "4", "5", "6"} { // so that a's is the next
		if _, err := store.Allocate(ipam.Lease{ID: last}); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Release(last); err != nil {
			t.Fatal(err)
		}
	}
	var told []string // of the address that b has in the end, too
	n.fakeAgent(func(_ http.ResponseWriter, r *http.Request) { told = append(told, r.URL.Query().Get("addr")) })
	if got := fmt.Sprint(addrs(n.mustAdd(b))); got != "[10.244.1.3]" || !slices.Equal(told, []string{"10.244.1.2", "10.244.1.3"}) {
		t.Errorf("gave %s, and told the agent of %s", got, told)
	}
	n.conf["agent"] = ""
	n.mustDel(b)
	n.mustDel(a)
	n.wantEmpty()

	for _, last := range []string{"2", "3", "4", "5", "6"} {
		n.Route("10.244.1."+last+"/32", "", "lo")
	}
	if _, err := n.add(a); err == nil || !strings.Contains(err.Error(), "the node has a route to it") {
		t.Errorf("ADD over a stranger's route: %v", err)
	}
	n.wantEmpty()
	if routes, err := n.Link.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: 4}, netlink.RT_FILTER_PROTOCOL); err != nil || len(routes) != 5 {
		t.Errorf("a stranger's routes: %v, %v", routes, err)
	}
}

// TestFull fills a range, wants the error, and then addresses of pods that went
// away without a DEL.
func TestFull(t *testing.T) {
	n := newNode(t, "10.244.1.0/29")
	var pods []*pod
	for i := range 5 {
		pods = append(pods, n.pod(fmt.Sprint("p", i)))
		n.mustAdd(pods[i])
	}
	late := n.pod("late")
	_, err := n.add(late)
	if code(err) != types.ErrTryAgainLater || !strings.Contains(err.Error(), "no free address in range 10.244.1.0/29: 5 of 5 are held") {
		t.Errorf("ADD to a full range: %v", err)
	}
	n.Do(func() error { return unwire(hostName("p3", "eth0")) })
	if _, err := n.add(late); err == nil {
		t.Error("took the address of a lease that may be about to be used")
	}
	old, err := os.ReadFile(filepath.Join(n.dir, "leases"))
	if err != nil {
		t.Fatal(err)
	}
	aged := ageLeases(t, old)
	if err := os.WriteFile(filepath.Join(n.dir, "leases"), aged, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(addrs(n.mustAdd(late))); got != "[10.244.1.5]" {
		t.Errorf("gave %s", got)
	}
	for _, p := range append(pods, late) {
		n.mustDel(p)
	}
	n.wantEmpty()
}

// ageLeases makes all leases in a file an hour older.
func ageLeases(t *testing.T, file []byte) []byte {
	t.Helper()
	var out []byte
	for line := range strings.Lines(string(file)) {
		fields := strings.Split(strings.TrimSuffix(line[len("01234567 "):], "\n"), "\t")
		if fields[0] == "hold" {
			at, err := time.Parse(time.RFC3339Nano, fields[3])
			if err != nil {
				t.Fatal(err)
			}
			fields[3] = at.Add(-time.Hour).Format(time.RFC3339Nano)
		}
		text := strings.Join(fields, "\t")
		out = fmt.Appendf(out, "%08x %s\n", crc32.ChecksumIEEE([]byte(text)), text)
	}
	return out
}

// TestRangeChange moves a node to another range under its pods.
func TestRangeChange(t *testing.T) {
	n := newNode(t, "10.244.1.0/24")
	a, b := n.pod("a"), n.pod("b")
	result := n.mustAdd(a)
	n.conf["podCIDRs"] = []string{"10.244.9.0/24", "fd00:244:0:9::/64"}
	if err := n.check(a, result); err != nil {
		t.Errorf("CHECK after the change: %v", err)
	}
	n.mustAdd(b)
	server := b.Echo("tcp", "10.244.9.2:80")
	if got, err := a.Ask("tcp", "", server); err != nil || got.Client.Addr().String() != "10.244.1.2" {
		t.Errorf("from the old range to the new one: %+v, %v", got, err)
	}
	if got := fmt.Sprint(addrs(n.mustAdd(a))); got != "[10.244.9.3 fd00:244:0:9::3]" {
		t.Errorf("ADD again gave %s", got)
	}
	n.mustDel(a)
	n.mustDel(b)
	n.wantEmpty()
}

// TestMTU takes it from the configuration, or from the node's default route.
func TestMTU(t *testing.T) {
	n := newNode(t, dual...)
	eth0, err := n.Link.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Link.LinkSetMTU(eth0, 1450); err != nil {
		t.Fatal(err)
	}
	p := n.pod("a")
	for _, c := range []struct{ conf, want int }{{0, 1500}, {1400, 1400}, {9000, 9000}, {0, 1450}} {
		if c.want == 1450 {
			n.Route("0.0.0.0/0", "172.30.0.1", "eth0")
		}
		n.conf["mtu"] = c.conf
		n.mustAdd(p)
		for h, name := range map[*testnet.Host]string{n.Host: hostName("a", "eth0"), p.Host: "eth0"} {
			link, err := h.Link.LinkByName(name)
			if err != nil || link.Attrs().MTU != c.want {
				t.Errorf("mtu %d: %s has %v, %v", c.conf, name, link, err)
			}
		}
		n.mustDel(p)
	}
}

// TestSysctls starts a pod where the node filters reverse paths strictly and the
// pod's namespace has IPv6 off.
func TestSysctls(t *testing.T) {
	n := newNode(t, dual...)
	n.Sysctl("net/ipv4/conf/default/rp_filter", "1")
	p := n.pod("a")
	p.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	p.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
	n.mustAdd(p)
	for _, server := range []string{"10.244.1.2:80", "[fd00:244:0:1::2]:80"} {
		if _, err := n.Ask("tcp", "", p.Echo("tcp", server)); err != nil {
			t.Errorf("%s: %v", server, err)
		}
	}
	n.Do(func() error {
		got, err := linux.ReadSysctl("net/ipv4/conf/" + hostName("a", "eth0") + "/rp_filter")
		if got != "0" {
			t.Errorf("rp_filter is %s", got)
		}
		return err
	})
	n.mustDel(p)
	n.wantEmpty()
}

// TestConcurrent starts 50 pods at once and stops them at once.
func TestConcurrent(t *testing.T) {
	n := newNode(t, dual...)
	var pods []*pod
	for i := range 50 {
		pods = append(pods, n.pod(fmt.Sprint("p", i)))
	}
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		seen = map[netip.Addr]string{}
	)
	for _, p := range pods {
		all.Go(func() {
			result, err := n.add(p)
			if err != nil {
				t.Errorf("ADD %s: %v", p.id, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, addr := range addrs(result) {
				if seen[addr] != "" {
					t.Errorf("%s given to %s and %s", addr, seen[addr], p.id)
				}
				seen[addr] = p.id
			}
		})
	}
	all.Wait()
	if len(seen) != 2*len(pods) {
		t.Errorf("%d addresses", len(seen))
	}
	for _, p := range pods {
		all.Go(func() {
			if _, err := n.run("DEL", p, n.conf); err != nil {
				t.Errorf("DEL %s: %v", p.id, err)
			}
		})
	}
	all.Wait()
	n.wantEmpty()
}

// TestKill kills ADD and DEL at random moments. After each the same verb, another
// one or GC mends what is left; nobody else is harmed, and at the end nothing is
// left.
func TestKill(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t, dual...)
	bystander := n.pod("bystander")
	steady := n.mustAdd(bystander)
	p := n.pod("victim")
	killed := 0
	for round := range 60 {
		verb := []string{"ADD", "ADD", "DEL"}[random.IntN(3)]
		if verb == "DEL" {
			n.mustAdd(p)
		}
		cmd := n.command(verb, p, n.conf)
		if err := n.start(cmd); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(random.IntN(25000))*time.Microsecond, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			killed++
		}
		timer.Stop()
		switch random.IntN(3) {
		case 0:
			result := n.mustAdd(p)
			if err := n.check(p, result); err != nil {
				t.Errorf("round %d: CHECK: %v", round, err)
			}
		case 1:
			n.mustDel(p)
			if links, _ := p.Link.LinkList(); len(links) != 1 {
				t.Errorf("round %d: %d interfaces in the pod", round, len(links))
			}
		case 2:
			conf := maps.Clone(n.conf)
			conf["cni.dev/valid-attachments"] = []any{map[string]any{"containerID": "bystander", "ifname": "eth0"}}
			if _, err := n.run("GC", nil, conf); err != nil {
				t.Errorf("round %d: GC: %v", round, err)
			}
			if leases, err := ListAttachments(n.dir); err != nil || len(leases) != 1 {
				t.Errorf("round %d: after GC: %+v, %v", round, leases, err)
			}
		}
		if err := n.check(bystander, steady); err != nil {
			t.Fatalf("round %d: bystander: %v", round, err)
		}
	}
	t.Logf("%d of 60 killed in the middle", killed)
	if killed == 0 {
		t.Error("nothing was killed: the delays are too long")
	}
	n.mustDel(p)
	n.mustDel(bystander)
	n.wantEmpty()
}

func TestHostName(t *testing.T) {
	name := hostName("container", "eth0")
	if !isHostName(name) || len(name) != 13 || name == hostName("container", "eth1") || name == hostName("containe", "reth0") {
		t.Errorf("name %s", name)
	}
	for _, other := range []string{"", "fl", "flannel.1", "fl0123456789", "fl0123456789ab0", "fl0123456789G", "eth0"} {
		if isHostName(other) {
			t.Errorf("took %q for ours", other)
		}
	}
	a, b := mac(name, "host"), mac(name, "pod")
	if a.String() == b.String() || a.String() != mac(name, "host").String() || a[0]&3 != 2 || b[0]&3 != 2 {
		t.Errorf("addresses %s and %s", a, b)
	}
}
