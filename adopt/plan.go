// Copyright The Fairlead Authors
// SPDX-License-Identifier: Apache-2.0

package adopt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/dns/corefile"
)

// Get reads an object of the API by its path; found is false if it is not there.
type Get func(ctx context.Context, path string, into any) (found bool, err error)

// Step is something to do by hand. Text may have NODE in it, which stands for a node's name, one after the other.
type Step struct {
	Title string `json:"title"`
	// Do, See and Undo are commands: what to do, how to see that it worked, how to go back.
	Do   []string `json:"do"`
	See  []string `json:"see"`
	Undo []string `json:"undo"`
	// Notice is what users will notice; empty: nothing.
	Notice string `json:"notice,omitempty"`
}

// Plan is what a cluster has, and the steps of taking over.
type Plan struct {
	// Kind is kubeadm, kind or k3s; kubeadm also for others that run kube-proxy as its DaemonSet.
	Kind  string   `json:"kind"`
	Nodes []string `json:"nodes"`
	// Found are sentences about what is there.
	Found []string `json:"found"`
	// Obstacles have to be out of the way first.
	Obstacles []string `json:"obstacles"`
	Steps     []Step   `json:"steps"`
}

// The objects, as far as they are looked at.
type (
	nodeList struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ ProviderID string }
			Status   struct {
				NodeInfo struct{ KubeletVersion, OperatingSystem string }
			}
		}
	}
	workload struct {
		Spec struct{ Replicas *int }
	}
	configMap   struct{ Data map[string]string }
	serviceCIDR struct{ Spec struct{ CIDRs []string } }
	service     struct {
		Spec struct {
			ClusterIPs []string
			Selector   map[string]string
		}
	}
)

const system = "/api/v1/namespaces/kube-system/"
const apps = "/apis/apps/v1/namespaces/kube-system/"

// serviceRanges is the object that the API server makes of its own ranges.
const serviceRanges = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes"

// MakePlan looks at a cluster. It only reads.
func MakePlan(ctx context.Context, get Get) (*Plan, error) {
	p := &Plan{Kind: "kubeadm", Nodes: []string{}, Found: []string{}, Obstacles: []string{}, Steps: []Step{}}
	var errs []error
	has := func(path string, into any) bool {
		found, err := get(ctx, path, into)
		errs = append(errs, err)
		return found
	}
	var nodes nodeList
	has("/api/v1/nodes", &nodes)
	for _, n := range nodes.Items {
		switch {
		case strings.Contains(n.Status.NodeInfo.KubeletVersion, "+k3s"):
			p.Kind = "k3s"
		case strings.HasPrefix(n.Spec.ProviderID, "kind://"):
			p.Kind = "kind"
		}
		if os := n.Status.NodeInfo.OperatingSystem; os != "" && os != "linux" {
			p.found("node %s runs %s: it keeps its kube-proxy, and asks CoreDNS or other nodes' agents", n.Metadata.Name, os)
			continue
		}
		p.Nodes = append(p.Nodes, n.Metadata.Name)
	}
	var coredns workload
	var proxyConfig, dnsConfig configMap
	var dnsService service
	daemon := has(apps+"daemonsets/kube-proxy", new(workload))
	has(system+"configmaps/kube-proxy", &proxyConfig)
	deployed := has(apps+"deployments/coredns", &coredns)
	has(system+"configmaps/coredns", &dnsConfig)
	cached := has(apps+"daemonsets/node-local-dns", new(workload))
	served := has(system+"services/kube-dns", &dnsService)
	var services serviceCIDR
	has(serviceRanges, &services)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("look at the cluster: %w", err)
	}
	p.found("%d Linux nodes of a cluster of the kind %s", len(p.Nodes), p.Kind)
	settings := yamlFields(proxyConfig.Data["config.conf"], "mode", "clusterCIDR", "nodePortAddresses")
	ranges := ranges(services.Spec.CIDRs, settings["clusterCIDR"])
	p.steps(proxySteps(p, daemon, settings, ranges)...)
	if served {
		p.steps(dnsSteps(p, deployed, cached, coredns, dnsConfig, dnsService, ranges)...)
	} else {
		p.found("there is no Service kube-system/kube-dns: the cluster DNS is not planned for")
	}
	p.places()
	p.found("the pod network stays whose it is: it cannot be taken over under running pods; new nodes can have Fairlead's")
	return p, nil
}

