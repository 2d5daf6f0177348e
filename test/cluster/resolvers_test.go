// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/model"
	"github.com/fairlead/fairlead/test/queries"
	"github.com/fairlead/fairlead/testnet"
)

// TestResolvers: the resolvers that programs in pods use, those of glibc, musl, Go
// and Node and dig, get what the table of questions says, in clusters that are the
// table's worlds: of IPv4, of IPv6 and of both.
func TestResolvers(t *testing.T) {
	groups, err := queries.Groups()
	if err != nil {
		t.Fatal(err)
	}
	programs := buildResolvers(t)
	for _, world := range []struct {
		name string
		args []string
	}{
		{"v4", nil},
		{"v6", []string{"--service-cidr", "fd00:96::/112", "--pod-cidr", "fd00:244::/48", "--node-cidr", "fd00:30::/64"}},
		{"dual", []string{"--service-cidr", "10.96.0.0/16,fd00:96::/112", "--pod-cidr", "10.244.0.0/16,fd00:244::/48"}},
	} {
		t.Run(world.name, func(t *testing.T) {
			// The group without further settings is about a cluster as up makes it.
			i := slices.IndexFunc(groups, func(g queries.Group) bool {
				return g.World == world.name && g.Settings["pods"] == "" && g.Settings["domain"] == ""
			})
			w := newWorld(t, "resolvers-"+world.name)
			if r := w.up(t, append([]string{"--nodes", "1"}, world.args...)...); r.code != 0 {
				t.Fatalf("up: %s", r)
			}
			t.Cleanup(func() { w.run(t, "", "fairlead", "down", "--state", string(w.dir), "--purge") })
			if err := w.connect(); err != nil {
				t.Fatal(err)
			}
			w.inhabit(t, groups[i].Snapshot)
			w.judgeResolvers(t, programs, groups[i])
		})
	}
}

// buildResolvers makes the programs that ask, and returns how each is started.
func buildResolvers(t *testing.T) map[string][]string {
	t.Helper()
	source := func(name string) string { return filepath.Join(root(), "test/cluster/testdata/resolvers", name) }
	dir := t.TempDir()
	programs := map[string][]string{"node": {"node", source("resolve.mjs")}}
	for _, b := range []struct {
		name, pkg string
		command   []string
	}{
		{"glibc", "gcc", []string{"gcc", "-O1", "-o", filepath.Join(dir, "glibc"), source("resolve.c"), "-lresolv"}},
		{"musl", "musl-tools", []string{"musl-gcc", "-static", "-O1", "-o", filepath.Join(dir, "musl"), source("resolve.c")}},
		{"go", "golang", []string{"go", "build", "-o", filepath.Join(dir, "go"), source("resolve.go")}},
		{"node", "nodejs", nil},
		{"dig", "bind9-dnsutils", nil},
		{"getent", "libc-bin", nil},
	} {
		program := b.name
		if b.command != nil {
			program = b.command[0]
		}
		if _, err := exec.LookPath(program); err != nil {
			testnet.Skip(t, "needs "+program+" (package "+b.pkg+")")
		}
		if b.command == nil {
			continue
		}
		if out, err := exec.Command(b.command[0], b.command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(b.command, " "), err, out)
		}
		programs[b.name] = []string{filepath.Join(dir, b.name)}
	}
	return programs
}

// asker is the pod that asks.
const asker = "asker"