func (p *Plan) found(format string, args ...any) {
	p.Found = append(p.Found, fmt.Sprintf(format, args...))
}

func (p *Plan) obstacle(format string, args ...any) {
	p.Obstacles = append(p.Obstacles, fmt.Sprintf(format, args...))
}

func (p *Plan) steps(s ...Step) { p.Steps = append(p.Steps, s...) }

// Places to be filled in stand in the commands for what is not known.
const (
	serviceRangesPlace = "SERVICE-RANGES"
	podRangesPlace     = "POD-RANGES"
)

// ranges are the chart's values for the cluster's ranges. The chart refuses a place that is not filled in: its defaults may be somebody else's addresses here, and
// the agents refuse connections to what no Service has of the range of Services.
func ranges(services []string, pods string) string {
	return "serviceCIDRs={" + cmp.Or(strings.Join(services, ","), serviceRangesPlace) + "},podCIDRs={" + cmp.Or(pods, podRangesPlace) + "}"
}

// places says what belongs where the commands have a place to be filled in.
func (p *Plan) places() {
	for _, row := range []struct{ place, where string }{
		{serviceRangesPlace, "the API server does not say the range of Services: give it for " + serviceRangesPlace + " (--service-cluster-ip-range of kube-apiserver)"},
		{podRangesPlace, "kube-proxy's configuration does not say the range of pods: give it for " + podRangesPlace + " (--cluster-cidr of kube-controller-manager; k3s: cluster-cidr, 10.42.0.0/16 by default)"},
	} {
		if slices.ContainsFunc(p.Steps, func(s Step) bool { return strings.Contains(strings.Join(s.Do, "\n"), row.place) }) {
			p.found("%s", row.where)
		}
	}
}

// yamlFields are top-level fields with one value, unquoted, or with a list. A KubeProxyConfiguration has its simple settings there.
func yamlFields(text string, names ...string) map[string]string {
	out := make(map[string]string)
	in := "" // the field whose list the lines are of
	for line := range strings.Lines(text) {
		if item, ok := strings.CutPrefix(strings.TrimSpace(line), "- "); ok && in != "" {
			out[in] = strings.TrimPrefix(out[in]+", "+strings.Trim(strings.TrimSpace(item), `"'`), ", ")
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if in = ""; ok && slices.Contains(names, key) {
			out[key] = strings.Trim(strings.TrimSpace(value), `"'`)
			if out[key] == "" {
				in = key
			}
		}
	}
	return out
}

const (
	onNode    = "$(kubectl -n kube-system get pod -l app.kubernetes.io/name=fairlead --field-selector spec.nodeName=NODE -o name)"
	inAgent   = "kubectl -n kube-system exec " + onNode + " -- fairlead "
	seeStatus = inAgent + "status"
)

// oneOff runs the program on a node without an agent, as the agent's pod would.
func oneOff(args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = `"` + a + `"`
	}
	return `kubectl -n kube-system run fairlead-once --rm -i --restart=Never --image=IMAGE --overrides='{"spec":{"nodeName":"NODE","hostNetwork":true,"dnsPolicy":"Default",` +
		`"serviceAccountName":"fairlead","tolerations":[{"operator":"Exists"}],"containers":[{"name":"fairlead-once","image":"IMAGE","args":[` + strings.Join(quoted, ",") +
		`],"securityContext":{"runAsUser":0,"capabilities":{"drop":["ALL"],"add":["NET_ADMIN"]}}}]}}'`
}

func proxySteps(p *Plan, daemon bool, settings map[string]string, ranges string) []Step {
	values := "proxy.enabled=true,dns.enabled=false,network.enabled=false,apiServer=HOST:PORT," + ranges
	switch {
	case p.Kind == "k3s":
		p.found("kube-proxy is part of the k3s process, in mode iptables unless --kube-proxy-arg says otherwise")
	case daemon:
		mode := settings["mode"]
		if mode == "" {
			mode = "iptables"
		}
		p.found("kube-proxy is the DaemonSet kube-system/kube-proxy, in mode %s", mode)
		if mode == "ipvs" {
			p.obstacle("kube-proxy's mode ipvs cannot be read or stand beside: change mode to nftables in its ConfigMap, restart it node by node, and make the plan again")
		}
		if r := settings["nodePortAddresses"]; r != "" && r != "null" && r != "[]" {
			p.found("kube-proxy has nodePortAddresses %s: give the same as proxy.nodePortAddresses", r)
		}
	default:
		p.found("there is no DaemonSet kube-system/kube-proxy: another program is the service proxy, and stays")
		return nil
	}
	steps := []Step{{
		Title: "install Fairlead, on no node yet",
		Do:    []string{"helm install fairlead deploy/chart -n kube-system --set-string nodeSelector.fairlead\\.io/agent=on --set '" + values + "'"},
		See:   []string{"kubectl -n kube-system get daemonset fairlead   # DESIRED 0"},
		Undo:  []string{"helm uninstall fairlead -n kube-system"},
	}, {
		Title: "compare, without touching a packet, on each node",
		Do:    []string{oneOff("adopt", "check", "--node", "NODE")},
		See:   []string{"its exit code 0: no difference that is not meant"},
		Undo:  []string{"nothing to undo"},
	}, {
		Title: "start the agent beside kube-proxy, node by node",
		Do:    []string{"kubectl label node NODE fairlead.io/agent=on"},
		See:   []string{"kubectl -n kube-system wait " + onNode + " --for=condition=Ready", seeStatus},
		// The cleanup has no way to see an agent that is still ending, which would program everything again.
		Undo: []string{"kubectl label node NODE fairlead.io/agent-", "kubectl -n kube-system wait pod -l app.kubernetes.io/name=fairlead --field-selector spec.nodeName=NODE --for=delete", oneOff("cleanup")},
	}}
	sameAgain := inAgent + "adopt check --only proxy   # exit code 0: kube-proxy has programmed everything again"
	if p.Kind == "k3s" {
		return append(steps, Step{
			Title:  "end k3s's kube-proxy",
			Do:     []string{"echo 'disable-kube-proxy: true' >> /etc/rancher/k3s/config.yaml   # on each server", "systemctl restart k3s   # servers one by one, then k3s-agent on the others"},
			See:    []string{"kubectl get nodes", seeStatus},
			Undo:   []string{"take the line out of config.yaml and restart k3s the same way", sameAgain},
			Notice: "pods go on while k3s restarts; the API server of a lone server is away for some seconds",
		}, cleanStep())
	}
	return append(steps, Step{
		Title: "keep kube-proxy off the nodes that are taken over",
		Do: []string{`kubectl -n kube-system patch daemonset kube-proxy -p '{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":` +
			`{"nodeSelectorTerms":[{"matchExpressions":[{"key":"fairlead.io/proxy","operator":"DoesNotExist"}]}]}}}}}}}'`},
		See:  []string{"kubectl -n kube-system rollout status daemonset kube-proxy"},
		Undo: []string{`kubectl -n kube-system patch daemonset kube-proxy -p '{"spec":{"template":{"spec":{"affinity":null}}}}'`},
	}, Step{
		Title: "end kube-proxy, node by node",
		Do:    []string{"kubectl label node NODE fairlead.io/proxy=on"},
		See:   []string{"kubectl -n kube-system get pod -l k8s-app=kube-proxy --field-selector spec.nodeName=NODE   # none", seeStatus},
		Undo:  []string{"kubectl label node NODE fairlead.io/proxy-", sameAgain},
	}, cleanStep())
}