// inhabit makes the Services of a snapshot with what their slices say, and the pod
// that asks, and returns when all names are known.
func (w *world) inhabit(t *testing.T, snap *model.Snapshot) {
	t.Helper()
	ctx := t.Context()
	var order []*model.Service
	for _, svc := range snap.Services.All() {
		order = append(order, svc)
	}
	// Watches give what they have in order: when the last Service has its endpoint,
	// all Services have theirs.
	last := &model.Service{ServiceSpec: model.ServiceSpec{Name: model.Name{Namespace: "lonely", Name: "last"}, Type: model.Headless}, Slices: 1}
	last.Endpoints = []model.Endpoint{{Addr: netip.MustParseAddr("192.0.2.9"), Ready: true, Serving: true}}
	if snap.DNS[0].Is6() {
		last.Endpoints[0].Addr = netip.MustParseAddr("2001:db8::9")
	}
	for _, svc := range append(order, last) {
		if ns := svc.Name.Namespace; ns == metav1.NamespaceSystem || ns == metav1.NamespaceDefault {
			continue // every cluster has those
		}
		_, err := w.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: svc.Name.Namespace}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		service, endpointSlices := objectsOf(svc)
		if _, err := w.kube.CoreV1().Services(service.Namespace).Create(ctx, service, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, s := range endpointSlices {
			if _, err := w.kube.DiscoveryV1().EndpointSlices(s.Namespace).Create(ctx, s, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: asker, namespace: shop}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: asker, image: host, command: [sleep, infinity]}]
`)
	w.kubectl(t, "-n", namespace, "wait", "pod", asker, "--for=condition=Ready", "--timeout=30s")
	eventually(t, 10*time.Second, "the last name", func() error {
		if r := w.exec(t, asker, "getent", "ahosts", "last.lonely"); r.code != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
}

// objectsOf is a Service, and its endpoints in a slice each.
func objectsOf(svc *model.Service) (*corev1.Service, []*discoveryv1.EndpointSlice) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: svc.Name.Namespace, Name: svc.Name.Name}}
	s.Spec.PublishNotReadyAddresses = svc.PublishNotReady
	for _, p := range svc.Ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: p.Name, Protocol: corev1.Protocol(p.Protocol.String()), Port: int32(p.Port)})
	}
	switch svc.Type {
	case model.ExternalName:
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, svc.ExternalName
	case model.Headless:
		s.Spec.ClusterIP = corev1.ClusterIPNone
	case model.ClusterIP:
		for _, a := range svc.ClusterIPs {
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.String())
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, familyOf(a))
		}
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		if len(s.Spec.ClusterIPs) > 1 {
			s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack)
		}
	}
	var out []*discoveryv1.EndpointSlice
	slice := func(e *model.Endpoint, ports ...discoveryv1.EndpointPort) {
		sl := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: s.Namespace, Name: fmt.Sprintf("%s-%d", s.Name, len(out)),
				Labels: map[string]string{discoveryv1.LabelServiceName: s.Name},
			},
			AddressType: discoveryv1.AddressType(familyOf(e.Addr)),
			Ports:       ports,
			Endpoints: []discoveryv1.Endpoint{{
				Addresses:  []string{e.Addr.String()},
				Conditions: discoveryv1.EndpointConditions{Ready: &e.Ready, Serving: &e.Serving, Terminating: &e.Terminating},
			}},
		}
		if e.Hostname != "" {
			sl.Endpoints[0].Hostname = &e.Hostname
		}
		out = append(out, sl)
	}
	for i, p := range svc.Ports {
		for _, b := range svc.Backends[i] {
			slice(b.Endpoint, discoveryv1.EndpointPort{Name: ptr(p.Name), Protocol: ptr(corev1.Protocol(p.Protocol.String())), Port: ptr(int32(b.Port))})
		}
	}
	if len(svc.Ports) == 0 {
		for i := range svc.Endpoints {
			slice(&svc.Endpoints[i])
		}
	}
	return s, out
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// lookup is what is asked of a resolver, and what has to come of it.
type lookup struct {
	kind, name string
	// want is what is found, sorted and with spaces between, "none" or "failed".
	want string
	row  queries.Row
}

// lookups are the rows of a group as questions to resolvers: those of one type, those
// for hosts (addresses of both families), and those with the names that people write.
func lookups(g queries.Group) (out []lookup) {
	hosts := map[string][]lookup{} // A and AAAA by name
	for _, r := range g.Rows {
		kind, name := strings.ToLower(r.Type), r.Name
		if kind == "ptr" {
			a, ok := addressOf(name)
			if !ok {
				continue
			}
			name = a.String()
		} else if !slices.Contains([]string{"a", "aaaa", "srv", "txt", "cname"}, kind) || strings.ContainsAny(name, `\*`) || name == "." {
			continue
		}
		l := lookup{kind, name, outcomeOf(r), r}
		out = append(out, l)
		if (kind == "a" || kind == "aaaa") && l.want != "failed" && !strings.Contains(name, "_") {
			hosts[strings.ToLower(name)] = append(hosts[strings.ToLower(name)], l)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		both := hosts[name]
		if len(both) != 2 || both[0].kind == both[1].kind {
			continue
		}
		l := both[0]
		l.kind, l.want = "host", union(both[0].want, both[1].want)
		out = append(out, l)
		if l.want == "none" {
			continue // with a search list, the question goes on to names of others
		}
		for _, suffix := range []string{".", ".cluster.local.", ".svc.cluster.local.", "." + namespace + ".svc.cluster.local."} {
			if short, ok := strings.CutSuffix(strings.ToLower(l.name), suffix); ok && strings.Count(short, ".") < 5 {
				l := l
				l.name = short
				out = append(out, l)
			}
		}
	}
	return out
}

// outcomeOf is what a resolver makes of an answer.
func outcomeOf(r queries.Row) string {
	if r.Rcode != "NOERROR" && r.Rcode != "NXDOMAIN" {
		return "failed"
	}
	var found []string
	for _, a := range r.Answer {
		if f := strings.Fields(a); f[1] == r.Type {
			data := strings.TrimSuffix(strings.Join(f[2:], ","), ".")
			found = append(found, strings.Trim(data, `"`))
		}
	}
	return union(found...)
}

// union is all that is in some outcomes.
func union(outcomes ...string) string {
	var found []string
	for _, o := range outcomes {
		if o != "none" {
			found = append(found, strings.Fields(o)...)
		}
	}
	if len(found) == 0 {
		return "none"
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), " ")
}