func cleanStep() Step {
	return Step{
		Title: "remove what kube-proxy has left, node by node",
		Do:    []string{inAgent + "cleanup --only-kube-proxy   # mode iptables needs iptables-save: run it on the node itself, or kube-proxy --cleanup"},
		See:   []string{inAgent + "cleanup --only-kube-proxy --dry-run   # nothing to remove"},
		Undo:  []string{"start kube-proxy again (the step before): it programs everything"},
	}
}

func dnsSteps(p *Plan, deployed, cached bool, coredns workload, config configMap, svc service, ranges string) []Step {
	replicas := 2
	if coredns.Spec.Replicas != nil {
		replicas = *coredns.Spec.Replicas
	}
	ips := strings.Join(svc.Spec.ClusterIPs, ",")
	if !deployed {
		p.found("the cluster DNS is at %s; there is no Deployment kube-system/coredns, so another program is behind it", ips)
		return nil
	}
	p.found("the cluster DNS is CoreDNS with %d replicas, at %s", replicas, ips)
	domain := chartDomain
	if text, ok := config.Data["Corefile"]; ok {
		domain = p.corefile(text, svc.Spec.ClusterIPs)
	}
	values := "dns.enabled=true,dns.service=false,dns.corefileConfigMap=coredns"
	if domain != chartDomain {
		p.found("the cluster's domain is %s", domain)
		values += ",clusterDomain=" + domain
	}
	install := "helm upgrade fairlead deploy/chart -n kube-system --reuse-values"
	off := install + " --set dns.enabled=false"
	if len(p.Steps) == 0 {
		install, off = "helm install fairlead deploy/chart -n kube-system --set 'proxy.enabled=false,network.enabled=false,"+ranges+"'", "helm uninstall fairlead -n kube-system"
	}
	steps := []Step{}
	if cached {
		p.found("NodeLocal DNSCache (DaemonSet kube-system/node-local-dns) answers on the nodes, before CoreDNS")
		steps = append(steps, Step{
			Title:  "remove NodeLocal DNSCache: where it is, it takes the questions first, in kube-proxy's mode iptables at the cluster DNS's own address",
			Do:     []string{"kubectl -n kube-system get daemonset node-local-dns -o yaml > node-local-dns.yaml", "kubectl -n kube-system delete daemonset node-local-dns"},
			See:    []string{"ip addr show nodelocaldns   # on a node: does not exist"},
			Undo:   []string{"kubectl apply -f node-local-dns.yaml"},
			Notice: "questions go to CoreDNS without the cache until the next step; where the kubelets have --cluster-dns=169.254.20.10, pods ask that address until they are made again: leave it until there are none",
		})
	}
	selector := `"app.kubernetes.io/name":"fairlead"`
	back := ""
	for _, key := range slices.Sorted(maps.Keys(svc.Spec.Selector)) {
		if key != "app.kubernetes.io/name" {
			selector += fmt.Sprintf(`,%q:null`, key)
		}
		back += fmt.Sprintf(`,%q:%q`, key, svc.Spec.Selector[key])
	}
	if _, ok := svc.Spec.Selector["app.kubernetes.io/name"]; !ok {
		back += `,"app.kubernetes.io/name":null`
	}
	patch := func(s string) string {
		return `kubectl -n kube-system patch service kube-dns -p '{"spec":{"selector":{` + strings.TrimPrefix(s, ",") + `}}}'`
	}
	keep := []string{}
	if p.Kind == "k3s" {
		keep = []string{"touch /var/lib/rancher/k3s/server/manifests/coredns.yaml.skip   # on each server: or the next start makes them again"}
	}
	scale := fmt.Sprintf("kubectl -n kube-system scale deployment coredns --replicas=%d", replicas)
	return append(steps, Step{
		Title:  "have each node's agent answer; CoreDNS stays behind it",
		Do:     []string{install + " --set " + values + " --set 'dns.ips={" + ips + "}'"},
		See:    []string{seeStatus + "   # DNS addresses", inAgent + "adopt check --only dns --dns-ip " + ips + " --dns-corefile /etc/fairlead/dns"},
		Undo:   []string{off},
		Notice: "TCP connections to the cluster DNS that are open on the node at that moment are reset, once; resolvers open another",
	}, Step{
		Title: "have the other nodes' agents behind each agent, instead of CoreDNS",
		Do:    []string{patch(selector)},
		See:   []string{"kubectl -n kube-system get endpointslices -l kubernetes.io/service-name=kube-dns   # the nodes' addresses"},
		Undo:  []string{patch(back)},
	}, Step{
		Title: "end CoreDNS",
		Do:    append(keep, "kubectl -n kube-system scale deployment coredns --replicas=0"),
		See:   []string{"kubectl -n kube-system get deployment coredns   # 0/0"},
		Undo:  []string{scale, "kubectl -n kube-system rollout status deployment coredns   # before the Service's selector goes back"},
	})
}

// chartDomain is the cluster's domain that the chart has by default.
const chartDomain = "cluster.local"

// corefile says what becomes of the Corefile, and returns the cluster's domain by it. Files that it names are those of CoreDNS's pods, of which only resolv.conf
// is known to exist.
func (p *Plan) corefile(text string, ips []string) (domain string) {
	env := corefile.Env{ReadFile: func(name string) ([]byte, error) {
		if name == "/etc/resolv.conf" {
			return []byte("nameserver 192.0.2.53\n"), nil
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}}
	for _, s := range ips {
		if a, err := netip.ParseAddr(s); err == nil {
			env.ClusterDNS = append(env.ClusterDNS, a)
		}
	}
	read, err := corefile.Parse("Corefile", []byte(text), env)
	for _, n := range read.Notes {
		switch n.Fate {
		case corefile.Refused:
			p.obstacle("%s", n)
		case corefile.Differently:
			p.found("%s", n)
		}
	}
	if err != nil {
		return chartDomain
	}
	p.found("the Corefile of ConfigMap kube-system/coredns can be used as it is (fairlead doctor --corefile has every line)")
	for _, b := range read.Blocks {
		if b.Cluster == nil {
			continue
		}
		for _, zone := range b.Cluster.Zones {
			if !strings.HasSuffix(zone, ".arpa.") && zone != "." {
				return strings.TrimSuffix(zone, ".")
			}
		}
	}
	return chartDomain
}

// Print writes the plan for people.
func (p *Plan) Print(w io.Writer) {
	for _, s := range p.Found {
		fmt.Fprintf(w, "- %s\n", s)
	}
	if len(p.Obstacles) > 0 {
		fmt.Fprintln(w, "\nIn the way, to be done first:")
		for _, s := range p.Obstacles {
			fmt.Fprintf(w, "- %s\n", s)
		}
	}
	for i, s := range p.Steps {
		fmt.Fprintf(w, "\n%d. %s\n", i+1, s.Title)
		for _, part := range []struct {
			name  string
			lines []string
		}{{"do", s.Do}, {"see", s.See}, {"undo", s.Undo}} {
			for _, line := range part.lines {
				fmt.Fprintf(w, "   %-5s %s\n", part.name, line)
			}
		}
		if s.Notice != "" {
			fmt.Fprintf(w, "   users notice: %s\n", s.Notice)
		}
	}
	if len(p.Steps) > 0 {
		fmt.Fprintf(w, "\nNODE is each of: %s. IMAGE is the chart's image; HOST:PORT the API server's own address. To go back, undo from the last step to the first.\ndocs/migrate.md has the reasons.\n", strings.Join(p.Nodes, ", "))
	}
}