// addressOf is the address of which a name is the reverse one.
func addressOf(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	rest, four := strings.CutSuffix(name, ".in-addr.arpa.")
	six := strings.TrimSuffix(name, ".ip6.arpa.")
	labels := strings.Split(rest, ".")
	slices.Reverse(labels)
	if four {
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && len(labels) == 4
	}
	labels = strings.Split(six, ".")
	slices.Reverse(labels)
	if six == name || len(labels) != 32 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i, l := range labels {
		if i > 0 && i%4 == 0 {
			text.WriteByte(':')
		}
		text.WriteString(l)
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil
}

// resolvers are those that are asked, with what each can be asked and can tell.
var resolvers = []struct {
	name  string
	kinds []string
	skip  func(lookup) bool
	// onePTR is for interfaces that give one name of an address.
	onePTR bool
}{
	{"glibc", []string{"host", "ptr", "a", "aaaa", "srv", "txt", "cname"}, func(lookup) bool { return false }, true},
	// musl takes a refusal for a lost answer, and waits until its time is up.
	{"musl", []string{"host", "ptr", "a", "aaaa", "srv", "txt", "cname"}, func(l lookup) bool { return l.want == "failed" }, true},
	{"go", []string{"host", "ptr", "a", "aaaa", "srv", "txt"}, func(lookup) bool { return false }, false},
	// To c-ares, an address whose name is refused has none.
	{"node", []string{"host", "ptr", "a", "aaaa", "srv", "txt", "cname"}, func(l lookup) bool { return l.want == "failed" && l.kind == "ptr" }, false},
	{"getent", []string{"host"}, func(lookup) bool { return false }, false},
}

// getent has the C library asked as a shell does.
var getent = []string{"sh", "-c", `while read -r kind name; do
	found=$(getent ahosts "$name" | cut -d' ' -f1 | LC_ALL=C sort -u | tr '\n' ' ')
	echo "${found:-none}"
done`}

func (w *world) judgeResolvers(t *testing.T, programs map[string][]string, g queries.Group) {
	all := lookups(g)
	for _, r := range resolvers {
		t.Run(r.name, func(t *testing.T) {
			command := programs[r.name]
			if r.name == "getent" {
				command = getent
			}
			var asked []lookup
			var in strings.Builder
			for _, l := range all {
				if slices.Contains(r.kinds, l.kind) && !r.skip(l) {
					asked = append(asked, l)
					fmt.Fprintf(&in, "%s %s\n", l.kind, l.name)
				}
			}
			res := w.run(t, in.String(), "fairlead", append([]string{"exec", namespace + "/" + asker, "--"}, command...)...)
			got := strings.Split(strings.TrimSuffix(res.stdout, "\n"), "\n")
			if res.code != 0 || len(got) != len(asked) {
				t.Fatalf("%d answers to %d questions: %s", len(got), len(asked), res)
			}
			for i, l := range asked {
				found := strings.TrimSpace(got[i])
				if r.onePTR && l.kind == "ptr" && slices.Contains(strings.Fields(l.want), found) {
					continue
				}
				if found != l.want {
					t.Errorf("%v: %s %s finds %q, want %q", l.row, l.kind, l.name, found, l.want)
				}
			}
			t.Logf("%d questions in %v", len(asked), res.took.Round(time.Millisecond))
		})
	}
	t.Run("dig", func(t *testing.T) { w.judgeDig(t, g) })
}

// judgeDig asks every row, and looks at all that dig shows of the answer.
func (w *world) judgeDig(t *testing.T, g queries.Group) {
	var in strings.Builder
	for _, r := range g.Rows {
		fmt.Fprintf(&in, "-q %s -t %s\n", r.Name, r.Type)
	}
	res := w.run(t, in.String(), "fairlead", "exec", namespace+"/"+asker, "--", "dig", "-r", "+noidnin", "+noidnout", "+tries=1", "+timeout=5", "+nocookie",
		"+noall", "+comments", "+answer", "-f", "-")
	_, blocks, _ := strings.Cut(res.stdout, ";; ->>HEADER<<-")
	answers := strings.Split(blocks, ";; ->>HEADER<<-")
	if res.code != 0 || len(answers) != len(g.Rows) {
		t.Fatalf("%d answers to %d questions: %s", len(answers), len(g.Rows), res)
	}
	for i, r := range g.Rows {
		var flags, records []string
		for line := range strings.Lines(answers[i]) {
			line = strings.TrimSpace(line)
			if text, ok := strings.CutPrefix(line, ";; flags: qr"); ok {
				text, _, _ = strings.Cut(text, ";")
				flags = strings.Fields(text)
			} else if f := strings.Fields(line); len(f) > 4 && f[2] == "IN" {
				if f[3] == "SOA" {
					f[6] = "1" // whatever the generation is
				}
				records = append(records, strings.Join(append([]string{f[0]}, f[3:]...), " "))
			}
		}
		slices.Sort(records)
		if status := digStatus(answers[i]); status != r.Rcode || !slices.Equal(flags, r.Flags) || !slices.Equal(records, r.Answer) {
			t.Errorf("%v: %s %v %q, want %s %v %q", r, status, flags, records, r.Rcode, r.Flags, r.Answer)
		}
	}
	t.Logf("%d questions in %v", len(g.Rows), res.took.Round(time.Millisecond))
}
